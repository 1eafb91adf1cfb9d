//! Listing directories.
//!
//! The guest opens directories without asking, so that a listing has no handle: each request says where the last one
//! ended, in the host file system's own cookies, which stay valid. Recently used listings are kept open, because some
//! file systems (overlay) make a listing anew for each opening.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{RawDir, SeekFrom};
use rustix::io::Errno;

use super::Server;
use super::attributes::mixed_inode;
use crate::abi::{Attributes, DATA_MAX, Entry, Name, ROOT, Read, Reply, Valid};
use crate::host::{Handle, READ_DIRECTORY, hold};
use crate::locked::locked;
use crate::nodes::Node;

/// Listings kept open.
const STREAMS_MAX: usize = 32;
/// Room for host entries: a reply of 4 KiB with attributes takes about 24, which are 1 KiB of the host's.
const HOST_MIN: usize = 1024;
const HOST_MAX: usize = 32 << 10;

/// An open listing and where it stands.
#[derive(Debug)]
struct Stream {
    node: u64,
    offset: u64,
    file: OwnedFd,
}

/// The listings kept open.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<VecDeque<Stream>>);

impl Streams {
    fn take(&self, node: u64, offset: u64) -> Option<OwnedFd> {
        let mut streams = locked(&self.0);
        let at = streams.iter().position(|one| one.node == node && one.offset == offset)?;
        streams.remove(at).map(|stream| stream.file)
    }

    fn put(&self, stream: Stream) {
        let mut streams = locked(&self.0);
        streams.push_back(stream);
        if streams.len() > STREAMS_MAX {
            streams.pop_front();
        }
    }
}

/// A directory being listed into a reply.
struct Listing<'a> {
    server: &'a Server,
    directory: &'a Arc<Node>,
    handle: &'a Handle,
    watched: bool,
    plus: bool,
    size: usize,
}

impl Server {
    pub(super) fn read_directory(
        &self,
        id: u64,
        read: Read,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let size = usize::try_from(read.size).unwrap_or(usize::MAX).min(DATA_MAX);
        if id == ROOT {
            return self.read_root(read.offset, size, plus, reply);
        }
        let (directory, handle) = self.held_directory(id)?;
        let watched = self.watch(&directory, &handle);
        // From the start always anew: a kept listing could hold what is gone.
        let kept = if read.offset == 0 { None } else { self.streams.take(id, read.offset) };
        let file = match kept {
            Some(file) => file,
            None => {
                let file = self.proc.reopen(&handle, READ_DIRECTORY)?;
                rustix::fs::seek(&file, SeekFrom::Start(read.offset))?;
                file
            }
        };
        let listing =
            Listing { server: self, directory: &directory, handle: &handle, watched, plus, size };
        if let Some(offset) = listing.fill(&file, read.offset, reply)? {
            self.streams.put(Stream { node: id, offset, file });
        }
        Ok(())
    }

    fn read_root(
        &self,
        offset: u64,
        size: usize,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, root) in self.roots.iter().enumerate().skip(skip) {
            let name = index.to_string();
            if reply.len() + Reply::dirent_len(name.len(), plus) > size {
                break;
            }
            let entry = self.root_entry(root)?;
            let next = u64::try_from(index + 1).unwrap_or(u64::MAX);
            let kind = entry.attributes.mode >> 12;
            let (plus, inode) = (plus.then_some(&entry), entry.attributes.inode);
            reply.put_dirent(plus, inode, next, kind, name.as_bytes());
        }
        Ok(())
    }
}

impl Listing<'_> {
    /// Fills the reply; gives the offset to go on from, or none at the end.
    fn fill(&self, file: &OwnedFd, start: u64, reply: &mut Reply) -> Result<Option<u64>, Errno> {
        let room = (self.size / 4).clamp(HOST_MIN, HOST_MAX);
        let mut buffer = vec![MaybeUninit::uninit(); room];
        let mut entries = RawDir::new(file, &mut buffer);
        let mut offset = start;
        // The names stay locked: what the guest is told and what is written down about it go together.
        let mut names = self.directory.names();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What is there is worth more than an error, which comes at the next request.
                Err(_) if !reply.is_empty() => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            if reply.len() + Reply::dirent_len(name.count_bytes(), self.plus) > self.size {
                // Read but not told: the next request reads it again.
                rustix::fs::seek(file, SeekFrom::Start(offset))?;
                return Ok(Some(offset));
            }
            offset = entry.next_entry_cookie();
            let found = if self.plus { self.enter(&mut names, name)? } else { Found::Untold };
            let (told, inode, kind) = match found {
                Found::Gone => continue,
                Found::Untold => {
                    let kind = entry.file_type().as_raw_mode() >> 12;
                    (untold(), mixed_inode(self.device(), entry.ino()), kind)
                }
                Found::Told(entry) => (entry, entry.attributes.inode, entry.attributes.mode >> 12),
            };
            reply.put_dirent(self.plus.then_some(&told), inode, offset, kind, name.to_bytes());
        }
        Ok(if reply.is_empty() { None } else { Some(offset) })
    }

    /// The file system that entries are on, unless something is mounted on them.
    fn device(&self) -> u64 {
        self.directory.key.map_or(0, |key| key.device)
    }

    fn enter(&self, names: &mut crate::nodes::Names, name: &CStr) -> Result<Found, Errno> {
        // `.` and `..` are no names: told, but not looked up.
        let Ok(name) = Name::parse(name) else { return Ok(Found::Untold) };
        let held = match hold(&**self.handle, name) {
            Ok(held) => held,
            Err(Errno::NOENT) => return Ok(Found::Gone),
            // A directory that can be listed but not entered; too many files.
            Err(_) => return Ok(Found::Untold),
        };
        match self.server.enter(self.directory, names, name, held, self.watched) {
            Ok((_, entry)) => Ok(Found::Told(entry)),
            Err(_) => Ok(Found::Untold),
        }
    }
}

/// What became of a name in a listing.
enum Found {
    /// Removed meanwhile.
    Gone,
    /// Listed without a node.
    Untold,
    /// Looked up.
    Told(Entry),
}

fn untold() -> Entry {
    let valid = Valid { entry: 0, attributes: 0 };
    Entry { node: 0, valid, attributes: Attributes::default() }
}
