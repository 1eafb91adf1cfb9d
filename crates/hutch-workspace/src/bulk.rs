//! The disk of large contents ([`hutch_wire::workspace::bulk`]) as the worker sees it: a file that the VMM has open too.
//!
//! The guest can write to it at any time, also while it is read here: its bytes are content and nothing else.

use std::os::fd::{AsFd as _, OwnedFd};

use hutch_wire::workspace::bulk;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::host::{read_all, write_all};

/// Makes the file: in memory, without a name, and never of another size.
pub fn file() -> std::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("bulk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, bulk::DISK_BYTES)?;
    let sealed = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, sealed)?;
    Ok(file)
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Bulk(pub(crate) OwnedFd);

impl Bulk {
    /// Writes a content to its place.
    pub(crate) fn put(&self, place: u32, content: &[u8]) -> Result<(), Errno> {
        let offset = bulk::offset(place).ok_or(Errno::INVAL)?;
        match write_all(self.0.as_fd(), content, offset)? {
            written if written == content.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// Reads a content from its place.
    pub(crate) fn take(&self, place: u32, content: &mut [u8]) -> Result<(), Errno> {
        let offset = bulk::offset(place).ok_or(Errno::INVAL)?;
        match read_all(self.0.as_fd(), content, offset)? {
            read if read == content.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}
