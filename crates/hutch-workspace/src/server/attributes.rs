//! What a file is like, and changes of that.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::Server;
use crate::abi::{Attributes, Changes, ROOT, Reply, TimeChange};
use crate::host::{Handle, status, time};
use crate::locked::locked;
use crate::nodes::Node;
use crate::owner::{Record, SET_ID};

impl Server {
    pub(super) fn get_attributes(&self, id: u64, reply: &mut Reply) -> Result<(), Errno> {
        if id == ROOT {
            reply.put_attr_out(super::VALID, &self.root_attributes());
            return Ok(());
        }
        let (node, handle) = self.held(id)?;
        self.put_attributes(&node, &handle, reply)
    }

    fn put_attributes(
        &self,
        node: &Arc<Node>,
        handle: &Handle,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let mut found = status(&**handle)?;
        if super::lookup::needs_own_watch(node, &found) {
            self.watch(node, handle);
            found = status(&**handle)?;
        }
        let attributes = self.attributes(node, handle, &found)?;
        let valid = self.validity_in_place(node, &found);
        self.notice_unwatched(node, valid, &found);
        reply.put_attr_out(valid, &attributes);
        Ok(())
    }

    /// The guest asks about a file each time because it is not watched: then a change is noticed now or never. Its
    /// cached content goes about when the answer arrives.
    pub(super) fn notice_unwatched(&self, node: &Node, valid: u64, found: &Statx) {
        if valid > 0 || node.kind != FileType::RegularFile || node.key.is_none() {
            return;
        }
        let now = Some(time(found.stx_ctime));
        if std::mem::replace(&mut locked(&node.own).known, now) != now {
            self.notifier.inval_inode_soon(node.id);
        }
    }

    /// The directory that the workspaces are in.
    pub(super) fn root_attributes(&self) -> Attributes {
        Attributes {
            inode: ROOT,
            mode: FileType::Directory.as_raw_mode() | 0o555,
            links: u32::try_from(self.roots.len()).unwrap_or(u32::MAX).saturating_add(2),
            block_size: 4096,
            ..Attributes::default()
        }
    }

    /// A host file's attributes as the guest shall see them.
    pub(super) fn attributes(
        &self,
        node: &Node,
        handle: &OwnedFd,
        status: &Statx,
    ) -> Result<Attributes, Errno> {
        let space = self.space(node)?;
        let (mut uid, mut gid) = space.owners.shown(status.stx_uid, status.stx_gid);
        let mut mode = u32::from(status.stx_mode);
        let regular = node.kind == FileType::RegularFile;
        if regular {
            // A set-id file of the host would act for the owner shown, who is another one.
            mode &= !SET_ID;
        }
        if space.has_records()
            && let Some(record) = Record::read(handle)
        {
            (uid, gid) = (record.uid, record.gid);
            if regular {
                mode |= record.bits;
            }
        }
        node.read.store(false, Ordering::Relaxed);
        Ok(Attributes {
            inode: shown_inode(status),
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: time(status.stx_atime),
            mtime: time(status.stx_mtime),
            ctime: time(status.stx_ctime),
            mode,
            links: status.stx_nlink,
            uid,
            gid,
            device: (status.stx_rdev_major & 0xfff) << 8
                | status.stx_rdev_minor & 0xff
                | (status.stx_rdev_minor & 0xf_ff00) << 12,
            block_size: status.stx_blksize,
        })
    }

    pub(super) fn set_attributes(
        &self,
        id: u64,
        changes: Changes,
        event: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if id == ROOT {
            return Err(Errno::ROFS);
        }
        let (node, handle) = self.held(id)?;
        if !event {
            self.space(&node)?.may_change(&self.proc, &handle)?;
            self.own_change(&node, &handle, || self.apply(&node, &handle, changes))?;
        }
        self.put_attributes(&node, &handle, reply)
    }

    /// Applies changes in the order in which none undoes another: times come last.
    fn apply(&self, node: &Node, handle: &OwnedFd, changes: Changes) -> Result<(), Errno> {
        if let Some(size) = changes.size {
            if node.kind != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            let file = self.open_for_writing(handle, OFlags::WRONLY)?;
            rustix::fs::ftruncate(file, size)?;
        }
        if let Some(mode) = changes.mode
            && node.kind != FileType::Symlink
        {
            let mode = Mode::from_raw_mode(Self::storable_mode(node.kind, mode));
            self.proc.set_mode(handle, mode)?;
        }
        self.record(node, handle, changes)?;
        let times = Timestamps {
            last_access: timespec(changes.atime),
            last_modification: timespec(changes.mtime),
        };
        if changes.atime != TimeChange::Keep || changes.mtime != TimeChange::Keep {
            self.proc.set_times(handle, &times)?;
        }
        Ok(())
    }

    /// The permission bits that the host's file gets: a program made by the guest must not act for the host user.
    pub(super) fn storable_mode(kind: FileType, mode: u32) -> u32 {
        let mode = mode & 0o7777;
        if kind == FileType::RegularFile { mode & !SET_ID } else { mode }
    }

    /// Remembers owner and set-id bits; see [`crate::owner`].
    fn record(&self, node: &Node, handle: &OwnedFd, changes: Changes) -> Result<(), Errno> {
        let space = self.space(node)?;
        let regular = node.kind == FileType::RegularFile;
        let asked_bits = changes.mode.filter(|_| regular).map(|mode| mode & SET_ID);
        let owner_changes = changes.uid.is_some() || changes.gid.is_some();
        // The common case: nothing was ever recorded and nothing is to be.
        if !space.has_records() && !owner_changes && asked_bits.unwrap_or(0) == 0 {
            return Ok(());
        }
        if !owner_changes && !changes.kill_set_id && asked_bits.is_none() {
            return Ok(());
        }
        let found = status(handle)?;
        let (uid, gid) = space.owners.shown(found.stx_uid, found.stx_gid);
        let plain = Record { uid, gid, bits: 0 };
        let before = Record::read(handle).unwrap_or(plain);
        let group_runs = found.stx_mode & 0o010 != 0;
        let bits = match asked_bits {
            Some(bits) => bits,
            // chown(2), write(2): set-user-id goes, set-group-id only where it means that.
            None if owner_changes || changes.kill_set_id => {
                if group_runs {
                    0
                } else {
                    before.bits & 0o2000
                }
            }
            None => before.bits,
        };
        let after = Record {
            uid: changes.uid.unwrap_or(before.uid),
            gid: changes.gid.unwrap_or(before.gid),
            bits,
        };
        if after == before {
            return Ok(());
        }
        let written = self.with_write_permission(handle, || {
            if after == plain {
                return Record::remove(handle);
            }
            space.will_record();
            after.write(handle)
        });
        match written {
            // Symbolic links, FIFOs, sockets; file systems without user attributes: documented as forgotten.
            Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            result => result,
        }
    }

    /// Set-id bits go because somebody wrote to the file.
    pub(super) fn kill_set_id(&self, node: &Node, handle: &OwnedFd) -> Result<(), Errno> {
        if !self.space(node)?.has_records() {
            return Ok(());
        }
        let changes = Changes {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: TimeChange::Keep,
            mtime: TimeChange::Keep,
            kill_set_id: true,
        };
        self.record(node, handle, changes)
    }

    /// Makes a change on behalf of the guest, and keeps track of what its kernel therefore knows already.
    ///
    /// The file's change time before and after frames the change: if nothing else changed the file since the guest's
    /// view was complete, it is complete again, and the watcher has nothing to tell. A change of the host within the
    /// frame (on kernels before 6.13: within the same tick of the clock) escapes that; see [`crate::watch`].
    pub(super) fn own_change<T>(
        &self,
        node: &Node,
        handle: &OwnedFd,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut own = locked(&node.own);
        let complete = own.known == Some(time(status(handle)?.stx_ctime));
        let result = change();
        if node.is_directory() {
            self.notifier.next_turn();
        }
        own.left = status(handle).ok().map(|found| time(found.stx_ctime));
        if complete {
            own.known = own.left;
            if node.kind == FileType::RegularFile {
                self.watcher.guest_wrote(node);
            }
        } else if own.known.is_some() && node.kind == FileType::RegularFile {
            // The host wrote, and its event has not come yet. It may never find this file: what the guest does now may
            // be a change of the name that the event tells.
            own.known = own.left;
            self.watcher.host_changed();
            self.watcher.guest_wrote(node);
            self.notifier.inval_inode_soon(node.id);
        }
        result
    }

    /// Opens a file of ours for writing, also one whose mode forbids it: the guest's kernel has allowed this write when
    /// the file was opened there, perhaps before the mode changed, or to a root user of the guest.
    pub(super) fn open_for_writing(
        &self,
        handle: &OwnedFd,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        self.with_write_permission(handle, || self.proc.reopen(handle, flags))
    }

    /// Does something that needs write permission on a file of ours, if need be by granting it for the moment.
    fn with_write_permission<T>(
        &self,
        handle: &OwnedFd,
        act: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match act() {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let found = status(handle)?;
        let own = found.stx_uid == rustix::process::geteuid().as_raw();
        let mode = Mode::from_raw_mode(u32::from(found.stx_mode) & 0o7777);
        let regular = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
        if !own || !regular || mode.contains(Mode::WUSR) {
            return Err(Errno::ACCESS);
        }
        self.proc.set_mode(handle, mode | Mode::WUSR)?;
        let result = act();
        self.proc.set_mode(handle, mode)?;
        result
    }
}

/// The number shown: the host's, with other devices in bits that inode numbers rarely reach, so that equal numbers mean
/// hard links also across the host's file systems.
fn shown_inode(status: &Statx) -> u64 {
    mixed_inode(rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino)
}

/// The same from its parts.
pub(super) fn mixed_inode(device: u64, inode: u64) -> u64 {
    inode ^ device.wrapping_mul(0x9E37_79B9_7F4A_7C15) << 48
}

fn timespec(change: TimeChange) -> Timespec {
    match change {
        TimeChange::Keep => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        TimeChange::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        TimeChange::To { seconds, nanoseconds } => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    }
}
