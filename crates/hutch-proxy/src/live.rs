//! The connections there are, each with what it was admitted as, so that a changed policy can cut them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hutch_policy::host::Authority;

/// Connections and requests of a sandbox at a time.
pub(crate) const MOST: usize = 8192;

/// What a connection or request was admitted as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Where it goes.
    pub(crate) place: Authority,
    /// Other names for the place that the connection named and that were judged too.
    pub(crate) also: Option<Authority>,
    /// The address that it is connected to, if that was judged.
    pub(crate) address: Option<IpAddr>,
    /// It is passed on unread because a rule says so.
    pub(crate) bypassed: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Live {
    entries: Mutex<HashMap<u64, (Admitted, Arc<Cut>)>>,
    next: AtomicU64,
}

/// Whether and when a connection is cut.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    done: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Cut {
    /// Ready once the connection is cut.
    pub(crate) fn poll_cut(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.done.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            // Tasks move from one poller to the next: the last few are those that matter.
            if wakers.len() >= 4 {
                wakers.remove(0).wake();
            }
            wakers.push(context.waker().clone());
        }
        drop(wakers);
        // Again: it may have happened before our waker was there.
        if self.done.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the connection is cut.
    pub(crate) async fn cut(&self) {
        poll_fn(|context| self.poll_cut(context)).await;
    }

    fn now(&self) {
        self.done.store(true, Ordering::Release);
        let wakers =
            std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Keeps a connection among the live ones.
#[derive(Debug)]
pub(crate) struct Guard {
    live: Arc<Live>,
    number: u64,
    pub(crate) cut: Arc<Cut>,
}

impl Live {
    /// Adds a connection, unless there are too many. Judge it again afterwards: the policy may have changed in between.
    pub(crate) fn add(self: &Arc<Self>, admitted: Admitted) -> Option<Guard> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = Arc::new(Cut::default());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MOST {
            return None;
        }
        entries.insert(number, (admitted, Arc::clone(&cut)));
        Some(Guard { live: Arc::clone(self), number, cut })
    }

    /// Cuts those that do not pass and says how many.
    pub(crate) fn judge(&self, passes: impl Fn(&Admitted) -> bool) -> u32 {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (admitted, cut) in entries.values() {
            if !cut.done.load(Ordering::Acquire) && !passes(admitted) {
                cut.now();
                count += 1;
            }
        }
        count
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut entries = self.live.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted() -> Admitted {
        let place = Authority::parse("a.test:443").unwrap();
        Admitted { place, also: None, address: None, bypassed: false }
    }

    #[test]
    fn there_are_only_so_many_at_a_time() {
        let live = Arc::new(Live::default());
        let mut guards: Vec<Guard> = std::iter::from_fn(|| live.add(admitted())).collect();
        assert_eq!(guards.len(), MOST);
        guards.pop();
        assert!(live.add(admitted()).is_some());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_cut() {
        let live = Arc::new(Live::default());
        let guard = live.add(admitted()).unwrap();
        let cut = Arc::clone(&guard.cut);
        let waiting = tokio::spawn(async move { cut.cut().await });
        tokio::task::yield_now().await;
        assert_eq!(live.judge(|_| true), 0);
        assert!(!waiting.is_finished());
        assert_eq!(live.judge(|_| false), 1);
        waiting.await.unwrap();
        // Once is enough, and one that is gone is not counted.
        assert_eq!(live.judge(|_| false), 0);
        drop(guard);
        assert!(live.entries.lock().unwrap().is_empty());
    }
}
