//! The control stream to init: requests one way, one reply each the other way, and a ping now and then.
//!
//! A guest that says more than it was asked, or something that is no reply, ends the stream.

use std::time::Duration;

use hutch_wire::guest::{AttachSpec, ControlReply, ControlRequest};
use hutch_wire::{Stream, message};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::attach::realtime_ns;
use crate::log::guest_text;

/// How often init is asked whether it is alive; each time also sets the guest's clock.
const PING_EVERY: Duration = Duration::from_secs(30);

/// No reply is longer.
const REPLY_MAX: u32 = 8 * 1024;

/// A hold on the control stream.
#[derive(Debug)]
pub(crate) struct Control {
    power_off: Option<oneshot::Sender<oneshot::Sender<Result<(), String>>>>,
    unanswered: watch::Receiver<u32>,
    failed: oneshot::Receiver<String>,
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

impl Control {
    /// Takes the stream of a guest that is attached.
    pub(crate) fn start(stream: Stream) -> Self {
        let (power_off, asked) = oneshot::channel();
        let (unanswered, watched) = watch::channel(0);
        let (fail, failed) = oneshot::channel();
        tokio::spawn(async move {
            let Err(reason) = converse(stream, asked, &unanswered).await else { return };
            // Nobody listens once the driver is on its way down.
            let _unheard = fail.send(reason);
        });
        Self { power_off: Some(power_off), unanswered: watched, failed }
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
        let ended = || "the guest's control stream has ended".to_owned();
        let (reply, replied) = oneshot::channel();
        let asked = self.power_off.take().ok_or_else(ended)?;
        asked.send(reply).map_err(|_| ended())?;
        replied.await.map_err(|_| ended())?
    }
}

/// Pings until asked to power off.
async fn converse(
    stream: Stream,
    mut asked: oneshot::Receiver<oneshot::Sender<Result<(), String>>>,
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
    let mut pinged = false;
    let answer = loop {
        tokio::select! {
            answer = &mut asked => match answer {
                Ok(answer) => break answer,
                // The driver has ended.
                Err(_) => return Ok(()),
            },
            _ = ticks.tick() => {
                if pinged {
                    unanswered.send_modify(|count| *count = count.saturating_add(1));
                    continue;
                }
                let ping = ControlRequest::Ping { realtime_ns: realtime_ns() };
                message::write(&mut writer, &ping).await.map_err(|error| describe(&error))?;
                pinged = true;
            }
            reply = replies.recv() => match reply {
                Some(Ok(ControlReply::Pong)) if pinged => {
                    pinged = false;
                    unanswered.send_if_modified(|count| std::mem::take(count) != 0);
                }
                Some(Ok(ControlReply::Failed { reason })) if pinged => {
                    tracing::warn!(reason = guest_text(&reason), "a ping failed");
                    pinged = false;
                }
                Some(Ok(_)) => return Err("the guest replied without being asked".to_owned()),
                Some(Err(reason)) => return Err(reason),
                None => return Err("the guest's control stream ended".to_owned()),
            },
        }
    };

    let told = power_off(&mut writer, &mut replies, pinged).await;
    let _unheard = answer.send(told);
    // The stream stays open until the power goes: its end would only be another failure to tell.
    while let Some(Ok(_)) = replies.recv().await {}
    Ok(())
}

async fn power_off(
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    replies: &mut mpsc::Receiver<Result<ControlReply, String>>,
    mut pinged: bool,
) -> Result<(), String> {
    message::write(writer, &ControlRequest::PowerOff).await.map_err(|error| describe(&error))?;
    loop {
        match replies.recv().await {
            Some(Ok(ControlReply::PoweringOff)) => return Ok(()),
            Some(Ok(ControlReply::Pong)) if pinged => pinged = false,
            Some(Ok(ControlReply::Failed { reason })) => return Err(guest_text(&reason)),
            Some(Ok(_)) => return Err("the guest replied something else than was asked".to_owned()),
            Some(Err(reason)) => return Err(reason),
            None => return Err("the guest's control stream ended".to_owned()),
        }
    }
}
