//! The content of files.

use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Server;
use crate::abi::{DATA_MAX, Fallocate, ROOT, Read, Reply, WRITE_CACHE, WRITE_KILL_SUIDGID, Write};
use crate::host::{READ_DIRECTORY, status};
use crate::locked::locked;

/// Bytes copied by one request: a copy must not keep a thread for long.
const COPY_MAX: usize = 32 << 20;

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
        let mut filled = 0;
        // Only the end of the file may cut a read short.
        while filled < size {
            let offset = u64::try_from(filled).unwrap_or(u64::MAX);
            let offset = read.offset.checked_add(offset).ok_or(Errno::INVAL)?;
            match rustix::io::pread(&file, &mut buffer[start + filled..], offset) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) if filled == 0 => return Err(error),
                Err(_) => break,
            }
        }
        buffer.truncate(start + filled);
        Ok(())
    }

    pub(super) fn write(&self, id: u64, write: Write<'_>, reply: &mut Reply) -> Result<(), Errno> {
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
                Some(file) if !append => write_all(file, write.data, write.offset),
                _ => {
                    let flags = if append { OFlags::APPEND } else { OFlags::empty() };
                    let file = self.open_for_writing(&handle, OFlags::WRONLY | flags)?;
                    write_all(&file, write.data, write.offset)
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
        reply.put_u32(u32::try_from(written).unwrap_or(0));
        reply.put_u32(0);
        Ok(())
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

/// Writes as much as the host takes; an error counts only if nothing was written.
fn write_all(
    file: impl std::os::fd::AsFd,
    mut data: &[u8],
    mut offset: u64,
) -> Result<usize, Errno> {
    let mut written = 0;
    while !data.is_empty() {
        match rustix::io::pwrite(&file, data, offset) {
            Ok(0) => break,
            Ok(count) => {
                written += count;
                data = data.get(count..).unwrap_or_default();
                let count = u64::try_from(count).unwrap_or(u64::MAX);
                offset = offset.saturating_add(count);
            }
            Err(Errno::INTR) => {}
            Err(error) if written == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(written)
}
