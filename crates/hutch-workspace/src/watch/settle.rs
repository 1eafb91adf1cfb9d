//! One change of the host against what the guest believes: what to tell it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hutch_wire::guest::Bytes;
use hutch_wire::workspace::{Entry, EntryKind, Event};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::fold::{Change, Rename};
use crate::abi::Name;
use crate::host::{Key, hold_raw, status, time};
use crate::locked::locked;
use crate::nodes::{Belief, Mark, Names, Node};
use crate::server::{Expected, Server};

/// Longest path that events are made for.
const PATH_MAX: usize = 4096;

/// The answer that tells the guest of a node is taken in within this time.
const IN_FLIGHT: Duration = Duration::from_secs(10);

/// Directories whose entries the host changed: each is told once a batch.
pub(super) type Listings = HashSet<u64>;

/// What a name stands for on the host.
struct Real {
    handle: OwnedFd,
    key: Key,
    kind: FileType,
}

/// What can be seen of a name.
enum Sight {
    There(Real),
    Absent,
    /// The directory may not be searched at the moment, or something else is in the way.
    Unclear,
}

impl Sight {
    fn of(directory: &OwnedFd, name: &CStr) -> Self {
        let found = hold_raw(directory, name).and_then(|handle| Ok((status(&handle)?, handle)));
        match found {
            Ok((found, handle)) => {
                let kind = FileType::from_raw_mode(found.stx_mode.into());
                Self::There(Real { key: Key::of(&found), kind, handle })
            }
            Err(Errno::NOENT) => Self::Absent,
            Err(_) => Self::Unclear,
        }
    }

    fn real(&self) -> Option<&Real> {
        match self {
            Self::There(real) => Some(real),
            Self::Absent | Self::Unclear => None,
        }
    }
}

impl Server {
    /// Tells what came of a change. An error means that the guest is gone.
    pub(super) fn settle(&self, change: &Change, listings: &mut Listings) -> io::Result<()> {
        let Ok(node) = self.nodes.find(change.node) else { return Ok(()) };
        let Ok(handle) = self.nodes.handle(&node) else { return Ok(()) };
        let Some(name) = &change.name else {
            // A watch of its own: a directory's attributes, a file with several names.
            return self.drop_if_changed(&node, &handle).map(drop);
        };
        let mut names = node.names();
        let sight = Sight::of(&handle, name);
        let belief = names.believed.get(&**name).copied();
        let agreed = self.agreed(belief, sight.real());
        let outdated = change.of_name && self.disbelieve_unless(&node, &mut names, name, &sight);
        let mut foreign = |mark, count| (0..count).any(|_| !names.unmark(mark, name));
        let made = foreign(Mark::Made, change.created);
        let removed = foreign(Mark::Removed, change.deleted);
        drop(names);
        if outdated {
            self.expire(&node, name)?;
        }
        if made || removed {
            listings.insert(node.id);
        }
        let event = match &sight {
            Sight::There(real) if made => self.created(&node, name, real.kind),
            // What came and went within a moment nobody has seen.
            Sight::Absent if removed && !made => {
                self.deleted(&node, name, belief, change.directory)
            }
            _ => None,
        };
        self.send(event)?;
        if let Some(real) = sight.real() {
            let foreign = self.content_changed(node.space, agreed.as_ref(), real)?;
            if foreign && change.of_content() {
                self.send(self.changed(&node, name, real.kind, change))?;
            }
        }
        // Found under another name, or not by name at all: the guest's idea of it is what is left to ask.
        self.drop_former(belief.filter(|_| agreed.is_none()))
    }

    /// What had a name before may have been changed while it still had it, and it may still be open in the guest, or go
    /// by other names there.
    fn drop_former(&self, belief: Option<Belief>) -> io::Result<()> {
        if let Some(Belief::Node(id)) = belief
            && let Ok(former) = self.nodes.find(id)
            && let Ok(handle) = self.nodes.handle(&former)
        {
            self.drop_if_changed(&former, &handle)?;
        }
        Ok(())
    }

    fn send(&self, event: Option<Event>) -> io::Result<()> {
        event.map_or(Ok(()), |event| self.notifier.event(&event))
    }

    /// Tells of a name that moved. Says whether that explains both its ends.
    pub(super) fn settle_rename(
        &self,
        rename: &Rename,
        listings: &mut Listings,
    ) -> io::Result<bool> {
        let (Ok(from), Ok(to)) = (self.nodes.find(rename.from.0), self.nodes.find(rename.to.0))
        else {
            return Ok(false);
        };
        let Ok(to_handle) = self.nodes.handle(&to) else { return Ok(false) };
        let (name, new_name) = (&*rename.from.1, &*rename.to.1);
        if self.is_own_rename(&from, name, &to, new_name) {
            return Ok(true);
        }
        // It may have gone on meanwhile: its ends are told for themselves, then.
        let sight = Sight::of(&to_handle, new_name);
        let Some(real) = sight.real() else { return Ok(false) };
        if from.space != to.space {
            return Ok(false);
        }
        let mut names = from.names();
        let belief = names.believed.get(name).copied();
        let moved = self.agreed(belief, Some(real));
        if moved.is_some() {
            self.nodes.disbelieve(&from, &mut names, name);
        }
        drop(names);
        let was_known = moved.is_some();
        let moved = moved.or_else(|| self.nodes.known(from.space, real.key));
        let mut names = to.names();
        let former = names.believed.get(new_name).copied();
        let outdated = self.disbelieve_unless(&to, &mut names, new_name, &sight);
        if let Some(moved) = &moved {
            // Reached by its new name from now on, with everything below it.
            self.nodes.believe(&to, &mut names, new_name, moved);
        }
        drop(names);
        if was_known {
            self.expire(&from, name)?;
        }
        if outdated {
            self.expire(&to, new_name)?;
        }
        listings.extend([from.id, to.id]);
        if let Some(moved) = &moved {
            // Its changes so far may be told under the old name, where it is no longer found.
            self.drop_if_changed(moved, &real.handle)?;
        }
        self.drop_former(former.filter(|_| outdated))?;
        self.send(self.renamed(&from, name, &to, new_name, moved.as_deref(), real.kind))?;
        Ok(true)
    }

    /// Says whether the guest left marks for both ends, and takes them away.
    ///
    /// One alone is that of another change, whose event comes by itself: the other end would never be told. Where both are
    /// of other changes, their events find no marks and tell of both directories.
    fn is_own_rename(&self, from: &Node, name: &CStr, to: &Node, new_name: &CStr) -> bool {
        if !from.names().unmark(Mark::Removed, name) {
            return false;
        }
        let own = to.names().unmark(Mark::Made, new_name);
        if !own && let Ok(name) = Name::parse(name) {
            from.names().mark(Mark::Removed, name);
        }
        own
    }

    /// The node that the guest believes a name to be, if that is what is there.
    fn agreed(&self, belief: Option<Belief>, real: Option<&Real>) -> Option<Arc<Node>> {
        let (Some(Belief::Node(id)), Some(real)) = (belief, real) else { return None };
        self.nodes.find(id).ok().filter(|node| node.key == Some(real.key))
    }

    /// Writes down that the guest's belief in a name is over, unless it agrees with what is there; says whether the
    /// guest must be told.
    fn disbelieve_unless(
        &self,
        directory: &Node,
        names: &mut Names,
        name: &CStr,
        sight: &Sight,
    ) -> bool {
        let belief = names.believed.get(name).copied();
        let right = match belief {
            None => true,
            Some(Belief::Absent) => matches!(sight, Sight::Absent),
            Some(Belief::Node(_)) => self.agreed(belief, sight.real()).is_some(),
        };
        if !right {
            self.nodes.disbelieve(directory, names, name);
        }
        !right
    }

    /// The guest shall drop what it knew by a name, which stands for something else now.
    ///
    /// Not only ask again at the next use: a program that is asking at this moment holds no lock meanwhile, and may put
    /// the long time of an older answer on the name when it wakes up, however late. A dropped name takes no such harm.
    fn expire(&self, directory: &Node, name: &CStr) -> io::Result<()> {
        self.notifier.expire_entry(directory.id, name.to_bytes(), false)
    }

    /// The host changed entries of these directories: their attributes and listings are out of date.
    pub(super) fn listings_changed(&self, listings: &Listings) -> io::Result<()> {
        if !listings.is_empty() {
            self.watcher.host_changed();
        }
        listings
            .iter()
            .try_for_each(|&directory| self.notifier.inval_after_answers(directory, directory))
    }

    /// Drops the guest's caches of what is there if they are out of date; says whether watchers have not heard of it.
    fn content_changed(
        &self,
        space: usize,
        agreed: Option<&Arc<Node>>,
        real: &Real,
    ) -> io::Result<bool> {
        match agreed.cloned().or_else(|| self.nodes.known(space, real.key)) {
            Some(node) => self.drop_if_changed(&node, &real.handle),
            // The guest never saw it: nothing is out of date, but a watcher of the directory wants to know.
            None => Ok(true),
        }
    }

    fn drop_if_changed(&self, node: &Arc<Node>, handle: &OwnedFd) -> io::Result<bool> {
        let mut own = locked(&node.own);
        // Read before it is told: what changes later is another event.
        let Ok(found) = status(handle) else { return Ok(false) };
        let now = Some(time(found.stx_ctime));
        let outdated = own.known != now;
        let foreign = own.left != now;
        own.known = now;
        drop(own);
        if outdated {
            self.watcher.host_changed();
            match node.place().filter(|_| node.since.elapsed() < IN_FLIGHT) {
                Some(place) => self.notifier.inval_after_answers(place.parent, node.id)?,
                None => self.notifier.inval_inode(node.id)?,
            }
        }
        Ok(foreign)
    }

    /// Everything that the guest believes is out of date.
    pub(super) fn everything_changed(&self) -> io::Result<()> {
        let expire_only = self.expire_only.load(Ordering::Relaxed);
        for node in self.nodes.all() {
            let names: Vec<Box<CStr>> = {
                let mut names = node.names();
                names.unmark_all();
                names.believed.keys().cloned().collect()
            };
            locked(&node.own).known = None;
            for name in names {
                self.notifier.expire_entry(node.id, name.to_bytes(), expire_only)?;
            }
            self.notifier.inval_inode(node.id)?;
        }
        Ok(())
    }

    fn created(&self, directory: &Arc<Node>, name: &CStr, kind: FileType) -> Option<Event> {
        let kind = match kind {
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Link,
            FileType::RegularFile => EntryKind::File,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            _ => return None,
        };
        let entry = self.event_entry(directory, name)?;
        self.echo.expect(directory.id, name, Expected::Absent);
        Some(Event::Created { entry, kind })
    }

    fn deleted(
        &self,
        directory: &Arc<Node>,
        name: &CStr,
        belief: Option<Belief>,
        was_directory: bool,
    ) -> Option<Event> {
        let entry = self.event_entry(directory, name)?;
        // A directory may only have moved to where nobody looks: the guest's kernel would never again make anything in
        // one that it has seen removed. So a ghost is removed in its place.
        let expected = match belief {
            _ if was_directory => Expected::Ghost(FileType::Directory),
            Some(Belief::Node(id)) => Expected::Node(id),
            _ => Expected::Ghost(FileType::RegularFile),
        };
        self.echo.expect(directory.id, name, expected);
        Some(Event::Deleted { entry, directory: was_directory })
    }

    fn renamed(
        &self,
        from: &Arc<Node>,
        name: &CStr,
        to: &Arc<Node>,
        new_name: &CStr,
        moved: Option<&Node>,
        kind: FileType,
    ) -> Option<Event> {
        let from_entry = self.event_entry(from, name)?;
        let entry = self.event_entry(to, new_name)?;
        let expected = match moved {
            Some(moved) => Expected::Node(moved.id),
            None => Expected::Ghost(kind),
        };
        self.echo.expect(from.id, name, expected);
        self.echo.expect(to.id, new_name, Expected::Absent);
        Some(Event::Renamed { from: from_entry, to: entry })
    }

    fn changed(
        &self,
        directory: &Arc<Node>,
        name: &CStr,
        kind: FileType,
        change: &Change,
    ) -> Option<Event> {
        let entry = self.event_entry(directory, name)?;
        match kind {
            FileType::RegularFile if change.modified || change.closed => {
                Some(Event::Modified { entry, closed: change.closed })
            }
            FileType::Symlink => None,
            _ => Some(Event::Attributes { entry }),
        }
    }

    /// Where init finds a name, if an event about it can be sent at all.
    fn event_entry(&self, directory: &Arc<Node>, name: &CStr) -> Option<Entry> {
        if !self.echo.has_event_thread() || Name::parse(name).is_err() {
            return None;
        }
        let path = self.path_in_mount(directory)?;
        if !self.notifier.has_room_for_event() {
            return None;
        }
        Some(Entry {
            node: directory.id,
            directory: Bytes::from(path),
            name: Bytes::from(name.to_bytes().to_vec()),
        })
    }

    /// Has the guest list a directory ahead of its programs, if there is someone to do it. Losing the suggestion is fine.
    pub(crate) fn suggest_listing(&self, directory: &Arc<Node>) {
        if !self.echo.has_event_thread() {
            return;
        }
        let Some(path) = self.path_in_mount(directory) else { return };
        if self.notifier.has_room_for_event() {
            self.notifier.event(&Event::Listed { directory: Bytes::from(path) }).ok();
        }
    }

    /// A directory's path below the root of the mount.
    fn path_in_mount(&self, directory: &Arc<Node>) -> Option<Vec<u8>> {
        let mut components: Vec<Vec<u8>> = Vec::new();
        let mut len = 0;
        let mut at = Arc::clone(directory);
        while self.roots.get(at.space)?.id != at.id {
            let place = at.place()?;
            len += place.name.count_bytes() + 1;
            if len > PATH_MAX {
                return None;
            }
            components.push(place.name.to_bytes().to_vec());
            at = self.nodes.find(place.parent).ok()?;
        }
        components.push(at.space.to_string().into_bytes());
        components.reverse();
        Some(components.join(&b'/'))
    }
}
