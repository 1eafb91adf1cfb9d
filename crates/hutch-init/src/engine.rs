//! The sandbox's Docker engine: its socket is there from the start, the engine itself from the first connection on.
//!
//! ```text
//!   client ── /run/docker.sock ──▶ listening socket, made by the container's supervisor
//!                                    │ nothing runs: init sees that someone waits, and starts
//!                                    ▼
//!                    session of root: launch ── containerd
//!                                       └─ becomes dockerd, with the socket as descriptor 3
//!                                             └─ containers ── runc = containers, which adds proxy and certificates
//! ```
//!
//! A waiting client just waits. An engine that ended is started again by the next connection; who waited for one that
//! could not be started is told why, as the engine itself would tell it. Everything here runs in the sandbox, so
//! nothing of it is trusted: a sandbox whose engine misbehaves harms itself alone.

mod containers;
mod launch;
mod refusal;
mod settings;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hutch_wire::guest::{Bytes, EngineStart, ExecSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::container::{Container, Outcome, StdioFds};
use crate::log;
use crate::root::Root;

/// Where clients look for the engine. `/var/run` is `/run` in every distribution.
pub(crate) const SOCKET: &str = "/run/docker.sock";
/// Who may use it, beside the sandbox's user.
pub(crate) const GROUP: &str = "docker";
/// Init's own program in the sandbox.
pub(crate) const PROGRAM: &str = "/run/hutch/init";
/// Programs that the engine is to find before the distribution's.
pub(crate) const PROGRAMS: &str = "/run/hutch/bin";
/// The program that the engine starts for each step of a container's life.
pub(crate) const RUNTIME: &str = "runc";
/// First argument of the program that makes it the engine.
pub(crate) const ARGUMENT: &str = "engine";
/// What the engine says, from its start on.
const LOG: &str = "/var/log/docker.log";
/// Most that the launcher says of why there is no engine.
const REASON_MAX: u64 = 4096;
/// Who waits for an engine that ran longer than this is not the reason for its end, and gets another one.
const SETTLED: Duration = Duration::from_secs(60);

/// Serves the socket; ends with this value.
#[derive(Debug)]
pub(crate) struct Engine(AbortHandle);

impl Engine {
    /// Waits for the first connection, or starts at once.
    pub(crate) fn serve(
        container: Container,
        socket: OwnedFd,
        root: Arc<Root>,
        start: EngineStart,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Of the runtime's types this one tells readiness without taking the connection.
        let waiting = UnixStream::from_std(socket.try_clone()?.into())?;
        let server = Server { container, socket, waiting, root };
        Ok(Self(tokio::spawn(server.run(start)).abort_handle()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why nobody serves the socket any more.
#[derive(Debug)]
struct End {
    /// One sentence for those who wait.
    reason: String,
    /// Someone ended it, as opposed to it giving up.
    wanted: bool,
    lived: Duration,
}

struct Server {
    container: Container,
    socket: OwnedFd,
    /// The same socket, for waiting.
    waiting: UnixStream,
    root: Arc<Root>,
}

impl Server {
    async fn run(self, start: EngineStart) {
        let mut wait = start == EngineStart::FirstConnection;
        let mut failed_before = false;
        loop {
            if wait && self.connection().await.is_err() {
                return log::warn("the Docker socket is not served: it cannot be waited for");
            }
            wait = true;
            match self.engine().await {
                Ok(end) => {
                    log::info(end.reason.as_str());
                    let settled = end.lived >= SETTLED;
                    if !settled && (failed_before || !end.wanted) {
                        refusal::refuse_waiting(&self.socket, &end.reason).await;
                    }
                    failed_before = !settled;
                }
                Err(error) => {
                    log::warn(format!("no Docker engine: {error}"));
                    let reason = format!("the sandbox's Docker engine cannot be started: {error}");
                    refusal::refuse_waiting(&self.socket, &reason).await;
                }
            }
        }
    }

    /// Waits until someone waits for the engine.
    async fn connection(&self) -> io::Result<()> {
        // Looked at again: the note that there is one may be of a connection that an engine took since.
        let look = || {
            if is_readable(&self.socket)? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        };
        self.waiting.async_io(Interest::READABLE, look).await
    }

    /// Runs an engine to its end.
    async fn engine(&self) -> io::Result<End> {
        let socket = self.socket.try_clone()?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let stdio = StdioFds { stdin: Some(socket), stdout: Some(writer), stderr: None };
        let started = Instant::now();
        let mut process = self
            .container
            .spawn(session(), stdio)
            .await
            .map_err(|error| io::Error::other(error.message))?;
        log::info("Docker engine starts");
        let mut said = Vec::new();
        // Ends when the launcher has become the engine, or has said why it cannot.
        pipe::Receiver::from_owned_fd(reader)?.take(REASON_MAX).read_to_end(&mut said).await?;
        let outcome = process.wait().await;
        // What it started must not stand in the way of the next one.
        process.kill_tree().ok();
        let reason = if said.is_empty() {
            self.explain(outcome)
        } else {
            String::from_utf8_lossy(&said).trim().to_owned()
        };
        let wanted = said.is_empty() && !matches!(outcome, Outcome::Exited(1..));
        Ok(End { reason, wanted, lived: started.elapsed() })
    }

    fn explain(&self, outcome: Outcome) -> String {
        let how = match outcome {
            Outcome::Exited(code) => format!("with status {code}"),
            Outcome::Signaled(signal) => format!("by signal {signal}"),
        };
        let last = refusal::last_words(&self.root, LOG.as_ref());
        let last = last.map(|line| format!(" and said: {line}")).unwrap_or_default();
        format!("the sandbox's Docker engine ended {how}{last} (its log is {LOG} in the sandbox)")
    }
}

fn session() -> ExecSpec {
    let word = |word: &str| Bytes::from(word.as_bytes());
    ExecSpec {
        argv: vec![word(PROGRAM), word(ARGUMENT)],
        environment: Vec::new(),
        directory: Some(word("/")),
        user: Some("root".to_owned()),
        tty: None,
        stdin: true,
        privileged: true,
        detached: true,
        seeds: Vec::new(),
    }
}

fn is_readable(socket: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

/// Runs as the engine's launcher, or as the program that starts containers, when the program was started as one of them.
///
/// `None` when it was not.
pub fn main(name: &std::path::Path, arguments: &[OsString]) -> Option<ExitCode> {
    if name.file_name().is_some_and(|name| name == RUNTIME) {
        return Some(containers::main(arguments));
    }
    match arguments {
        [first] if first == ARGUMENT => Some(launch::main()),
        _ => None,
    }
}
