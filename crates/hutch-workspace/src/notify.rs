//! What the worker tells the guest by itself: caches that are out of date, and events for its watchers.
//!
//! Init says when it has dealt with them; without that, only so many are on their way. A guest that never says so holds
//! up the watcher alone: what changes meanwhile waits in the kernel's bounded queue, and when that overflows, everything
//! is told to be out of date.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hutch_wire::workspace::{CODE_EVENT, Event};

use crate::abi::Reply;
use crate::locked::locked;
use crate::port::Sender;

/// Messages on their way, told but not dealt with.
const OUTSTANDING_MAX: u64 = 8192;
/// Further events are dropped while so many messages are on their way: they cost the guest ten times as much.
const EVENTS_OUTSTANDING_MAX: u64 = 512;
/// Events a second in the long run, and how many may come at once. An event keeps an emulated guest busy for some
/// milliseconds; nobody watches thousands of files change one by one.
const EVENTS_PER_SECOND: f64 = 100.0;
const EVENTS_AT_ONCE: f64 = 400.0;

/// Sends messages that nobody asked for.
#[derive(Debug)]
pub(crate) struct Notifier {
    sender: Arc<Sender>,
    flow: Mutex<Flow>,
    room: Condvar,
}

#[derive(Debug)]
struct Flow {
    outstanding: u64,
    /// Nothing was ever dealt with: this guest does not count, the stream alone limits.
    counts: bool,
    closed: bool,
    events_left: f64,
    refilled: Instant,
}

impl Notifier {
    pub(crate) fn new(sender: Arc<Sender>) -> Self {
        let flow = Flow {
            outstanding: 0,
            counts: false,
            closed: false,
            events_left: EVENTS_AT_ONCE,
            refilled: Instant::now(),
        };
        Self { sender, flow: Mutex::new(flow), room: Condvar::new() }
    }

    /// The guest has dealt with so many.
    pub(crate) fn seen(&self, count: u32) {
        let mut flow = locked(&self.flow);
        flow.counts = true;
        flow.outstanding = flow.outstanding.saturating_sub(count.into());
        drop(flow);
        self.room.notify_all();
    }

    /// No more is sent.
    pub(crate) fn close(&self) {
        locked(&self.flow).closed = true;
        self.room.notify_all();
    }

    /// Attributes and content of this node are out of date.
    pub(crate) fn inval_inode(&self, node: u64) -> io::Result<()> {
        self.send(Reply::new().inval_inode(node, true))
    }

    /// The same for a directory or for a file in it that the guest's kernel may not know yet.
    ///
    /// Looking up and listing hold the directory's lock in the guest's kernel until the answer is taken in, and marking
    /// what is out of date does not wait for that: what an older answer brings later would stay. So a name that no
    /// directory has is dropped first, which waits for the lock.
    pub(crate) fn inval_after_answers(&self, directory: u64, node: u64) -> io::Result<()> {
        self.send(Reply::new().expire_entry(directory, b".", false))?;
        self.inval_inode(node)
    }

    /// The same beside an answer, by a thread that must not wait for the guest's count: that comes to such threads.
    pub(crate) fn inval_inode_soon(&self, node: u64) {
        locked(&self.flow).outstanding += 1;
        // Whoever sends the answer notices when the guest is gone.
        self.sender.send(Reply::new().inval_inode(node, true)).ok();
    }

    /// The same for a name.
    pub(crate) fn expire_entry_soon(&self, directory: u64, name: &[u8]) {
        locked(&self.flow).outstanding += 1;
        self.sender.send(Reply::new().expire_entry(directory, name, false)).ok();
    }

    /// The guest shall drop what it knew by this name, or only ask again what it stands for.
    pub(crate) fn expire_entry(
        &self,
        directory: u64,
        name: &[u8],
        expire_only: bool,
    ) -> io::Result<()> {
        self.send(Reply::new().expire_entry(directory, name, expire_only))
    }

    /// Says whether an event may be sent now; counts as one sent.
    pub(crate) fn has_room_for_event(&self) -> bool {
        let mut flow = locked(&self.flow);
        let now = Instant::now();
        let passed = now.duration_since(flow.refilled).as_secs_f64();
        flow.refilled = now;
        flow.events_left = EVENTS_AT_ONCE.min(flow.events_left + passed * EVENTS_PER_SECOND);
        if flow.events_left < 1.0 || flow.outstanding >= EVENTS_OUTSTANDING_MAX {
            return false;
        }
        flow.events_left -= 1.0;
        true
    }

    /// An event for watchers in the guest.
    pub(crate) fn event(&self, event: &Event) -> io::Result<()> {
        let Ok(body) = event.encode() else { return Ok(()) };
        if body.len() > hutch_wire::workspace::BODY_MAX {
            return Ok(());
        }
        self.send(Reply::new().own(CODE_EVENT, &body))
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let mut flow = locked(&self.flow);
        while flow.counts && flow.outstanding >= OUTSTANDING_MAX && !flow.closed {
            let waited = self.room.wait_timeout(flow, Duration::from_secs(60));
            flow = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if flow.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        flow.outstanding += 1;
        drop(flow);
        self.sender.send(message)
    }

    /// See [`Sender::turn`].
    pub(crate) fn turn(&self) -> u64 {
        self.sender.turn()
    }

    /// See [`Sender::next_turn`].
    pub(crate) fn next_turn(&self) {
        self.sender.next_turn();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Notifier, UnixStream) {
        let (guest, host) = UnixStream::pair().expect("a pair");
        (Notifier::new(Arc::new(Sender::new(host).expect("a descriptor"))), guest)
    }

    #[test]
    fn events_are_limited_and_invalidations_are_not() {
        let (notifier, mut guest) = pair();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            guest.read_to_end(&mut all).unwrap();
            all.len()
        });
        let allowed = (0..5000).filter(|_| notifier.has_room_for_event()).count();
        assert!((399..600).contains(&allowed), "{allowed}");
        for node in 0..5000 {
            notifier.inval_inode(node).unwrap();
        }
        assert!(!notifier.has_room_for_event());
        drop(notifier);
        assert_eq!(reader.join().unwrap(), 5000 * 40);
    }

    #[test]
    fn a_guest_that_counts_is_waited_for_until_the_end() {
        let (notifier, mut guest) = pair();
        notifier.seen(0);
        std::thread::scope(|scope| {
            scope.spawn(move || io::copy(&mut guest, &mut io::sink()));
            for node in 0..OUTSTANDING_MAX {
                notifier.inval_inode(node).unwrap();
            }
            let waiting = scope.spawn(|| notifier.inval_inode(1));
            notifier.seen(1);
            waiting.join().unwrap().unwrap();
            assert_eq!(locked(&notifier.flow).outstanding, OUTSTANDING_MAX);
            let waiting = scope.spawn(|| notifier.inval_inode(1));
            notifier.close();
            assert!(waiting.join().unwrap().is_err());
            notifier.sender.close();
        });
    }
}
