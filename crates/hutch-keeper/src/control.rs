//! The control stream to init: requests one way, one reply each the other way, and a ping now and then.
//!
//! Replies come in the order of the requests; several may be on their way. A guest that says more than it was asked, or
//! something that is no reply, ends the stream.

use std::collections::VecDeque;
use std::time::Duration;

use hutch_wire::guest::{AttachSpec, Bytes, ControlReply, ControlRequest};
use hutch_wire::{Stream, message};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::attach::realtime_ns;
use crate::log::guest_text;

/// How often init is asked whether it is alive; each time also sets the guest's clock.
const PING_EVERY: Duration = Duration::from_secs(30);

/// No reply is longer.
const REPLY_MAX: u32 = 8 * 1024;

/// Requests that wait to be sent; each of those who ask waits for its reply.
const ASKED_AHEAD: usize = 4;

/// A hold on the control stream.
#[derive(Debug)]
pub(crate) struct Control {
    asker: Asker,
    unanswered: watch::Receiver<u32>,
    failed: oneshot::Receiver<String>,
}

/// Asks init for something; clones ask over the same stream.
#[derive(Debug, Clone)]
pub(crate) struct Asker(mpsc::Sender<Ask>);

/// A request and who waits for its reply.
#[derive(Debug)]
struct Ask {
    request: ControlRequest,
    done: oneshot::Sender<Result<(), String>>,
}

/// A reply that is still to come.
enum Expected {
    Pong,
    Trusted(oneshot::Sender<Result<(), String>>),
    PoweringOff(oneshot::Sender<Result<(), String>>),
}

/// What happens without being asked for.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// So many pings in a row were not answered, 0 when one was.
    Unanswered(u32),
    /// The stream has failed for this reason.
    Failed(String),
}

/// Asks init to make the VM this sandbox, and waits for it.
pub(crate) async fn attach(stream: &mut Stream, spec: AttachSpec) -> Result<(), String> {
    message::write(stream, &ControlRequest::Attach(Box::new(spec)))
        .await
        .map_err(|error| describe(&error))?;
    match message::read(stream, REPLY_MAX).await.map_err(|error| describe(&error))? {
        ControlReply::Attached => Ok(()),
        ControlReply::Failed { reason } => {
            Err(format!("the guest could not be set up: {}", guest_text(&reason)))
        }
        _ => Err("the guest answered something else than was asked".to_owned()),
    }
}

fn describe(error: &message::MessageError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("the guest's control stream: {error}: {source}"),
        None => format!("the guest's control stream: {error}"),
    }
}

impl Asker {
    /// Has every tool in the guest trust these certificates, in place of those before, and gives these variables to
    /// sessions that begin later.
    pub(crate) async fn trust(
        &self,
        ca_pem: String,
        environment: Vec<(Bytes, Bytes)>,
    ) -> Result<(), String> {
        self.ask(ControlRequest::Trust { ca_pem, environment }).await
    }

    async fn ask(&self, request: ControlRequest) -> Result<(), String> {
        let ended = || "the guest's control stream has ended".to_owned();
        let (done, replied) = oneshot::channel();
        self.0.send(Ask { request, done }).await.map_err(|_| ended())?;
        replied.await.map_err(|_| ended())?
    }
}

impl Control {
    /// Takes the stream of a guest that is attached.
    pub(crate) fn start(stream: Stream) -> Self {
        let (asker, asked) = mpsc::channel(ASKED_AHEAD);
        let (unanswered, watched) = watch::channel(0);
        let (fail, failed) = oneshot::channel();
        tokio::spawn(async move {
            let Err(reason) = converse(stream, asked, &unanswered).await else { return };
            // Nobody listens once the driver is on its way down.
            let _unheard = fail.send(reason);
        });
        Self { asker: Asker(asker), unanswered: watched, failed }
    }

    /// Asks over this stream.
    pub(crate) fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// The next thing that happens.
    pub(crate) async fn event(&mut self) -> ControlEvent {
        tokio::select! {
            reason = &mut self.failed => ControlEvent::Failed(
                reason.unwrap_or_else(|_| "the guest's control stream ended".to_owned()),
            ),
            Ok(()) = self.unanswered.changed() => {
                ControlEvent::Unanswered(*self.unanswered.borrow_and_update())
            }
        }
    }

    /// Asks init to power off; resolves when it says that everything is synced and unmounted.
    pub(crate) async fn power_off(&mut self) -> Result<(), String> {
        self.asker.ask(ControlRequest::PowerOff).await
    }
}

/// Pings and asks until power-off was asked for, then waits for the end.
async fn converse(
    stream: Stream,
    mut asked: mpsc::Receiver<Ask>,
    unanswered: &watch::Sender<u32>,
) -> Result<(), String> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Reading a message must not be given up in its middle, so it has a task of its own.
    let (reply_in, mut replies) = mpsc::channel::<Result<ControlReply, String>>(1);
    tokio::spawn(async move {
        loop {
            let reply =
                message::read(&mut reader, REPLY_MAX).await.map_err(|error| describe(&error));
            let last = reply.is_err();
            if reply_in.send(reply).await.is_err() || last {
                return;
            }
        }
    });

    let mut ticks = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut expected = VecDeque::new();
    let mut off = false;
    loop {
        tokio::select! {
            ask = asked.recv(), if !off => {
                // The driver has ended.
                let Some(Ask { request, done }) = ask else { return Ok(()) };
                message::write(&mut writer, &request).await.map_err(|error| describe(&error))?;
                off = matches!(request, ControlRequest::PowerOff);
                expected.push_back(if off {
                    Expected::PoweringOff(done)
                } else {
                    Expected::Trusted(done)
                });
            }
            _ = ticks.tick(), if !off => {
                if expected.iter().any(|reply| matches!(reply, Expected::Pong)) {
                    unanswered.send_modify(|count| *count = count.saturating_add(1));
                    continue;
                }
                let ping = ControlRequest::Ping { realtime_ns: realtime_ns() };
                message::write(&mut writer, &ping).await.map_err(|error| describe(&error))?;
                expected.push_back(Expected::Pong);
            }
            reply = replies.recv() => {
                let reply = reply
                    .unwrap_or_else(|| Err("the guest's control stream ended".to_owned()))?;
                if take(reply, expected.pop_front(), unanswered)? {
                    break;
                }
            }
        }
    }
    // The stream stays open until the power goes: its end would only be another failure to tell.
    while let Some(Ok(_)) = replies.recv().await {}
    Ok(())
}

/// Passes a reply on. Says whether it was the one to power-off, after which nothing more is asked.
fn take(
    reply: ControlReply,
    expected: Option<Expected>,
    unanswered: &watch::Sender<u32>,
) -> Result<bool, String> {
    let other = || "the guest replied something else than was asked".to_owned();
    let Some(expected) = expected else {
        return Err("the guest replied without being asked".to_owned());
    };
    let failed = match reply {
        ControlReply::Failed { reason } => Some(guest_text(&reason)),
        ControlReply::Pong if matches!(expected, Expected::Pong) => None,
        ControlReply::Trusted if matches!(expected, Expected::Trusted(_)) => None,
        ControlReply::PoweringOff if matches!(expected, Expected::PoweringOff(_)) => None,
        _ => return Err(other()),
    };
    match expected {
        Expected::Pong => match failed {
            Some(reason) => tracing::warn!(reason, "a ping failed"),
            None => {
                unanswered.send_if_modified(|count| std::mem::take(count) != 0);
            }
        },
        Expected::Trusted(done) => {
            // Whoever asked may have given up.
            let _unheard = done.send(failed.map_or(Ok(()), Err));
        }
        Expected::PoweringOff(done) => {
            let _unheard = done.send(failed.map_or(Ok(()), Err));
            return Ok(true);
        }
    }
    Ok(false)
}
