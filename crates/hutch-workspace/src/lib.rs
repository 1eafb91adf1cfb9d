//! Serves host directories to a guest as FUSE over a byte stream.
//!
//! ```text
//!   spawn     the keeper starts a worker: spec and stream on descriptors
//!   confine   the worker gives up everything else, before the guest's first byte
//!   serve     threads take turns at the stream ─▶ server: one method per operation ─▶ host files by descriptor
//!             one more thread: watch (inotify) ─▶ notify: what the guest believes and is out of date
//!   abi       the FUSE protocol as bytes: pure, fuzzed
//! ```
//!
//! The file-system work is our own over `rustix`, not that of a passthrough library: those hold a descriptor per open
//! file and per directory, run as root with file handles, and know nothing of what must decide here at each step – who
//! a file appears to be, what is read-only by place, what the guest believes and may go on to believe, which requests
//! only make watchers fire. What is left after that is a system call an operation.
//!
//! Invariants: no byte of the guest ever is part of a path that the host's kernel resolves, but for single names below a
//! held directory, which are not followed. Nothing but regular files and directories is ever opened. Whatever the guest
//! sends, memory, descriptors and threads are bounded, and only the guest's own workspace changes.

pub mod abi;
pub mod bulk;
mod confine;
mod count;
mod host;
mod locked;
mod nodes;
mod notify;
mod owner;
mod port;
mod serve;
mod server;
mod space;
mod spawn;
mod spec;
mod watch;

pub use confine::{ConfineError, confine};
pub use count::Counts;
pub use port::ReceiveError;
pub use serve::{Prepared, ServeError};
pub use space::OpenError;
pub use spawn::{SpawnError, Worker, spawn};
pub use spec::{FORMAT_VERSION, WorkerSpec, WorkspaceSpec};
