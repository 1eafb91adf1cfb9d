//! Collects every process that ends: orphans, which the kernel gives to PID 1, and our own children.
//!
//! Only this module waits. Whoever starts a process does it inside [`spawn`], so that its exit status cannot be taken
//! before anyone asked for it; all other processes are orphans and are forgotten.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::log;

static WAITED_FOR: LazyLock<Mutex<Children>> = LazyLock::new(Mutex::default);

type Children = HashMap<i32, oneshot::Sender<WaitStatus>>;

/// A process that was started in [`spawn`].
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    ended: oneshot::Receiver<WaitStatus>,
}

impl Child {
    /// Its number in the initial namespace. Valid until [`Child::wait`] has given a status.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end. May be cancelled and called again; `None` = it was waited for already.
    pub async fn wait(&mut self) -> Option<WaitStatus> {
        (&mut self.ended).await.ok()
    }
}

/// Runs `start`, which gives the number of a new child process of ours, and registers the child for waiting.
///
/// Nothing is reaped meanwhile: `start` must not wait for another child.
pub fn spawn<E>(start: impl FnOnce() -> Result<Pid, E>) -> Result<Child, E> {
    let mut children = WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = start()?;
    let (tell, ended) = oneshot::channel();
    children.insert(pid.as_raw_pid(), tell);
    Ok(Child { pid, ended })
}

/// Reaps for ever. Runs as a task from before the first child is started.
pub(crate) async fn run() {
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => return log::warn(format!("no child will be reaped: {error}")),
    };
    loop {
        reap();
        if ended.recv().await.is_none() {
            return;
        }
    }
}

/// Takes every process that has ended by now.
fn reap() {
    let mut children = WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if let Some(tell) = children.remove(&pid.as_raw_pid()) {
            // Nobody is waiting any more: fine.
            tell.send(status).ok();
        }
    }
}
