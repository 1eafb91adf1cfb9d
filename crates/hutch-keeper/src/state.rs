//! What the driver publishes, and what counts as activity.

use std::sync::Arc;

use hutch_api::{API_VERSION, Phase, Status};
use hutch_vmm::Accelerator;
use hutch_wire::Connection;
use tokio::sync::watch;

use crate::network::Network;

/// Where in its life the sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The VM starts.
    Booting,
    /// Sessions can start.
    Ready,
    /// On its way down.
    Stopping,
    /// Everything has ended as it should.
    Gone,
    /// Everything has ended, for this reason.
    Failed(String),
}

/// All that others may know; only the driver changes it.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) stage: Stage,
    pub(crate) accelerator: Accelerator,
    pub(crate) vmm_pid: Option<u32>,
    pub(crate) workspace_pid: Option<u32>,
    pub(crate) proxy_pid: Option<u32>,
    pub(crate) resumed: bool,
    pub(crate) ready_ms: Option<u64>,
    pub(crate) unanswered_pings: u32,
    /// The channel to the guest while sessions can start.
    pub(crate) guest: Option<Connection>,
    /// Answers about the network, as long as `guest`; none where the sandbox has no network.
    pub(crate) network: Option<Network>,
}

impl State {
    pub(crate) fn new(accelerator: Accelerator) -> (watch::Sender<Self>, watch::Receiver<Self>) {
        watch::channel(Self {
            stage: Stage::Booting,
            accelerator,
            vmm_pid: None,
            workspace_pid: None,
            proxy_pid: None,
            resumed: false,
            ready_ms: None,
            unanswered_pings: 0,
            guest: None,
            network: None,
        })
    }

    /// As clients see it.
    pub(crate) fn status(&self, sessions: &Sessions) -> Status {
        Status {
            api_version: API_VERSION,
            phase: match &self.stage {
                Stage::Booting => Phase::Booting,
                Stage::Ready => Phase::Ready,
                Stage::Stopping | Stage::Gone => Phase::Stopping,
                Stage::Failed(reason) => Phase::Failed { reason: reason.clone() },
            },
            sessions: u32::try_from(sessions.count()).unwrap_or(u32::MAX),
            accelerator: match self.accelerator {
                Accelerator::Kvm => "kvm".to_owned(),
                Accelerator::Tcg => "tcg".to_owned(),
            },
            keeper_pid: std::process::id(),
            vmm_pid: self.vmm_pid,
            workspace_pid: self.workspace_pid,
            proxy_pid: self.proxy_pid,
            resumed: self.resumed,
            ready_ms: self.ready_ms,
            unanswered_pings: self.unanswered_pings,
        }
    }
}

/// Sessions open at once, detached ones included: each costs a few buffers and processes.
pub(crate) const SESSIONS_MAX: usize = 1000;

/// Counts the sessions that run; clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    count: Arc<watch::Sender<usize>>,
}

/// One session; dropping it says that it has ended.
#[derive(Debug)]
pub(crate) struct Session {
    count: Arc<watch::Sender<usize>>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self { count: Arc::new(watch::Sender::new(0)) }
    }

    /// Counts one more, unless there are too many.
    pub(crate) fn begin(&self) -> Option<Session> {
        let counted = self.count.send_if_modified(|count| {
            let fits = *count < SESSIONS_MAX;
            *count += usize::from(fits);
            fits
        });
        counted.then(|| Session { count: Arc::clone(&self.count) })
    }

    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Resolves when there has been no session for so long.
    pub(crate) async fn idle_for(&self, timeout: std::time::Duration) {
        let mut count = self.count.subscribe();
        loop {
            // The sender lives as long as `self`, so neither wait can fail.
            let _idle = count.wait_for(|count| *count == 0).await.is_ok();
            tokio::select! {
                () = tokio::time::sleep(timeout) => return,
                _ = count.changed() => {}
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idleness_is_counted_from_the_end_of_the_last_session() {
        const LIMIT: Duration = Duration::from_secs(1800);
        let sessions = Sessions::new();
        let first = sessions.begin().unwrap();
        let second = sessions.begin().unwrap();
        let started = Instant::now();
        let idle = tokio::spawn({
            let sessions = sessions.clone();
            async move { sessions.idle_for(LIMIT).await }
        });
        tokio::task::yield_now().await;
        advance(2 * LIMIT).await;
        drop(first);
        advance(2 * LIMIT).await;
        assert!(!idle.is_finished());
        drop(second);
        tokio::task::yield_now().await;
        advance(LIMIT / 2).await;
        // A short session in between starts the count anew.
        drop(sessions.begin());
        idle.await.unwrap();
        let waited = started.elapsed();
        assert!(waited >= 5 * LIMIT + LIMIT / 2, "{waited:?}");
        assert!(waited < 5 * LIMIT + LIMIT / 2 + Duration::from_secs(1), "{waited:?}");
    }

    #[test]
    fn there_is_a_limit_of_sessions() {
        let sessions = Sessions::new();
        let mut all: Vec<_> = (0..SESSIONS_MAX).map(|_| sessions.begin().unwrap()).collect();
        assert!(sessions.begin().is_none());
        assert_eq!(sessions.count(), SESSIONS_MAX);
        all.pop();
        assert!(sessions.begin().is_some());
    }
}
