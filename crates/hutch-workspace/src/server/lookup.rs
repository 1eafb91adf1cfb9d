//! From a name to a node, and for how long the guest may believe it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::echo::Expected;
use super::{Server, VALID};
use crate::abi::{Attributes, Entry, Name, ROOT, Reply, Valid};
use crate::host::{Handle, hold, status};
use crate::locked::locked;
use crate::nodes::{Belief, Names, Node, Watch};
use crate::watch::ABSENT_VALID;

/// After so many names of a directory the guest is told to list it ahead: a listing brings two dozen names in the time
/// of one, and who asks for some names mostly goes on to ask for all (`git status`).
const LIST_AT: u32 = 4;
/// So many names later again: the guest may have forgotten them.
const LIST_EVERY: u32 = 4096;

impl Server {
    pub(super) fn lookup(
        &self,
        directory: u64,
        name: Name<'_>,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if directory == ROOT {
            reply.put_entry(&self.lookup_root(name)?);
            return Ok(());
        }
        let (directory, handle) = self.held_directory(directory)?;
        // Watched before anything is read: no change falls between.
        let watched = self.watch(&directory, &handle);
        let mut names = directory.names();
        if event && let Some(expected) = self.echo.expected(directory.id, name) {
            return self.lookup_expected(&directory, &mut names, name, expected, reply);
        }
        match hold(&*handle, name) {
            Ok(held) => {
                let (_, entry) = self.enter(&directory, &mut names, name, held, watched)?;
                reply.put_entry(&entry);
                names.asked = names.asked.wrapping_add(1);
                let one_by_one = watched && !event && names.asked % LIST_EVERY == LIST_AT;
                drop(names);
                if one_by_one {
                    self.suggest_listing(&directory);
                }
                Ok(())
            }
            Err(Errno::NOENT) => {
                self.nodes.disbelieve(&directory, &mut names, name.as_c_str());
                if !watched || !self.watcher.remember_absent(directory.id, name.as_c_str()) {
                    return Err(Errno::NOENT);
                }
                names.believed.insert(name.as_c_str().into(), Belief::Absent);
                let valid = Valid { entry: ABSENT_VALID.as_secs(), attributes: 0 };
                reply.put_entry(&Entry { node: 0, valid, attributes: Attributes::default() });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What the event thread is told, so that its change of the mount makes sense to the guest's kernel.
    fn lookup_expected(
        &self,
        directory: &Arc<Node>,
        names: &mut Names,
        name: Name<'_>,
        expected: Expected,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let node = match expected {
            Expected::Absent => {
                self.nodes.disbelieve(directory, names, name.as_c_str());
                return Err(Errno::NOENT);
            }
            Expected::Node(id) => match self.nodes.look_again(id) {
                Ok(node) => node,
                Err(_) => self.nodes.add_ghost(directory.space, FileType::RegularFile)?,
            },
            Expected::Ghost(kind) => self.nodes.add_ghost(directory.space, kind)?,
        };
        let attributes = match self.nodes.handle(&node) {
            Ok(handle) => self.attributes(&node, &handle, &status(&*handle)?)?,
            Err(_) => ghost_attributes(node.id, node.kind),
        };
        // For the one operation that comes now.
        let valid = Valid { entry: 0, attributes: 0 };
        reply.put_entry(&Entry { node: node.id, valid, attributes });
        Ok(())
    }

    fn lookup_root(&self, name: Name<'_>) -> Result<Entry, Errno> {
        let text = std::str::from_utf8(name.bytes()).map_err(|_| Errno::NOENT)?;
        let index: usize = text.parse().map_err(|_| Errno::NOENT)?;
        // One spelling each: `+1` and `01` are numbers, too.
        let root = self.roots.get(index).filter(|_| index.to_string() == text);
        self.root_entry(root.ok_or(Errno::NOENT)?)
    }

    /// The entry of a workspace's root, with one lookup more.
    pub(super) fn root_entry(&self, root: &Arc<Node>) -> Result<Entry, Errno> {
        let handle = self.nodes.handle(root)?;
        self.watch(root, &handle);
        let status = status(&*handle)?;
        let attributes = self.attributes(root, &handle, &status)?;
        let valid = Valid { entry: VALID, attributes: self.validity(root, true, &status) };
        Ok(Entry { node: root.id, valid, attributes })
    }

    /// Makes what was found under a name a node that the guest knows; `names` are the directory's.
    pub(super) fn enter(
        &self,
        directory: &Arc<Node>,
        names: &mut Names,
        name: Name<'_>,
        held: OwnedFd,
        watched: bool,
    ) -> Result<(Arc<Node>, Entry), Errno> {
        let handle: Handle = Arc::new(held);
        let mut found = status(&*handle)?;
        let node = self.nodes.adopt(directory.space, &handle, &found)?;
        self.nodes.believe(directory, names, name.as_c_str(), &node);
        if needs_own_watch(&node, &found) && *locked(&node.watch) == Watch::None {
            self.watch(&node, &handle);
            found = status(&*handle)?;
        }
        let attributes = self.attributes(&node, &handle, &found)?;
        let valid = Valid {
            entry: if watched { VALID } else { 0 },
            attributes: self.validity(&node, watched, &found),
        };
        self.notice_unwatched(&node, valid.attributes, &found);
        let entry = Entry { node: node.id, valid, attributes };
        Ok((node, entry))
    }

    /// Has the node watched; says whether its changes are noticed from now on.
    pub(super) fn watch(&self, node: &Node, handle: &OwnedFd) -> bool {
        self.spaces.get(node.space).is_some_and(|space| space.local)
            && self.watcher.watch(node, handle)
    }

    /// For how long the guest may believe a node's attributes.
    pub(super) fn validity(&self, node: &Node, place_watched: bool, status: &Statx) -> u64 {
        let own =
            !needs_own_watch(node, status) || matches!(*locked(&node.watch), Watch::Placed(_));
        if place_watched && own { VALID } else { 0 }
    }

    /// The same, for a node that was not reached by name now.
    pub(super) fn validity_in_place(&self, node: &Node, status: &Statx) -> u64 {
        let watched = match node.place() {
            Some(place) => self
                .nodes
                .find(place.parent)
                .is_ok_and(|parent| matches!(*locked(&parent.watch), Watch::Placed(_))),
            // A root is watched itself; a file without a name is changed by the guest alone, or by who has it open.
            None => self.roots.get(node.space).is_some_and(|root| root.id == node.id),
        };
        self.validity(node, watched, status)
    }
}

/// Whether a watch on its directory does not tell of all changes: a directory changes by its entries, a file with more
/// names than one by any of them, and the file that is a workspace has no watched directory.
pub(super) fn needs_own_watch(node: &Node, status: &Statx) -> bool {
    match node.kind {
        FileType::Directory => true,
        FileType::RegularFile => status.stx_nlink > 1 || !node.has_place(),
        _ => false,
    }
}

fn ghost_attributes(id: u64, kind: FileType) -> Attributes {
    Attributes {
        inode: id,
        mode: kind.as_raw_mode() | 0o600,
        links: 1,
        block_size: 4096,
        ..Attributes::default()
    }
}
