//! A whole keeper in this process: a real socket, a real channel, a VM that is a task.

#![expect(clippy::unwrap_used, clippy::panic, reason = "all of this is a test, its helpers too")]

mod fake;
mod fake_proxy;
mod hostile;
mod life;
mod network;
mod sessions;
mod setup;
