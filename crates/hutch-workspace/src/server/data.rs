//! The content of files.

use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use hutch_wire::workspace::{CODE_BULK, bulk};
use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Server;
use crate::abi::{
    DATA_MAX, Data, Fallocate, ROOT, Read, Reply, WRITE_CACHE, WRITE_KILL_SUIDGID, Write,
};
use crate::host::{READ_DIRECTORY, read_all, status, write_all};
use crate::locked::locked;

/// Bytes copied by one request: a copy must not keep a thread for long.
const COPY_MAX: usize = 32 << 20;

thread_local! {
    /// What is read from the disk of large contents: at most a place.
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Server {
    pub(super) fn read(&self, id: u64, read: Read, reply: &mut Reply) -> Result<(), Errno> {
        let (node, handle) = self.held_file(id)?;
        let file = self.proc.reopen(&handle, OFlags::RDONLY)?;
        if !node.read.swap(true, Ordering::Relaxed)
            && let Some(place) = node.place()
        {
            self.watcher.was_read_in(place.parent);
        }
        let size = usize::try_from(read.size).unwrap_or(usize::MAX).min(DATA_MAX);
        let buffer = reply.buffer();
        let start = buffer.len();
        buffer.resize(start + size, 0);
        // Only the end of the file may cut a read short.
        let filled = read_all(file.as_fd(), &mut buffer[start..], read.offset)?;
        buffer.truncate(start + filled);
        if let (Some(place), Some(disk)) = (read.place, &self.bulk)
            && let Ok(length) = u32::try_from(filled)
            && length >= bulk::WORTH_IT
        {
            disk.put(place, &buffer[start..])?;
            buffer.truncate(start);
            reply.put_u32(length);
            reply.set_code(CODE_BULK);
        }
        Ok(())
    }

    pub(super) fn write(&self, id: u64, write: Write<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let written = match write.data {
            Data::Here(data) => self.write_data(id, write, data)?,
            Data::There { place, size } => {
                let disk = self.bulk.as_ref().ok_or(Errno::INVAL)?;
                let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
                CONTENT.with_borrow_mut(|content| {
                    content.resize(content.len().max(size), 0);
                    let content = content.get_mut(..size).ok_or(Errno::INVAL)?;
                    disk.take(place, content)?;
                    self.write_data(id, write, content)
                })?
            }
        };
        reply.put_u32(u32::try_from(written).unwrap_or(0));
        reply.put_u32(0);
        Ok(())
    }

    fn write_data(&self, id: u64, write: Write<'_>, data: &[u8]) -> Result<usize, Errno> {
        let (node, handle) = self.held_file(id)?;
        self.space(&node)?.may_change(&self.proc, &handle)?;
        // The guest's idea of the end may be old: the host's kernel appends where the end is. Pages written back are
        // where they are.
        let append = write.write_flags & WRITE_CACHE == 0
            && OFlags::from_bits_retain(write.flags).contains(OFlags::APPEND);
        let creator = self.creator(&node, write.handle);
        let written = self.own_change(&node, &handle, || {
            if write.write_flags & WRITE_KILL_SUIDGID != 0 {
                self.kill_set_id(&node, &handle)?;
            }
            match &creator {
                Some(file) if !append => write_all(file.as_fd(), data, write.offset),
                _ => {
                    let flags = if append { OFlags::APPEND } else { OFlags::empty() };
                    let file = self.open_for_writing(&handle, OFlags::WRONLY | flags)?;
                    write_all(file.as_fd(), data, write.offset)
                }
            }
        })?;
        if append {
            // The guest has put the bytes into its cache where it took the end to be.
            let end = write.offset.checked_add(u64::try_from(written).unwrap_or(u64::MAX));
            if Some(status(&*handle)?.stx_size) != end {
                locked(&node.own).known = None;
            }
        }
        Ok(written)
    }

    pub(super) fn fsync(&self, id: u64, data_only: bool) -> Result<(), Errno> {
        let (node, handle) = self.held(id)?;
        if node.kind != FileType::RegularFile {
            return Ok(());
        }
        let file = match self.proc.reopen(&handle, OFlags::RDONLY) {
            Err(Errno::ACCESS) => self.proc.reopen(&handle, OFlags::WRONLY)?,
            file => file?,
        };
        if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(super) fn fsync_directory(&self, id: u64, data_only: bool) -> Result<(), Errno> {
        if id == ROOT {
            return Ok(());
        }
        let (_, handle) = self.held_directory(id)?;
        let file = self.proc.reopen(&handle, READ_DIRECTORY)?;
        if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    /// `sync` in the guest: what it wrote is on the host's disk afterwards.
    pub(super) fn sync_fs(&self) -> Result<(), Errno> {
        for space in self.spaces.iter().filter(|space| !space.read_only) {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&*space.root)?.st_mode);
            let flags = match kind {
                FileType::Directory => READ_DIRECTORY,
                FileType::RegularFile => OFlags::RDONLY,
                _ => continue,
            };
            rustix::fs::syncfs(self.proc.reopen(&space.root, flags)?)?;
        }
        Ok(())
    }

    pub(super) fn fallocate(&self, id: u64, range: Fallocate) -> Result<(), Errno> {
        let (node, handle) = self.held_file(id)?;
        self.space(&node)?.may_change(&self.proc, &handle)?;
        let allowed =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits(range.mode).ok_or(Errno::OPNOTSUPP)?;
        if !allowed.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        self.own_change(&node, &handle, || {
            let file = self.open_for_writing(&handle, OFlags::WRONLY)?;
            rustix::fs::fallocate(file, mode, range.offset, range.length)
        })
    }

    pub(super) fn seek(
        &self,
        id: u64,
        offset: u64,
        whence: u32,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (_, handle) = self.held_file(id)?;
        // Others are the kernel's own business.
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let file = self.proc.reopen(&handle, OFlags::RDONLY)?;
        reply.put_u64(rustix::fs::seek(file, to)?);
        Ok(())
    }

    pub(super) fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (_, source) = self.held_file(from)?;
        let (node, target) = self.held_file(to)?;
        self.space(&node)?.may_change(&self.proc, &target)?;
        let source = self.proc.reopen(&source, OFlags::RDONLY)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(COPY_MAX);
        let copied = self.own_change(&node, &target, || {
            let target = self.open_for_writing(&target, OFlags::WRONLY)?;
            let (mut from, mut to) = (from_offset, to_offset);
            rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length)
        })?;
        reply.put_u32(u32::try_from(copied).unwrap_or(0));
        reply.put_u32(0);
        Ok(())
    }

    pub(super) fn stat_fs(&self, id: u64, reply: &mut Reply) -> Result<(), Errno> {
        let handle = if id == ROOT {
            match self.roots.first() {
                Some(root) => self.nodes.handle(root)?,
                None => return Err(Errno::NOSYS),
            }
        } else {
            self.held(id)?.1
        };
        let found = rustix::fs::fstatvfs(&*handle)?;
        for field in [found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree] {
            reply.put_u64(field);
        }
        for field in [found.f_bsize, found.f_namemax, found.f_frsize] {
            reply.put_u32(u32::try_from(field).unwrap_or(u32::MAX));
        }
        reply.put(&[0; 28]);
        Ok(())
    }
}
