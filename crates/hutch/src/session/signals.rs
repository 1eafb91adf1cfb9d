//! Signals that reach us during a session, and the Docker CLI's way of saying the same.

use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::plugin;

/// Docker closes its socket and the terminal sends its signal at the same time: the signal is the better message.
const DOCKER_AFTER_SIGNAL: Duration = Duration::from_millis(100);
/// Linux number of `SIGTERM`.
const TERM: u8 = 15;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Something that would end us: its Linux number.
    Terminate(u8),
    /// Something for the session alone: its Linux number.
    Pass(u8),
    /// The terminal has another size.
    Resized,
    /// We were stopped and go on.
    Continued,
}

/// Waits for all of them.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    user_1: Signal,
    user_2: Signal,
    window: Signal,
    resume: Signal,
    docker: Pin<Box<dyn Future<Output = ()>>>,
    docker_ended: bool,
    terminated: bool,
}

impl Signals {
    /// From now on these signals are events.
    pub(super) fn new(plugin_socket: Option<OsString>) -> io::Result<Self> {
        // Not among the named kinds of tokio.
        let resume = SignalKind::from_raw(rustix::process::Signal::CONT.as_raw());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
            resume: signal(resume)?,
            docker: Box::pin(async move {
                plugin::wait_for_end(plugin_socket.as_deref()).await;
                tokio::time::sleep(DOCKER_AFTER_SIGNAL).await;
            }),
            docker_ended: false,
            terminated: false,
        })
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let event = tokio::select! {
            Some(()) = self.interrupt.recv() => Event::Terminate(2),
            Some(()) = self.terminate.recv() => Event::Terminate(TERM),
            Some(()) = self.hangup.recv() => Event::Terminate(1),
            Some(()) = self.quit.recv() => Event::Terminate(3),
            Some(()) = self.user_1.recv() => Event::Pass(10),
            Some(()) = self.user_2.recv() => Event::Pass(12),
            Some(()) = self.window.recv() => Event::Resized,
            Some(()) = self.resume.recv() => Event::Continued,
            () = &mut self.docker, if !self.docker_ended && !self.terminated => {
                self.docker_ended = true;
                Event::Terminate(TERM)
            }
        };
        self.terminated |= matches!(event, Event::Terminate(_));
        event
    }
}
