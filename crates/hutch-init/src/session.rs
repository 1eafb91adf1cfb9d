//! Sessions: what the host runs in the container, from its request to the last byte of its output.
//!
//! ```text
//!   Channel, one per connection          Sessions, one per container
//!     exec ──▶ a task per session: ExecSpec ▶ Container::spawn ▶ Started ▶ … ▶ Exited
//!     stdio ─▶ handed to the task that its exec stream's number names; each byte stream has a pump of its own
//! ```
//!
//! Invariants: a session whose exec stream ends is killed with everything that it started, unless it is detached; the
//! end is told after the last byte of output was taken by the stream that carries it; what a session holds (task,
//! pumps, descriptors) is gone when its task ends.

mod pump;

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hutch_wire::guest::{ExecEvent, ExecFailure, ExecRequest, ExecSpec, Stdio};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::{IncomingStream, Stream};
use rustix::process::Signal;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::container::{Container, Outcome, Process, StdioFds};
use crate::pty::Terminal;
use crate::root::Root;
use crate::seeds;
use pump::{Phase, Pipes};

/// Sessions at once, detached ones included.
const SESSIONS_MAX: usize = 1024;
/// No request to a running session is longer.
const REQUEST_MAX: u32 = 1024;
/// How long output may be held open by something that a session left behind.
const LINGER: Duration = Duration::from_secs(2);

/// The sessions of one container. Clones share them.
#[derive(Debug, Clone)]
pub struct Sessions {
    container: Container,
    room: Arc<Semaphore>,
    home: Option<Arc<SeededHome>>,
}

/// Where files for sessions are put.
#[derive(Debug)]
struct SeededHome {
    root: Arc<Root>,
    user: String,
}

impl Sessions {
    /// Sessions in this container.
    pub fn new(container: Container) -> Self {
        Self { container, room: Arc::new(Semaphore::new(SESSIONS_MAX)), home: None }
    }

    /// Sessions whose files are put into the home of this user.
    pub(crate) fn with_home(self, root: Arc<Root>, user: String) -> Self {
        Self { home: Some(Arc::new(SeededHome { root, user })), ..self }
    }

    /// The container that they run in.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// How many run now.
    pub fn running(&self) -> usize {
        SESSIONS_MAX - self.room.available_permits()
    }
}

/// The sessions that one connection to the host asked for, by the number of their exec stream.
#[derive(Debug, Default)]
pub struct Channel {
    open: Arc<Mutex<HashMap<u32, Slot>>>,
}

/// How byte streams reach their session.
#[derive(Debug)]
struct Slot {
    streams: mpsc::Sender<(Stdio, Stream)>,
    /// Which of them came.
    taken: Vec<Stdio>,
}

/// Byte streams that a session can have at most.
const STREAMS_MAX: usize = 4;

impl Channel {
    /// Serves an exec stream. Returns at once.
    pub fn exec(&self, sessions: &Sessions, stream: IncomingStream) {
        let number = stream.id();
        let stream = stream.accept();
        let Ok(room) = Arc::clone(&sessions.room).try_acquire_owned() else {
            tokio::spawn(refuse(stream));
            return;
        };
        let (streams, arriving) = mpsc::channel(STREAMS_MAX);
        lock(&self.open).insert(number, Slot { streams, taken: Vec::new() });
        let entry = Entry { open: Arc::clone(&self.open), number };
        let place = (sessions.container.clone(), sessions.home.clone());
        tokio::spawn(run(place, stream, arriving, entry, room));
    }

    /// Hands a byte stream to the session that it belongs to. Returns at once.
    pub fn stdio(&self, stream: IncomingStream, exec: u32, which: Stdio) {
        let mut open = lock(&self.open);
        let Some(slot) = open.get_mut(&exec) else {
            return stream.refuse("there is no such session");
        };
        if slot.taken.contains(&which) {
            return stream.refuse("the session has this stream already");
        }
        slot.taken.push(which);
        // There is room for each kind once; a session that has just ended drops the stream, which resets it.
        slot.streams.try_send((which, stream.accept())).ok();
    }
}

/// A session's place in its channel, given up when dropped.
#[derive(Debug)]
struct Entry {
    open: Arc<Mutex<HashMap<u32, Slot>>>,
    number: u32,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
    }
}

fn lock(open: &Mutex<HashMap<u32, Slot>>) -> MutexGuard<'_, HashMap<u32, Slot>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn refuse(mut stream: Stream) {
    let event = ExecEvent::Failed {
        kind: ExecFailure::Refused,
        message: format!("{SESSIONS_MAX} sessions run in the sandbox, which is the limit"),
    };
    // A host that is gone needs no answer.
    if message::write(&mut stream, &event).await.is_ok() {
        stream.shutdown().await.ok();
    }
}

/// One session, from its specification to its end.
async fn run(
    (container, home): (Container, Option<Arc<SeededHome>>),
    stream: Stream,
    mut arriving: mpsc::Receiver<(Stdio, Stream)>,
    entry: Entry,
    room: OwnedSemaphorePermit,
) {
    let (mut requests, mut events) = tokio::io::split(stream);
    let Ok(mut spec) = message::read::<ExecSpec, _>(&mut requests, MESSAGE_MAX).await else {
        return;
    };
    let files = std::mem::take(&mut spec.seeds);
    if let Some(home) = home.filter(|_| !files.is_empty()) {
        // Whatever comes of it is in the log: a session is not worth less without.
        let work = move || seeds::apply(&home.root, &home.user, &files);
        tokio::task::spawn_blocking(work).await.ok();
    }
    let detached = spec.detached;
    let event = match start(&container, spec).await {
        Ok((process, pipes)) => {
            let started = ExecEvent::Started { pid: process.pid };
            // A host that is gone shows as the end of its requests.
            message::write(&mut events, &started).await.ok();
            let session = Session::new(process, pipes, detached);
            session.run(requests, arriving).await
        }
        Err(failed) => {
            arriving.close();
            while let Some((_, mut stream)) = arriving.recv().await {
                // Ends rather than resets: there merely is no output.
                stream.shutdown().await.ok();
            }
            Some(failed)
        }
    };
    drop((entry, room));
    if let Some(event) = event {
        say(events, &event).await;
    }
}

async fn say(mut events: WriteHalf<Stream>, event: &ExecEvent) {
    // A host that is gone needs no answer.
    if message::write(&mut events, event).await.is_ok() {
        events.shutdown().await.ok();
    }
}

/// Starts the process; an error is what to tell the host.
async fn start(container: &Container, spec: ExecSpec) -> Result<(Process, Pipes), ExecEvent> {
    let refused = |error: io::Error| ExecEvent::Failed {
        kind: ExecFailure::Refused,
        message: format!("the session's streams could not be made: {error}"),
    };
    let (mut pipes, theirs) = if spec.detached || spec.tty.is_some() {
        (Pipes::default(), StdioFds::default())
    } else {
        pipes(spec.stdin).map_err(refused)?
    };
    let detached = spec.detached;
    let mut process = container
        .spawn(spec, theirs)
        .await
        .map_err(|error| ExecEvent::Failed { kind: error.kind, message: error.message })?;
    if let Some(master) = process.terminal.take() {
        let terminal = Terminal::new(master).map_err(refused)?;
        if detached {
            // Somebody has to take what it shows.
            pipes.unwatched = true;
        }
        pipes.terminal = Some(terminal);
    }
    Ok((process, pipes))
}

/// Our ends and the process's ends of its pipes.
fn pipes(stdin: bool) -> io::Result<(Pipes, StdioFds)> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
    };
    let (mut ours, mut theirs) = (Pipes::default(), StdioFds::default());
    if stdin {
        let (reader, writer) = pipe()?;
        ours.stdin = Some(pump::sender(writer)?);
        theirs.stdin = Some(reader);
    }
    let (reader, writer) = pipe()?;
    ours.stdout = Some(pump::receiver(reader)?);
    theirs.stdout = Some(writer);
    let (reader, writer) = pipe()?;
    ours.stderr = Some(pump::receiver(reader)?);
    theirs.stderr = Some(writer);
    Ok((ours, theirs))
}

/// A session that runs.
struct Session {
    process: Process,
    pipes: Pipes,
    terminal: Option<Terminal>,
    detached: bool,
    /// What the pumps have to know.
    phase: watch::Sender<Phase>,
    /// Those that take output. The session's end waits for them.
    output: JoinSet<()>,
    /// Those that bring input. They end with the session.
    input: JoinSet<()>,
}

/// What happens to a session.
enum Happening {
    Arrived(Stdio, Stream),
    Asked(ExecRequest),
    /// The host is gone, or has let go of the session.
    Abandoned,
    Ended(Outcome),
}

impl Session {
    fn new(process: Process, mut pipes: Pipes, detached: bool) -> Self {
        let phase = watch::Sender::new(Phase { detached, ended: None });
        let mut output = JoinSet::new();
        let terminal = pipes.terminal.clone();
        if pipes.unwatched {
            pump::discard(&mut output, &mut pipes, &phase);
        }
        Self { process, pipes, terminal, detached, phase, output, input: JoinSet::new() }
    }

    /// Runs it to its end; gives what to tell the host, if it is still there.
    async fn run(
        mut self,
        requests: ReadHalf<Stream>,
        mut arriving: mpsc::Receiver<(Stdio, Stream)>,
    ) -> Option<ExecEvent> {
        let (asked, mut asking) = mpsc::channel(1);
        let mut listener = JoinSet::new();
        listener.spawn(listen(requests, asked));
        let mut abandoned = false;
        let outcome = loop {
            let happening = tokio::select! {
                biased;
                Some((which, stream)) = arriving.recv() => Happening::Arrived(which, stream),
                request = next(&mut asking, abandoned) => match request {
                    Some(request) => Happening::Asked(request),
                    None => Happening::Abandoned,
                },
                outcome = self.process.wait() => Happening::Ended(outcome),
            };
            match happening {
                Happening::Arrived(which, stream) => self.attach(which, stream),
                Happening::Asked(request) => self.serve(request).await,
                Happening::Abandoned => {
                    abandoned = true;
                    self.abandon();
                }
                Happening::Ended(outcome) => break outcome,
            }
        };
        self.drain(arriving, &mut asking, abandoned).await?;
        Some(match outcome {
            Outcome::Exited(code) => ExecEvent::Exited { code },
            Outcome::Signaled(signal) => ExecEvent::Signaled { signal },
        })
    }

    /// Starts the pump of a byte stream.
    fn attach(&mut self, which: Stdio, stream: Stream) {
        let phase = self.phase.subscribe();
        match which {
            Stdio::Stdin => {
                if let Some(pipe) = self.pipes.stdin.take() {
                    self.input.spawn(pump::input(stream, pipe, phase));
                    return;
                }
            }
            Stdio::Stdout => {
                if let Some(pipe) = self.pipes.stdout.take() {
                    self.output.spawn(pump::output(pipe, stream, phase));
                    return;
                }
            }
            Stdio::Stderr => {
                if let Some(pipe) = self.pipes.stderr.take() {
                    self.output.spawn(pump::output(pipe, stream, phase));
                    return;
                }
            }
            Stdio::Tty => {
                if let Some(terminal) = self.pipes.terminal.take() {
                    let (from_host, to_host) = tokio::io::split(stream);
                    self.input.spawn(pump::input(from_host, terminal.clone(), phase.clone()));
                    self.output.spawn(pump::output(terminal, to_host, phase));
                    return;
                }
            }
        }
        stream.reset("the session has no such stream");
    }

    async fn serve(&mut self, request: ExecRequest) {
        match request {
            ExecRequest::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    // A terminal without a process has nobody to tell.
                    terminal.resize(size).ok();
                }
            }
            ExecRequest::Signal(number) => self.signal(number).await,
            ExecRequest::Detach => {
                self.detached = true;
                self.phase.send_modify(|phase| phase.detached = true);
            }
        }
    }

    async fn signal(&self, number: u8) {
        if let Some(terminal) = &self.terminal
            && let Some(signal) = Signal::from_named_raw(number.into())
            && terminal.signal(signal).is_ok()
        {
            return;
        }
        // Nothing left to signal is the session's end, which is told anyway.
        self.process.signal(number).await.ok();
    }

    /// The host's stream ended.
    fn abandon(&mut self) {
        if self.detached {
            // What nobody took so far, nobody will.
            pump::discard(&mut self.output, &mut self.pipes, &self.phase);
        } else if let Err(error) = self.process.kill_tree() {
            crate::log::warn(format!("a session could not be ended: {error}"));
        }
    }

    /// Waits until the output has been taken; `None` = the host went meanwhile.
    async fn drain(
        &mut self,
        mut arriving: mpsc::Receiver<(Stdio, Stream)>,
        asking: &mut mpsc::Receiver<ExecRequest>,
        mut abandoned: bool,
    ) -> Option<()> {
        let deadline = Instant::now() + LINGER;
        self.phase.send_modify(|phase| phase.ended = Some(deadline));
        self.input.abort_all();
        loop {
            let complete = self.output.is_empty() && !self.pipes.has_output();
            if complete || (abandoned && self.output.is_empty()) {
                break;
            }
            tokio::select! {
                biased;
                Some((which, stream)) = arriving.recv() => self.attach(which, stream),
                Some(_) = self.output.join_next() => {}
                request = next(asking, abandoned) => {
                    if request.is_none() {
                        if !self.detached {
                            return None;
                        }
                        abandoned = true;
                    }
                }
                // A stream that never came is not waited for any longer.
                () = sleep_until(deadline), if self.output.is_empty() => break,
            }
        }
        (!abandoned).then_some(())
    }
}

/// The next request; `None` once when the host's stream has ended, then nothing for ever.
async fn next(asking: &mut mpsc::Receiver<ExecRequest>, abandoned: bool) -> Option<ExecRequest> {
    if abandoned { pending().await } else { asking.recv().await }
}

/// Reads requests until the stream ends or makes no sense.
async fn listen(mut requests: ReadHalf<Stream>, asked: mpsc::Sender<ExecRequest>) {
    while let Ok(request) = message::read(&mut requests, REQUEST_MAX).await {
        if asked.send(request).await.is_err() {
            return;
        }
    }
}
