//! Everything of the host that the guest knows by a number, and the names that it believes in.
//!
//! A node is one file of one workspace. Its `O_PATH` descriptor is opened when the guest first sees it; when descriptors
//! run short, those used longest ago are closed and later opened again by name below the parent's descriptor, checked to
//! be the same file ([`Key`]); if it is not, the request fails with `ESTALE` and the guest's kernel looks again. So a
//! guest that looks up millions of files costs memory up to [`NODES_MAX`] and no more descriptors than we may have.
//!
//! A directory remembers which names the guest believes in: the watcher compares that with what is there. Locks are
//! taken in this order: a directory's names (two: the lower node first), then the table, then a node's own small locks.

mod descriptors;

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use self::descriptors::Descriptors;
use crate::abi::{Name, ROOT};
use crate::host::{Handle, Key, hold_raw, status};
use crate::locked::locked;

/// Most nodes that one guest may hold; further lookups fail with `ENFILE` until it forgets some.
pub(crate) const NODES_MAX: usize = 1 << 20;
/// Most names that one node is known by at once; a file with more hard links loses the oldest.
const PLACES_MAX: usize = 16;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: u64,
    pub(crate) name: Box<CStr>,
}

/// What the guest believes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belief {
    /// It stands for this node.
    Node(u64),
    /// Nothing has this name.
    Absent,
}

/// Whether changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nobody asked yet.
    None,
    /// By this descriptor of the watcher.
    Placed(i32),
    /// It could not be watched: the guest must ask each time.
    Refused,
}

/// A directory's names as the guest knows them.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) believed: HashMap<Box<CStr>, Belief>,
    /// Names that the guest itself made and removed and whose events have not come back yet.
    own: Vec<(Mark, Box<CStr>)>,
    /// How many names were asked for and found.
    pub(crate) asked: u32,
}

/// What the guest did to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It got something new.
    Made,
    /// It went.
    Removed,
}

/// Marks of one directory at once; more than that many events are never behind.
const MARKS_MAX: usize = 4096;

impl Names {
    /// Leaves a mark before the guest's change is made.
    pub(crate) fn mark(&mut self, mark: Mark, name: Name<'_>) {
        if self.own.len() >= MARKS_MAX {
            self.own.clear();
        }
        self.own.push((mark, name.as_c_str().into()));
    }

    /// Takes a mark away again: the change was not made, or its event is here.
    pub(crate) fn unmark(&mut self, mark: Mark, name: &CStr) -> bool {
        let at = self.own.iter().position(|(what, of)| *what == mark && **of == *name);
        at.map(|at| self.own.remove(at)).is_some()
    }

    /// Takes away all marks.
    pub(crate) fn unmark_all(&mut self) {
        self.own.clear();
    }
}

/// One file.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    /// Which workspace it was reached through.
    pub(crate) space: usize,
    /// None for a ghost: a name that is gone but whose end watchers in the guest shall notice.
    pub(crate) key: Option<Key>,
    pub(crate) kind: FileType,
    /// Roots of workspaces are neither forgotten nor closed.
    permanent: bool,
    /// When the guest was told of it.
    pub(crate) since: Instant,
    lookups: AtomicU64,
    handle: Mutex<Option<Handle>>,
    used: AtomicBool,
    places: Mutex<Vec<Place>>,
    pub(crate) names: Mutex<Names>,
    pub(crate) watch: Mutex<Watch>,
    /// It was read since its attributes were told, which makes the guest's kernel distrust its access time.
    pub(crate) read: AtomicBool,
    pub(crate) own: Mutex<OwnChanges>,
}

/// Time of the last status change, seconds and nanoseconds.
pub(crate) type ChangeTime = (i64, u32);

/// What tells changes of the guest from changes of the host.
#[derive(Debug, Default)]
pub(crate) struct OwnChanges {
    /// The file's change time when the guest's view was last known to be complete.
    pub(crate) known: Option<ChangeTime>,
    /// The change time that the guest's own last change left: watchers there have heard of that.
    pub(crate) left: Option<ChangeTime>,
    /// Open for writing since its creation, because its mode forbids to open it again.
    pub(crate) creator: Option<Handle>,
}

impl Node {
    fn new(
        id: u64,
        space: usize,
        key: Option<Key>,
        kind: FileType,
        handle: Option<Handle>,
    ) -> Self {
        Self {
            id,
            space,
            key,
            kind,
            permanent: false,
            since: Instant::now(),
            lookups: AtomicU64::new(0),
            handle: Mutex::new(handle),
            used: AtomicBool::new(true),
            places: Mutex::new(Vec::new()),
            names: Mutex::new(Names { believed: HashMap::new(), own: Vec::new(), asked: 0 }),
            watch: Mutex::new(Watch::None),
            read: AtomicBool::new(false),
            own: Mutex::new(OwnChanges::default()),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        locked(&self.names)
    }

    /// The name it was last known by.
    pub(crate) fn place(&self) -> Option<Place> {
        locked(&self.places).last().cloned()
    }

    pub(crate) fn has_place(&self) -> bool {
        !locked(&self.places).is_empty()
    }

    fn add_place(&self, parent: u64, name: &CStr) {
        let mut places = locked(&self.places);
        if let Some(at) = places.iter().position(|place| place.is(parent, name)) {
            let place = places.remove(at);
            places.push(place);
            return;
        }
        // A directory has one place; another one means that it moved.
        if self.is_directory() {
            places.clear();
        } else if places.len() >= PLACES_MAX {
            places.remove(0);
        }
        places.push(Place { parent, name: name.into() });
    }

    fn remove_place(&self, parent: u64, name: &CStr) {
        locked(&self.places).retain(|place| !place.is(parent, name));
    }
}

impl Place {
    fn is(&self, parent: u64, name: &CStr) -> bool {
        self.parent == parent && *self.name == *name
    }
}

#[derive(Debug)]
struct Table {
    nodes: HashMap<u64, Arc<Node>>,
    keys: HashMap<(usize, Key), u64>,
    next: u64,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    table: Mutex<Table>,
    descriptors: Descriptors,
}

impl Nodes {
    /// `descriptors_max` bounds the files held open at once.
    pub(crate) fn new(descriptors_max: usize) -> Self {
        Self {
            table: Mutex::new(Table {
                nodes: HashMap::new(),
                keys: HashMap::new(),
                next: ROOT + 1,
            }),
            descriptors: Descriptors::new(descriptors_max),
        }
    }

    /// Adds the root of a workspace, which stays for ever.
    pub(crate) fn add_root(&self, space: usize, handle: Handle, status: &Statx) -> Arc<Node> {
        let mut table = locked(&self.table);
        let id = table.next;
        table.next += 1;
        let key = Key::of(status);
        let kind = FileType::from_raw_mode(status.stx_mode.into());
        let mut node = Node::new(id, space, Some(key), kind, Some(handle));
        node.permanent = true;
        locked(&node.own).known = Some(crate::host::time(status.stx_ctime));
        let node = Arc::new(node);
        table.nodes.insert(id, Arc::clone(&node));
        table.keys.insert((space, key), id);
        node
    }

    pub(crate) fn find(&self, id: u64) -> Result<Arc<Node>, Errno> {
        locked(&self.table).nodes.get(&id).cloned().ok_or(Errno::STALE)
    }

    /// Every node there is now.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        locked(&self.table).nodes.values().cloned().collect()
    }

    /// The node of this file, if the guest knows it.
    pub(crate) fn known(&self, space: usize, key: Key) -> Option<Arc<Node>> {
        let table = locked(&self.table);
        table.keys.get(&(space, key)).and_then(|id| table.nodes.get(id)).cloned()
    }

    /// The node of a held file, made if need be, with one lookup more.
    pub(crate) fn adopt(
        &self,
        space: usize,
        handle: &Handle,
        status: &Statx,
    ) -> Result<Arc<Node>, Errno> {
        let key = Key::of(status);
        let mut table = locked(&self.table);
        if let Some(node) = table.keys.get(&(space, key)).and_then(|id| table.nodes.get(id)) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            let node = Arc::clone(node);
            drop(table);
            let closed = locked(&node.handle).is_none();
            if closed {
                self.keep(&node, handle);
            }
            return Ok(node);
        }
        if table.nodes.len() >= NODES_MAX {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        let kind = FileType::from_raw_mode(status.stx_mode.into());
        let node = Arc::new(Node::new(id, space, Some(key), kind, None));
        node.lookups.store(1, Ordering::Relaxed);
        locked(&node.own).known = Some(crate::host::time(status.stx_ctime));
        table.nodes.insert(id, Arc::clone(&node));
        table.keys.insert((space, key), id);
        drop(table);
        self.keep(&node, handle);
        Ok(node)
    }

    /// A node for a name that is gone, with one lookup.
    pub(crate) fn add_ghost(&self, space: usize, kind: FileType) -> Result<Arc<Node>, Errno> {
        let mut table = locked(&self.table);
        if table.nodes.len() >= NODES_MAX {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        let node = Arc::new(Node::new(id, space, None, kind, None));
        node.lookups.store(1, Ordering::Relaxed);
        table.nodes.insert(id, Arc::clone(&node));
        Ok(node)
    }

    /// One lookup more of a known node.
    pub(crate) fn look_again(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let table = locked(&self.table);
        let node = table.nodes.get(&id).cloned().ok_or(Errno::STALE)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(node)
    }

    /// Forgets lookups; gives the node back when that was the last. A guest that forgets too much loses only its own.
    pub(crate) fn forget(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        let mut table = locked(&self.table);
        let node = Arc::clone(table.nodes.get(&id)?);
        let left = node.lookups.load(Ordering::Relaxed).saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 || node.permanent {
            return None;
        }
        table.nodes.remove(&id);
        if let Some(key) = node.key {
            table.keys.remove(&(node.space, key));
        }
        drop(table);
        let places = std::mem::take(&mut *locked(&node.places));
        for place in places {
            if let Ok(parent) = self.find(place.parent) {
                let mut names = parent.names();
                // The name may stand for another node by now.
                if names.believed.get(&place.name) == Some(&Belief::Node(id)) {
                    names.believed.remove(&place.name);
                }
            }
        }
        if locked(&node.handle).take().is_some() {
            self.descriptors.closed();
        }
        Some(node)
    }

    /// Writes down that the guest believes `name` in `directory` to be `node`; `names` are the directory's.
    pub(crate) fn believe(&self, directory: &Node, names: &mut Names, name: &CStr, node: &Node) {
        let before = names.believed.insert(name.into(), Belief::Node(node.id));
        if let Some(Belief::Node(before)) = before
            && before != node.id
            && let Ok(before) = self.find(before)
        {
            before.remove_place(directory.id, name);
        }
        node.add_place(directory.id, name);
    }

    /// Writes down that the guest believes nothing of `name` any more.
    pub(crate) fn disbelieve(&self, directory: &Node, names: &mut Names, name: &CStr) {
        if let Some(Belief::Node(before)) = names.believed.remove(name)
            && let Ok(before) = self.find(before)
        {
            before.remove_place(directory.id, name);
        }
    }

    /// The node's descriptor, opened again by name if it was closed.
    pub(crate) fn handle(&self, node: &Arc<Node>) -> Result<Handle, Errno> {
        // From the node up to the nearest ancestor that is open, then down again.
        let mut closed = Vec::new();
        let mut at = Arc::clone(node);
        let mut handle = loop {
            at.used.store(true, Ordering::Relaxed);
            if let Some(handle) = locked(&at.handle).clone() {
                break handle;
            }
            let place = at.place().ok_or(Errno::STALE)?;
            // A path is at most 4096 bytes long, but a guest may make it longer step by step.
            if closed.len() > 4096 {
                return Err(Errno::STALE);
            }
            let parent = self.find(place.parent)?;
            closed.push((at, place));
            at = parent;
        };
        for (node, place) in closed.into_iter().rev() {
            // Whatever is wrong with the name is not the fault of the file.
            let opened = Arc::new(hold_raw(&*handle, &place.name).map_err(|_| Errno::STALE)?);
            if Some(Key::of(&status(&*opened)?)) != node.key {
                return Err(Errno::STALE);
            }
            self.keep(&node, &opened);
            handle = opened;
        }
        Ok(handle)
    }

    /// Makes sure that the node stays reachable when its name goes: holds it open.
    pub(crate) fn pin(&self, space: usize, handle: &OwnedFd, name: Name<'_>) -> Option<Arc<Node>> {
        let held = Arc::new(hold_raw(handle, name.as_c_str()).ok()?);
        let key = Key::of(&status(&*held).ok()?);
        let node = self.known(space, key)?;
        let closed = locked(&node.handle).is_none();
        if closed {
            self.keep(&node, &held);
        }
        Some(node)
    }

    fn keep(&self, node: &Arc<Node>, handle: &Handle) {
        let before = locked(&node.handle).replace(Arc::clone(handle));
        if before.is_none() {
            self.descriptors.opened(node, |id| self.find(id).ok());
        }
    }
}

#[cfg(test)]
mod tests;
