//! The sandbox's container: everything that is not init runs in it.
//!
//! ```text
//!   init (PID 1 of the VM)                       the container (own pid, mount, uts, ipc and cgroup namespaces)
//!   ┌───────────────────────┐  SOCK_SEQPACKET   ┌──────────────────────────────────────────┐
//!   │ session ─▶ Container  │ ◀───────────────▶ │ supervisor: PID 1 there, one thread      │
//!   │            (client)   │  messages + fds   │   starts sessions, reaps everything      │
//!   └───────────────────────┘                   │   └─ session leader, own cgroup          │
//!                                               └──────────────────────────────────────────┘
//! ```
//!
//! Init starts itself again as `hutch-init container` ([`main`]), which enters its namespaces, forks the supervisor and
//! ends. The supervisor has one thread, so forking sessions from it is safe. Byte streams are pipes that init makes, or
//! the terminal's master side, and cross the socket as descriptors. Invariants: a session is in its own cgroup from
//! before its first instruction, so that [`Process::kill_tree`] misses nothing; the supervisor ends when init's end of
//! the socket is gone, and the kernel then ends everything in the container.

mod capabilities;
mod cgroup;
mod child;
mod client;
mod isolate;
mod protocol;
mod supervisor;
mod users;

use std::path::PathBuf;

use hutch_wire::guest::{Bytes, ExecFailure};
use thiserror::Error;

pub use client::{Container, Prepared, Process, StdioFds};

/// First argument of the program that makes it the container's supervisor.
pub const ARGUMENT: &str = "container";

/// What the container is made from. The root is complete: mounted, with the workspaces in it.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The directory that becomes `/`; must be a mount point.
    pub root: PathBuf,
    /// Host name in the container.
    pub hostname: String,
    /// Where cgroup v2 is mounted for init (`/sys/fs/cgroup` in the guest).
    pub cgroup_root: PathBuf,
    /// Environment of every session, before the session's own.
    pub environment: Vec<(Bytes, Bytes)>,
    /// The user of sessions that name none.
    pub user: String,
    /// Working directory of sessions that name none; `None` = the user's home.
    pub directory: Option<Bytes>,
}

/// Why the container could not be started.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// The cgroup could not be made.
    #[error("cannot prepare the cgroup {}", path.display())]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The program could not be started.
    #[error("cannot start the container's supervisor")]
    Launch(#[source] std::io::Error),
    /// The supervisor said what it could not do, and ended.
    #[error("the container's supervisor failed: {0}")]
    Supervisor(String),
    /// The supervisor ended without a word.
    #[error("the container's supervisor ended before it was ready")]
    Ended,
}

/// Why a session's process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct SpawnError {
    /// Decides the exit status.
    pub kind: ExecFailure,
    /// One sentence.
    pub message: String,
}

/// How a session's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// By itself.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// Runs as the container's launcher and supervisor, when the program was started with [`ARGUMENT`].
///
/// Descriptor 3 is the socket to init; the arguments after [`ARGUMENT`] are root, host name and cgroup.
pub fn main(arguments: &[std::ffi::OsString]) -> std::process::ExitCode {
    supervisor::main(arguments)
}
