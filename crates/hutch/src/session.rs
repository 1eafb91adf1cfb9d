//! The client's side of a session: our streams, terminal and signals on one end, a process in a sandbox on the other.
//!
//! ```text
//!   stdin ──▶ detach keys ──▶ Stdin or Tty stream ──▶ ┐
//!   stdout, stderr ◀── Stdout, Stderr or Tty stream ◀ ┤ keeper ── guest
//!   signals, window size ──▶ Exec stream ───────────▶ │
//!   exit status ◀── Exec stream ◀──────────────────── ┘
//! ```
//!
//! What comes back is said by a hostile guest: bytes of the streams go to our streams and nowhere else, sentences are made
//! harmless before they are shown.

mod signals;
mod streams;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use hutch_api::{Open, Request};
use hutch_wire::guest::{ExecEvent, ExecFailure, ExecRequest, ExecSpec};
use hutch_wire::message::{self, MESSAGE_MAX, MessageError};
use hutch_wire::{Connection, Stream};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf, split};

use self::signals::{Event, Signals};
use self::streams::{Stop, Streams};
use crate::detach_keys::Scanner;
use crate::exit_codes;
use crate::failure::Failure;
use crate::keeper_client::Keeper;
use crate::printer::guest_sentence;
use crate::stdio::{self, Output};
use crate::terminal::{self, RawMode};

/// No event is longer: a failure's sentence is the longest part.
const EVENT_MAX: u32 = 64 * 1024;
/// Asked to end so often, we end even if the session does not.
const PATIENCE: u32 = 3;

/// Our three standard streams.
#[derive(Debug)]
pub(crate) struct Standard {
    /// Standard input.
    pub(crate) stdin: OwnedFd,
    /// Standard output.
    pub(crate) stdout: OwnedFd,
    /// Standard error.
    pub(crate) stderr: OwnedFd,
}

impl Standard {
    /// Those of this process.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }

    /// The same streams once more.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            stdin: self.stdin.try_clone()?,
            stdout: self.stdout.try_clone()?,
            stderr: self.stderr.try_clone()?,
        })
    }

    /// Where a terminal's size is looked for.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdout.as_fd(), self.stdin.as_fd(), self.stderr.as_fd()]
    }
}

/// What a session is to be.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The process. Its `tty`, `stdin` and `detached` decide which streams there are.
    pub(crate) spec: ExecSpec,
    /// A terminal session reads our standard input.
    pub(crate) input: bool,
    /// Keys that leave it.
    pub(crate) detach_keys: Vec<u8>,
    /// Set when the Docker CLI is our parent.
    pub(crate) plugin_socket: Option<OsString>,
}

/// How a session ended for us.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process ended; the exit code to end with.
    Code(u8),
    /// We left it, and it goes on.
    Left,
    /// It did not begin because the sandbox is on its way down: worth another try.
    NotBegun(String),
    /// The connection broke in the middle.
    Lost(String),
    /// It could not be started.
    Failed(ExecFailure, String),
    /// A signal asked us to end.
    Interrupted(u8),
    /// Our standard output cannot be written.
    OutputFailed(io::ErrorKind),
}

impl End {
    /// The exit code, or what to tell.
    pub(crate) fn code(self) -> Result<u8, Failure> {
        match self {
            Self::Code(code) => Ok(code),
            Self::Left => Ok(exit_codes::SUCCESS),
            Self::Interrupted(signal) => Err(Failure::silent(exit_codes::of_signal(signal))),
            Self::OutputFailed(kind) => Err(Failure::output(&kind.into())),
            Self::NotBegun(reason) | Self::Lost(reason) => {
                Err(Failure::host(format!("the session broke off: {}", guest_sentence(&reason))))
            }
            Self::Failed(kind, sentence) => {
                let code = match kind {
                    ExecFailure::NotFound => exit_codes::NOT_FOUND,
                    ExecFailure::NotExecutable | ExecFailure::Invalid => exit_codes::NOT_EXECUTABLE,
                    ExecFailure::Refused => exit_codes::NOT_RUN,
                };
                Err(Failure::user(guest_sentence(&sentence)).with_code(code))
            }
        }
    }
}

/// A session under way.
struct Session {
    events: ReadHalf<Stream>,
    requests: WriteHalf<Stream>,
    streams: Streams,
    signals: Signals,
    raw: Option<RawMode>,
    standard: Standard,
    /// How often we were asked to end.
    asked: u32,
}

/// Runs a session from its start to its end.
pub(crate) async fn run(keeper: &Keeper, plan: Plan, standard: Standard) -> Result<End, Failure> {
    let connection = keeper.connection();
    let host =
        |error: io::Error| Failure::host(format!("the session could not be prepared: {error}"));
    // Before anything runs, so that no signal is missed.
    let signals = Signals::new(plan.plugin_socket.clone()).map_err(host)?;
    let mut exec = match open(connection, &Open::Exec).await {
        Ok(exec) => exec,
        Err(reason) => return Ok(End::NotBegun(reason)),
    };
    if let Err(error) = message::write(&mut exec, &plan.spec).await {
        return match error {
            MessageError::TooLong { .. } => Err(Failure::user(format!(
                "the command and its variables are larger than {MESSAGE_MAX} bytes"
            ))),
            _ => Ok(End::NotBegun(exec.reset_reason().unwrap_or_else(|| error.to_string()))),
        };
    }
    let tty = plan.spec.tty.is_some();
    let mut streams = Streams::default();
    if !plan.spec.detached {
        let opened = streams.open(connection, exec.id(), &plan.spec).await;
        if let Err(reason) = opened {
            return Ok(End::NotBegun(exec.reset_reason().unwrap_or(reason)));
        }
    }
    let raw = if tty && plan.input && !plan.spec.detached {
        Some(RawMode::enter(standard.stdin.as_fd()).map_err(|error| {
            Failure::host(format!("the terminal cannot be switched to raw mode: {error}"))
        })?)
    } else {
        None
    };
    if !plan.spec.detached {
        let input = if plan.input || plan.spec.stdin {
            Some(stdio::read(standard.stdin.try_clone().map_err(host)?))
        } else {
            None
        };
        let stdout = Output::new(standard.stdout.try_clone().map_err(host)?);
        let stderr =
            if tty { None } else { Some(Output::new(standard.stderr.try_clone().map_err(host)?)) };
        let keys = if tty { plan.detach_keys } else { Vec::new() };
        streams.start(input, stdout, stderr, Scanner::new(keys));
    }
    let (events, requests) = split(exec);
    let mut session = Session { events, requests, streams, signals, raw, standard, asked: 0 };
    let outcome = session.drive(plan.spec.detached).await;
    Ok(session.finish(outcome, keeper).await)
}

/// What ends the conversation.
enum Outcome {
    /// There is an end.
    End(End),
    /// The exec stream broke: after the process had begun, or before.
    Broken { begun: bool, error: String },
}

impl Session {
    /// Goes on until there is an end.
    async fn drive(&mut self, detached: bool) -> Outcome {
        let Self { events, requests, streams, signals, raw, standard, asked } = self;
        let mut begun = false;
        // Reading a message cannot be cancelled in the middle, so one future reads until it is done.
        let mut next = Box::pin(message::read::<ExecEvent, _>(&mut *events, EVENT_MAX));
        loop {
            let end = tokio::select! {
                event = &mut next => {
                    drop(next);
                    match event {
                        Ok(ExecEvent::Started { .. }) if !detached => {
                            begun = true;
                            next = Box::pin(message::read::<ExecEvent, _>(&mut *events, EVENT_MAX));
                            continue;
                        }
                        Ok(ExecEvent::Started { .. }) => End::Left,
                        Ok(ExecEvent::Failed { kind, message }) => End::Failed(kind, message),
                        Ok(ExecEvent::Exited { code }) => End::Code(code),
                        Ok(ExecEvent::Signaled { signal }) => End::Code(exit_codes::of_signal(signal)),
                        Err(error) => return Outcome::Broken { begun, error: error.to_string() },
                    }
                }
                event = signals.next() => {
                    match react(event, asked, raw.as_ref(), requests, standard).await {
                        Some(end) => end,
                        None => continue,
                    }
                }
                stop = streams.stopped() => match stop {
                    Stop::Leave => match message::write(requests, &ExecRequest::Detach).await {
                        Ok(()) => End::Left,
                        Err(error) => return Outcome::Broken { begun, error: error.to_string() },
                    },
                    Stop::OutputFailed(kind) => End::OutputFailed(kind),
                },
            };
            return Outcome::End(end);
        }
    }

    /// Brings the rest of the output out, leaves the terminal, and lets the keeper know that we have everything.
    async fn finish(mut self, outcome: Outcome, keeper: &Keeper) -> End {
        let mut end = match outcome {
            Outcome::End(end) => end,
            Outcome::Broken { begun, error } => {
                drop(self.raw.take());
                let reason = self.events.unsplit(self.requests).reset_reason().unwrap_or(error);
                return if begun { End::Lost(reason) } else { End::NotBegun(reason) };
            }
        };
        match end {
            End::Code(_) | End::Failed(..) => {
                if let Some(other) = self.bring_the_rest_out().await {
                    end = other;
                }
            }
            End::Left => {
                // A reset would overtake the request to let the session go on; the answer to a later question says
                // that the keeper has read it.
                for _ in 0..2 {
                    let _answered = keeper.call(&Request::Status).await;
                }
            }
            _ => {}
        }
        if matches!(end, End::Code(_) | End::Failed(..) | End::Left) {
            // The end of our side says that we read everything.
            let _ended = self.requests.shutdown().await;
        }
        drop(self.raw.take());
        end
    }

    /// Waits until all output is written; another end where that is not to be.
    async fn bring_the_rest_out(&mut self) -> Option<End> {
        let Self { streams, signals, .. } = self;
        let rest = streams.drain();
        tokio::pin!(rest);
        loop {
            tokio::select! {
                drained = &mut rest => return drained.err().map(|error| End::OutputFailed(error.kind())),
                // Somebody who does not read our output can still end us.
                event = signals.next() => if let Event::Terminate(signal) = event {
                    return Some(End::Interrupted(signal));
                },
            }
        }
    }
}

/// Does what a signal asks for; an end where it asks for that.
async fn react(
    event: Event,
    asked: &mut u32,
    raw: Option<&RawMode>,
    requests: &mut WriteHalf<Stream>,
    standard: &Standard,
) -> Option<End> {
    let request = match event {
        // In raw mode the keyboard sends no signals: this one comes from outside and means us.
        Event::Terminate(signal) if raw.is_some() => return Some(End::Interrupted(signal)),
        Event::Terminate(signal) => {
            *asked += 1;
            if *asked > PATIENCE {
                return Some(End::Interrupted(signal));
            }
            ExecRequest::Signal(signal)
        }
        Event::Pass(signal) => ExecRequest::Signal(signal),
        Event::Continued => {
            raw?.again();
            ExecRequest::Resize(terminal::size(standard.descriptors()))
        }
        Event::Resized => ExecRequest::Resize(terminal::size(standard.descriptors())),
    };
    // A lost connection shows up where events are read.
    let _lost = message::write(requests, &request).await;
    None
}

/// Opens a stream to the keeper.
async fn open(connection: &Connection, what: &Open) -> Result<Stream, String> {
    let payload = postcard::to_stdvec(what).map_err(|error| error.to_string())?;
    connection.open(&payload).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
