//! Notices changes on the host (inotify(7)) and tells the guest what of its view is out of date.
//!
//! ```text
//!   inotify ──batch──▶ fold: one change a name ──▶ settle: what is there, against what the guest believes
//!                                                     │ differs: expire the name, drop caches, event for watchers
//!                                                     └ same: the guest did it itself, or knows it already
//! ```
//!
//! A change that the guest makes comes back as an event too. Whether its caches are out of date is found by comparing:
//! names with [`Belief`], content and listings with the change time that the guest's view was last complete at
//! ([`crate::nodes::OwnChanges`]). Whether its watchers have heard of a name is found in the marks that its own requests
//! leave ([`crate::nodes::Names`]). The directory's names are locked while a request changes them, so that nothing here
//! sees half of it; nothing is sent under that lock, because the guest's answers may need it.
//!
//! What cannot be watched (too many watches, a directory that may not be read, a remote file system) the guest may not
//! believe for any time. A file with several names is watched itself, since its directory tells only of changes through
//! the name in it. When the kernel's queue overflows, everything is out of date.

mod doubt;
mod fold;
mod reread;
mod settle;

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use self::doubt::Doubts;
use self::fold::Batch;
use self::reread::Reread;
use self::settle::Listings;
use crate::host::proc_path;
use crate::locked::locked;
use crate::nodes::{Belief, Node, Watch};
use crate::server::Server;

/// For how long the guest may believe that a name stands for nothing.
pub(crate) const ABSENT_VALID: Duration = Duration::from_secs(300);
/// Most absent names that the guest may remember, all directories together.
const ABSENT_MAX: usize = 100_000;
/// How long further events are waited for: one save of an editor is one change then.
const LINGER: Duration = Duration::from_millis(2);
/// How often old memories are looked through when nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// Names that may be listed for each file that was read.
const LISTED_PER_READ: usize = 8;
/// Bytes of events read at once.
const BUFFER: usize = 64 << 10;
/// Watches that one worker takes at most, as a share of what the user may have: editors on the host need some.
const WATCH_SHARE: usize = 2;
/// Assumed where the limit cannot be read.
const WATCHES_DEFAULT: usize = 8192;

const DIRECTORY_CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(FILE_CHANGES);
const FILE_CHANGES: WatchFlags =
    WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::ATTRIB);

/// A name that the guest may remember as absent.
#[derive(Debug)]
struct Absent {
    until: Instant,
    directory: u64,
    name: Box<CStr>,
}

/// The inotify instance and who is watched by which of its watches.
#[derive(Debug)]
pub(crate) struct Watcher {
    inotify: OwnedFd,
    /// Wakes the thread: to look at the time, or to end.
    wake: OwnedFd,
    stopped: AtomicBool,
    /// Two workspaces may hold the same directory.
    watched: Mutex<HashMap<i32, Vec<u64>>>,
    watches_max: usize,
    absent: Mutex<VecDeque<Absent>>,
    doubts: Doubts,
    reread: Reread,
}

/// Most watches that this worker may take. Read before the jail, which hides the file.
pub(crate) fn watches_max() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let limit = limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(WATCHES_DEFAULT);
    limit / WATCH_SHARE
}

impl Watcher {
    pub(crate) fn new(watches_max: usize) -> Result<Self, Errno> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopped: AtomicBool::new(false),
            watched: Mutex::new(HashMap::new()),
            watches_max,
            absent: Mutex::new(VecDeque::new()),
            doubts: Doubts::default(),
            reread: Reread::default(),
        })
    }

    /// Has a node watched, if it is not; says whether it is.
    pub(crate) fn watch(&self, node: &Node, handle: &OwnedFd) -> bool {
        let mut state = locked(&node.watch);
        match *state {
            Watch::Placed(_) => return true,
            Watch::Refused => return false,
            Watch::None => {}
        }
        // Held while the watch is placed: its first event must find the node.
        let mut watched = locked(&self.watched);
        if watched.len() >= self.watches_max {
            return false;
        }
        let flags = if node.is_directory() { DIRECTORY_CHANGES } else { FILE_CHANGES };
        let Ok(wd) = inotify::add_watch(&self.inotify, proc_path(handle), flags) else {
            *state = Watch::Refused;
            return false;
        };
        watched.entry(wd).or_default().push(node.id);
        *state = Watch::Placed(wd);
        true
    }

    /// Ends the watch of a forgotten node.
    pub(crate) fn unwatch(&self, node: &Node) {
        let Watch::Placed(wd) = std::mem::replace(&mut *locked(&node.watch), Watch::None) else {
            return;
        };
        let mut watched = locked(&self.watched);
        let Some(nodes) = watched.get_mut(&wd) else { return };
        nodes.retain(|&id| id != node.id);
        if nodes.is_empty() {
            watched.remove(&wd);
            inotify::remove_watch(&self.inotify, wd).ok();
        }
    }

    /// Writes down that the guest will remember a name as absent; says whether it may.
    pub(crate) fn remember_absent(&self, directory: u64, name: &CStr) -> bool {
        let mut absent = locked(&self.absent);
        if absent.len() >= ABSENT_MAX {
            return false;
        }
        let until = Instant::now() + ABSENT_VALID;
        absent.push_back(Absent { until, directory, name: name.into() });
        true
    }

    /// The guest wrote to a node, and its view seems to be complete.
    pub(crate) fn guest_wrote(&self, node: &Node) {
        self.doubts.guest_wrote(node.id, Instant::now());
    }

    /// The host changed something.
    pub(crate) fn host_changed(&self) {
        self.doubts.host_changed(Instant::now());
    }

    /// The guest read a file of this directory whose attributes it knew.
    pub(crate) fn was_read_in(&self, directory: u64) {
        if self.reread.add(directory, Instant::now()) {
            self.wake();
        }
    }

    /// Ends [`Watcher::run`].
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
    }

    /// Tells the guest of changes until it is stopped or the guest is gone.
    pub(crate) fn run(&self, server: &Server) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        loop {
            let Ok(wait) = self.tell_doubts(server) else { return };
            let wait = wait.min(self.suggest_listings(server));
            let timeout = Timespec {
                tv_sec: wait.as_secs().try_into().unwrap_or(0),
                tv_nsec: wait.subsec_nanos().into(),
            };
            let mut wanted =
                [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            match poll(&mut wanted, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            if !wanted[1].revents().is_empty() {
                rustix::io::read(&self.wake, &mut [0; 8]).ok();
            }
            self.forget_absent(server);
            if wanted[0].revents().is_empty() {
                continue;
            }
            std::thread::sleep(LINGER);
            let Ok(batch) = self.read(&mut buffer) else { return };
            if self.tell(server, batch).is_err() {
                return;
            }
        }
    }

    /// Tells again what may have been missed, and says how long to wait for more of that.
    fn tell_doubts(&self, server: &Server) -> io::Result<Duration> {
        let now = Instant::now();
        let (doubtful, wait) = self.doubts.due(now);
        doubtful.into_iter().try_for_each(|node| server.notifier.inval_inode(node))?;
        Ok(wait.unwrap_or(IDLE))
    }

    /// Has directories listed in which most files were read, and says how long to wait for more of that.
    fn suggest_listings(&self, server: &Server) -> Duration {
        let (due, wait) = self.reread.due(Instant::now());
        for (directory, count) in due {
            let Ok(directory) = server.nodes.find(directory) else { continue };
            // Listing thousands for the sake of a few would cost more than it saves.
            if directory.names().believed.len() <= count.saturating_mul(LISTED_PER_READ) {
                server.suggest_listing(&directory);
            }
        }
        wait.unwrap_or(IDLE)
    }

    /// Reads all that waits, at most one buffer's worth of times eight.
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> Result<Batch, Errno> {
        let mut batch = Batch::default();
        let mut events = inotify::Reader::new(&self.inotify, buffer);
        for _ in 0..8 * BUFFER / 16 {
            match events.next() {
                Ok(event) => {
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        batch.overflowed = true;
                        continue;
                    }
                    if event.events().contains(ReadFlags::IGNORED) {
                        // The directory is gone. Its nodes are told by their own parents' events.
                        locked(&self.watched).remove(&event.wd());
                        continue;
                    }
                    let nodes = locked(&self.watched).get(&event.wd()).cloned();
                    for node in nodes.unwrap_or_default() {
                        batch.add(node, event.file_name(), event.events(), event.cookie());
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    fn tell(&self, server: &Server, batch: Batch) -> io::Result<()> {
        if batch.overflowed {
            tracing::warn!("too many changes at once: the guest's whole view is out of date");
            return server.everything_changed();
        }
        let mut batch = batch.paired();
        let mut listings = Listings::new();
        for rename in std::mem::take(&mut batch.renames) {
            if server.settle_rename(&rename, &mut listings)? {
                batch.explain(&rename);
            }
        }
        for change in &batch.changes {
            server.settle(change, &mut listings)?;
        }
        server.listings_changed(&listings)
    }

    fn forget_absent(&self, server: &Server) {
        let now = Instant::now();
        loop {
            let mut absent = locked(&self.absent);
            let old = match absent.front() {
                Some(first) if first.until <= now => absent.pop_front(),
                _ => None,
            };
            drop(absent);
            let Some(old) = old else { return };
            if let Ok(directory) = server.nodes.find(old.directory) {
                let mut names = directory.names();
                if names.believed.get(&old.name) == Some(&Belief::Absent) {
                    names.believed.remove(&old.name);
                }
            }
        }
    }
}
