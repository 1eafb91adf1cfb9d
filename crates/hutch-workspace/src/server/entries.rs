//! Making, removing and moving names.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::Server;
use crate::abi::{Create, Name, ROOT, Reply};
use crate::host::{Handle, hold, status};
use crate::locked::locked;
use crate::nodes::{Belief, Mark, Names, Node, Watch};

/// Files held open for writing because their mode forbids to open them again.
const CREATORS_MAX: usize = 256;
/// The handle of such a file.
const CREATOR: u64 = 1;

impl Server {
    pub(super) fn symlink(
        &self,
        directory: u64,
        name: Name<'_>,
        target: &CStr,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        self.make(directory, name, event, reply, |handle| {
            rustix::fs::symlinkat(target, handle, name.as_c_str())
        })
    }

    pub(super) fn make_directory(
        &self,
        directory: u64,
        name: Name<'_>,
        mode: u32,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(Self::storable_mode(FileType::Directory, mode));
        self.make(directory, name, event, reply, |handle| {
            rustix::fs::mkdirat(handle, name.as_c_str(), mode)
        })
    }

    pub(super) fn make_node(
        &self,
        directory: u64,
        name: Name<'_>,
        mode: u32,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let kind = FileType::from_raw_mode(mode);
        // A device node of the host would be the host's device.
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        let mode = Mode::from_raw_mode(Self::storable_mode(kind, mode));
        self.make(directory, name, event, reply, |handle| {
            rustix::fs::mknodat(handle, name.as_c_str(), kind, mode, 0)
        })
    }

    /// Makes a name and answers what it stands for. For the event thread it exists already.
    fn make(
        &self,
        directory: u64,
        name: Name<'_>,
        event: bool,
        reply: &mut Reply,
        act: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if directory == ROOT {
            return Err(Errno::ROFS);
        }
        let (directory, handle) = self.held_directory(directory)?;
        let watched = self.watch(&directory, &handle);
        let mut names = directory.names();
        if event {
            self.echo.done(directory.id, name);
        } else {
            self.space(&directory)?.may_change_entry(&self.proc, &handle, name)?;
            marked(&directory, &mut names, &[(Mark::Made, name)], || {
                self.own_change(&directory, &handle, || {
                    act(&handle)?;
                    self.give_to_owner(&directory, &handle, name)
                })
            })?;
        }
        let turn = self.notifier.turn();
        let held = hold(&*handle, name)?;
        let (node, entry) = self.enter(&directory, &mut names, name, held, watched)?;
        if !event {
            made_by_guest(&node);
            self.tell_empty(turn, &node, reply);
            self.tell_attributes(turn, &directory, &handle, reply);
        }
        reply.put_entry(&entry);
        Ok(())
    }

    /// What the guest creates belongs to the owner of the workspace, also when the worker is another user.
    fn give_to_owner(
        &self,
        directory: &Node,
        handle: &OwnedFd,
        name: Name<'_>,
    ) -> Result<(), Errno> {
        let Some((uid, gid)) = self.space(directory)?.create_as else { return Ok(()) };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(handle, name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn create(
        &self,
        directory: u64,
        name: Name<'_>,
        create: Create,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if directory == ROOT || event {
            return Err(Errno::ROFS);
        }
        let (directory, handle) = self.held_directory(directory)?;
        let watched = self.watch(&directory, &handle);
        let mut names = directory.names();
        self.space(&directory)?.may_change_entry(&self.proc, &handle, name)?;
        let mode = Mode::from_raw_mode(Self::storable_mode(FileType::RegularFile, create.mode));
        // Always exclusive: what the host put there meanwhile may be a FIFO or a link.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let created = marked(&directory, &mut names, &[(Mark::Made, name)], || {
            self.own_change(&directory, &handle, || {
                let file = rustix::fs::openat(&*handle, name.as_c_str(), flags, mode)?;
                self.give_to_owner(&directory, &handle, name)?;
                Ok(file)
            })
        });
        let turn = self.notifier.turn();
        match created {
            Ok(file) => {
                let held = self.proc.reopen_path(&file)?;
                let (node, entry) = self.enter(&directory, &mut names, name, held, watched)?;
                made_by_guest(&node);
                self.tell_attributes(turn, &directory, &handle, reply);
                reply.put_entry(&entry);
                reply.put_open(self.keep_creator(&node, file, mode), 0);
                Ok(())
            }
            Err(Errno::EXIST) if create.flags & OFlags::EXCL.bits() == 0 => {
                let held = hold(&*handle, name)?;
                let (node, entry) = self.enter(&directory, &mut names, name, held, watched)?;
                drop(names);
                if node.kind != FileType::RegularFile {
                    // The lookup of an answer that is not given. The kernel looks again, and opens by kind.
                    self.forget(node.id, 1);
                    return Err(Errno::STALE);
                }
                if create.flags & OFlags::TRUNC.bits() != 0 {
                    let (node, handle) = self.held_file(node.id)?;
                    self.space(&node)?.may_change(&self.proc, &handle)?;
                    let file = self.open_for_writing(&handle, OFlags::WRONLY)?;
                    self.own_change(&node, &handle, || rustix::fs::ftruncate(&file, 0))?;
                }
                reply.put_entry(&entry);
                reply.put_open(0, 0);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn temporary_file(
        &self,
        directory: u64,
        create: Create,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if directory == ROOT {
            return Err(Errno::ROFS);
        }
        let (directory, handle) = self.held_directory(directory)?;
        self.space(&directory)?.may_change(&self.proc, &handle)?;
        let mode = Mode::from_raw_mode(Self::storable_mode(FileType::RegularFile, create.mode));
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC | OFlags::NOCTTY;
        let exclusive = OFlags::from_bits_retain(create.flags) & OFlags::EXCL;
        let file = rustix::fs::openat(&*handle, c".", flags | exclusive, mode)?;
        if let Some((uid, gid)) = self.space(&directory)?.create_as {
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let held: Handle = Arc::new(self.proc.reopen_path(&file)?);
        let found = status(&*held)?;
        let node = self.nodes.adopt(directory.space, &held, &found)?;
        let attributes = self.attributes(&node, &held, &found)?;
        let valid = crate::abi::Valid { entry: 0, attributes: 0 };
        reply.put_entry(&crate::abi::Entry { node: node.id, valid, attributes });
        reply.put_open(self.keep_creator(&node, file, mode), 0);
        Ok(())
    }

    /// Keeps a new file open for writing if it could not be opened again, until the guest closes it.
    fn keep_creator(&self, node: &Node, file: OwnedFd, mode: Mode) -> u64 {
        if mode.contains(Mode::WUSR) {
            return 0;
        }
        if self.creators.fetch_add(1, Ordering::Relaxed) >= CREATORS_MAX {
            self.creators.fetch_sub(1, Ordering::Relaxed);
            return 0;
        }
        if locked(&node.own).creator.replace(Arc::new(file)).is_some() {
            self.creators.fetch_sub(1, Ordering::Relaxed);
        }
        CREATOR
    }

    /// The file of [`Server::keep_creator`].
    pub(super) fn creator(&self, node: &Node, handle: u64) -> Option<Handle> {
        if handle == CREATOR { locked(&node.own).creator.clone() } else { None }
    }

    pub(super) fn drop_creator(&self, node: &Node) {
        if locked(&node.own).creator.take().is_some() {
            self.creators.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn release(&self, id: u64, handle: u64) -> Result<(), Errno> {
        if handle == CREATOR {
            self.drop_creator(&*self.nodes.find(id)?);
        }
        Ok(())
    }

    pub(super) fn remove(
        &self,
        directory: u64,
        name: Name<'_>,
        as_directory: bool,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if directory == ROOT {
            return Err(Errno::ROFS);
        }
        let (directory, handle) = self.held_directory(directory)?;
        let mut names = directory.names();
        if event {
            self.echo.done(directory.id, name);
            self.nodes.disbelieve(&directory, &mut names, name.as_c_str());
            return Ok(());
        }
        self.space(&directory)?.may_change_entry(&self.proc, &handle, name)?;
        // The guest may have it open: it must stay reachable without its name.
        let target = self.nodes.pin(directory.space, &handle, name);
        let flags = if as_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        marked(&directory, &mut names, &[(Mark::Removed, name)], || {
            self.own_change(&directory, &handle, || {
                self.own_change_of(target.as_ref(), || {
                    rustix::fs::unlinkat(&*handle, name.as_c_str(), flags)
                })
            })
        })?;
        let turn = self.notifier.turn();
        self.nodes.disbelieve(&directory, &mut names, name.as_c_str());
        self.tell_attributes(turn, &directory, &handle, reply);
        Ok(())
    }

    /// [`Server::own_change`] for a node that may be unknown.
    fn own_change_of<T>(
        &self,
        node: Option<&Arc<Node>>,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match node.and_then(|node| Some((node, self.nodes.handle(node).ok()?))) {
            Some((node, handle)) => self.own_change(node, &handle, change),
            None => change(),
        }
    }

    pub(super) fn rename(
        &self,
        (from, name): (u64, Name<'_>),
        (to, new_name): (u64, Name<'_>),
        flags: u32,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        if from == ROOT || to == ROOT {
            return Err(Errno::ROFS);
        }
        let (from, from_handle) = self.held_directory(from)?;
        let (to, to_handle) = self.held_directory(to)?;
        if from.space != to.space {
            return Err(Errno::XDEV);
        }
        // Always the lower one first: two renames must not wait for each other.
        let same = from.id == to.id;
        let (mut first, mut second) = if same {
            (from.names(), None)
        } else if from.id < to.id {
            let first = from.names();
            (first, Some(to.names()))
        } else {
            let second = to.names();
            (from.names(), Some(second))
        };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let mut right = true;
        if event {
            self.echo.done(from.id, name);
            self.echo.done(to.id, new_name);
        } else {
            let ends = Ends {
                from: (&from, &from_handle, name),
                to: (&to, &to_handle, new_name),
                source: self.nodes.pin(from.space, &from_handle, name),
                target: self.nodes.pin(to.space, &to_handle, new_name),
            };
            let (from_marks, to_marks): (&[Mark], &[Mark]) = if exchange {
                (&[Mark::Removed, Mark::Made], &[Mark::Removed, Mark::Made])
            } else {
                (&[Mark::Removed], &[Mark::Made])
            };
            mark_all(&from, &mut first, from_marks, name);
            mark_all(&to, second.as_mut().unwrap_or(&mut first), to_marks, new_name);
            let renamed = self.rename_on_host(&ends, flags);
            if renamed.is_err() || !ends.move_something() {
                unmark_all(&mut first, from_marks, name);
                unmark_all(second.as_mut().unwrap_or(&mut first), to_marks, new_name);
            }
            renamed?;
            // The guest's kernel moves what it knew by the name, which may not be what the host had there by now.
            right = ends.move_something()
                && agrees(&first, name, ends.source.as_ref())
                && (!exchange
                    || agrees(second.as_ref().unwrap_or(&first), new_name, ends.target.as_ref()));
        }
        let moved = first.believed.get(name.as_c_str()).copied();
        let replaced = second.as_ref().unwrap_or(&first).believed.get(new_name.as_c_str()).copied();
        self.nodes.disbelieve(&from, &mut first, name.as_c_str());
        let names = second.as_mut().unwrap_or(&mut first);
        self.nodes.disbelieve(&to, names, new_name.as_c_str());
        if right {
            self.believe_moved(&to, names, new_name, moved);
            if exchange {
                self.believe_moved(&from, &mut first, name, replaced);
            }
        } else {
            // Told before the answer, done after it: until then the kernel has both directories locked.
            self.expire_soon(&from, name);
            self.expire_soon(&to, new_name);
        }
        let turn = self.notifier.turn();
        if same && !event {
            self.tell_attributes(turn, &from, &from_handle, reply);
        }
        Ok(())
    }

    fn rename_on_host(&self, ends: &Ends<'_>, flags: RenameFlags) -> Result<(), Errno> {
        let ((from, from_handle, name), (to, to_handle, new_name)) = (ends.from, ends.to);
        let space = self.space(from)?;
        space.may_change_entry(&self.proc, from_handle, name)?;
        space.may_change_entry(&self.proc, to_handle, new_name)?;
        self.own_change(from, from_handle, || {
            let rename = || {
                self.own_change_of(ends.source.as_ref(), || {
                    let (name, new_name) = (name.as_c_str(), new_name.as_c_str());
                    rustix::fs::renameat_with(from_handle, name, to_handle, new_name, flags)
                })
            };
            if from.id == to.id { rename() } else { self.own_change(to, to_handle, rename) }
        })
    }

    fn expire_soon(&self, directory: &Node, name: Name<'_>) {
        self.notifier.expire_entry_soon(directory.id, name.bytes());
    }

    fn believe_moved(
        &self,
        directory: &Node,
        names: &mut Names,
        name: Name<'_>,
        belief: Option<Belief>,
    ) {
        if let Some(Belief::Node(id)) = belief
            && let Ok(node) = self.nodes.find(id)
        {
            self.nodes.believe(directory, names, name.as_c_str(), &node);
        }
    }

    pub(super) fn link(
        &self,
        of: u64,
        directory: u64,
        name: Name<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if directory == ROOT {
            return Err(Errno::ROFS);
        }
        let (node, file) = self.held(of)?;
        let (directory, handle) = self.held_directory(directory)?;
        if node.space != directory.space {
            return Err(Errno::XDEV);
        }
        let watched = self.watch(&directory, &handle);
        let mut names = directory.names();
        let space = self.space(&directory)?;
        space.may_change_entry(&self.proc, &handle, name)?;
        // A second name outside would open what is read-only to changes.
        space.may_change(&self.proc, &file)?;
        marked(&directory, &mut names, &[(Mark::Made, name)], || {
            self.own_change(&directory, &handle, || {
                self.own_change(&node, &file, || self.proc.link(&file, &handle, name))
            })
        })?;
        let turn = self.notifier.turn();
        let held = hold(&*handle, name)?;
        let (_, entry) = self.enter(&directory, &mut names, name, held, watched)?;
        self.tell_attributes(turn, &directory, &handle, reply);
        reply.put_entry(&entry);
        Ok(())
    }

    pub(super) fn read_link(&self, id: u64, reply: &mut Reply) -> Result<(), Errno> {
        let (node, handle) = self.held(id)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(&*handle, c"", Vec::with_capacity(256))?;
        reply.put(target.to_bytes());
        Ok(())
    }
}

/// A node that the guest has just made: what the host's file system tells of its making is no news to watchers there.
fn made_by_guest(node: &Node) {
    let mut own = locked(&node.own);
    own.left = own.known;
}

/// Both ends of a rename and what they stand for on the host.
struct Ends<'a> {
    from: (&'a Node, &'a OwnedFd, Name<'a>),
    to: (&'a Node, &'a OwnedFd, Name<'a>),
    source: Option<Arc<Node>>,
    target: Option<Arc<Node>>,
}

impl Ends<'_> {
    /// A name moved onto another one of the same file stays: rename(2).
    fn move_something(&self) -> bool {
        match (&self.source, &self.target) {
            (Some(source), Some(target)) => source.id != target.id,
            _ => true,
        }
    }
}

/// Whether the guest believes a name to be this node.
fn agrees(names: &Names, name: Name<'_>, node: Option<&Arc<Node>>) -> bool {
    let belief = names.believed.get(name.as_c_str());
    node.is_some_and(|node| belief == Some(&Belief::Node(node.id)))
}

/// Makes a change of the guest with marks for the events that will come of it.
fn marked<T>(
    directory: &Node,
    names: &mut Names,
    marks: &[(Mark, Name<'_>)],
    change: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    for &(mark, name) in marks {
        mark_all(directory, names, &[mark], name);
    }
    let result = change();
    if result.is_err() {
        marks.iter().for_each(|&(mark, name)| unmark_all(names, &[mark], name));
    }
    result
}

/// Leaves marks where events will come.
fn mark_all(directory: &Node, names: &mut Names, marks: &[Mark], name: Name<'_>) {
    if matches!(*locked(&directory.watch), Watch::Placed(_)) {
        marks.iter().for_each(|&mark| names.mark(mark, name));
    }
}

/// Takes them back: no event will come.
fn unmark_all(names: &mut Names, marks: &[Mark], name: Name<'_>) {
    for &mark in marks {
        names.unmark(mark, name.as_c_str());
    }
}
