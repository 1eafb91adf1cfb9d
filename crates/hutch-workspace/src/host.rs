//! System calls on host files, all through descriptors: no path of the guest ever reaches the kernel as a path.
//!
//! A file is held by an `O_PATH` descriptor, which neither opens it (a FIFO, a device) nor follows it (a symbolic link).
//! What needs a real descriptor or a path goes through `/proc/self/fd/N`: that leads to the very inode, whatever its
//! name is by now.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, openat, statx};
use rustix::io::Errno;

use crate::abi::Name;

/// A held file.
pub(crate) type Handle = Arc<OwnedFd>;

/// Access to `/proc/self/fd` that needs no path any more.
#[derive(Debug)]
pub(crate) struct ProcFd(OwnedFd);

impl ProcFd {
    pub(crate) fn open() -> Result<Self, Errno> {
        rustix::fs::open(
            c"/proc/self/fd",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
    }

    /// Opens the file that is held. Only for regular files and directories: opening anything else may block or act.
    pub(crate) fn reopen(&self, handle: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        openat(&self.0, number(handle), flags, Mode::empty())
    }

    /// Takes hold of an open file.
    pub(crate) fn reopen_path(&self, file: &OwnedFd) -> Result<OwnedFd, Errno> {
        openat(&self.0, number(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// The present path of the held file, as the kernel knows it; ends in ` (deleted)` when it has none.
    pub(crate) fn path(&self, handle: impl AsFd) -> Result<Vec<u8>, Errno> {
        let number = handle.as_fd().as_raw_fd().to_string();
        Ok(rustix::fs::readlinkat(&self.0, number, Vec::with_capacity(256))?.into_bytes())
    }

    /// Changes the mode of the held file, which is no symbolic link.
    pub(crate) fn set_mode(&self, handle: &OwnedFd, mode: Mode) -> Result<(), Errno> {
        rustix::fs::chmodat(&self.0, number(handle), mode, AtFlags::empty())
    }

    /// Changes the times of the held file.
    pub(crate) fn set_times(
        &self,
        handle: &OwnedFd,
        times: &rustix::fs::Timestamps,
    ) -> Result<(), Errno> {
        rustix::fs::utimensat(&self.0, number(handle), times, AtFlags::empty())
    }

    /// Gives the held file another name.
    pub(crate) fn link(
        &self,
        handle: &OwnedFd,
        directory: &OwnedFd,
        name: Name<'_>,
    ) -> Result<(), Errno> {
        // The link followed is the one in /proc; a held symbolic link is not followed further.
        rustix::fs::linkat(
            &self.0,
            number(handle),
            directory,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}

fn number(handle: &OwnedFd) -> String {
    handle.as_raw_fd().to_string()
}

/// The path by which calls without a descriptor reach the held file.
pub(crate) fn proc_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

/// Takes hold of a name in a directory, of whatever kind, without following it.
pub(crate) fn hold(directory: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
    hold_raw(directory, name.as_c_str())
}

/// The same for a name of the host's own.
pub(crate) fn hold_raw(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// The attributes of the held file.
pub(crate) fn status(handle: impl AsFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(handle, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Which file it is, among all that exist at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Inode numbers are reused; a file that is not held open is known by its time of birth as well.
    born: (i64, u32),
}

impl Key {
    pub(crate) fn of(status: &Statx) -> Self {
        let has_birth = status.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            device: rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
            born: if has_birth { time(status.stx_btime) } else { (0, 0) },
        }
    }
}

/// A time as seconds and nanoseconds.
pub(crate) fn time(time: StatxTimestamp) -> (i64, u32) {
    (time.tv_sec, time.tv_nsec)
}

/// Opens for reading what is a directory.
pub(crate) const READ_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Reads as much as there is, at most what `data` has room for; an error counts only if nothing was read.
pub(crate) fn read_all(
    file: BorrowedFd<'_>,
    mut data: &mut [u8],
    mut offset: u64,
) -> Result<usize, Errno> {
    let mut read = 0;
    while !data.is_empty() {
        match rustix::io::pread(file, &mut *data, offset) {
            Ok(0) => break,
            Ok(count) => {
                read += count;
                data = data.get_mut(count..).unwrap_or_default();
                offset = advanced(offset, count);
            }
            Err(Errno::INTR) => {}
            Err(error) if read == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(read)
}

/// Writes as much as the host takes; an error counts only if nothing was written.
pub(crate) fn write_all(
    file: BorrowedFd<'_>,
    mut data: &[u8],
    mut offset: u64,
) -> Result<usize, Errno> {
    let mut written = 0;
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, offset) {
            Ok(0) => break,
            Ok(count) => {
                written += count;
                data = data.get(count..).unwrap_or_default();
                offset = advanced(offset, count);
            }
            Err(Errno::INTR) => {}
            Err(error) if written == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(written)
}

/// Past the largest offset the kernel refuses.
fn advanced(offset: u64, count: usize) -> u64 {
    offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX))
}
