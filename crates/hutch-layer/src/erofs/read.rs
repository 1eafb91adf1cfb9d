//! From an image to entries. The image may come from elsewhere, so nothing in it is believed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use super::format::{
    BLOCK_BITS, CHUNK_BITS_MASK, CHUNK_INDEXES, COMPACT_INODE, DIRENT, EXTENDED, EXTENDED_INODE,
    LAYOUT_CHUNKS, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, NO_BLOCK, OVERLAY_OPAQUE, S_IFBLK, S_IFCHR,
    S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, SLOT, SUPERBLOCK_AT, SUPERBLOCK_SIZE,
    XATTR_ENTRY, XATTR_HEADER, XATTR_PREFIXES, device_parts,
};
use crate::entry::{Entry, EntryPath, Kind, LayerError, Limits, Metadata, PATH_MAX};

const BLOCK: u64 = 1 << BLOCK_BITS;
/// Largest directory that is read; a million long names fit.
const DIRECTORY_MAX: u64 = 512 << 20;
const OTHER_FORMAT: LayerError =
    LayerError::Damaged("the image is compressed or of a format that cannot be taken apart");
const DAMAGED: LayerError = LayerError::Damaged("the image contradicts itself");

/// An image that can be taken apart.
#[derive(Debug)]
pub struct Image {
    file: File,
    limits: Limits,
    root: u64,
    meta: u64,
    xattrs: u64,
}

/// An inode as far as it is needed.
#[derive(Debug, Clone)]
struct Inode {
    layout: u16,
    mode: u16,
    size: u64,
    field: u32,
    metadata: Metadata,
    links: u32,
    /// Where what stands beside it begins.
    beside: u64,
}

impl Image {
    /// Opens an image, if it is one without compression.
    pub fn open(file: File, limits: Limits) -> Result<Self, LayerError> {
        let mut superblock = [0; SUPERBLOCK_SIZE];
        file.read_exact_at(&mut superblock, SUPERBLOCK_AT).map_err(LayerError::Read)?;
        if u32_at(&superblock, 0) != MAGIC || superblock[12] != BLOCK_BITS {
            return Err(OTHER_FORMAT);
        }
        Ok(Self {
            file,
            limits,
            root: u64::from(u16_at(&superblock, 14)),
            meta: u64::from(u32_at(&superblock, 40)) * BLOCK,
            xattrs: u64::from(u32_at(&superblock, 44)) * BLOCK,
        })
    }

    /// Shows every file, each directory before what is in it, with its content.
    pub fn walk(
        &self,
        visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let mut walk = Walk { left: self.limits.entries, bytes: 0, ..Walk::default() };
        let mut waiting = vec![(EntryPath::default(), self.root)];
        while let Some((path, number)) = waiting.pop() {
            if !walk.directories.insert(number) {
                return Err(DAMAGED);
            }
            let inode = self.inode(number)?;
            if inode.mode & S_IFMT != S_IFDIR {
                return Err(DAMAGED);
            }
            self.show_directory(&path, &inode, visit)?;
            let before = waiting.len();
            for (name, child) in self.names(&inode)? {
                walk.left = walk.left.checked_sub(1).ok_or(LayerError::TooMuch {
                    what: "files",
                    limit: self.limits.entries as u64,
                })?;
                let path = path.join(&name);
                // The limits of a path hold for images too.
                let path = EntryPath::parse(path.as_bytes())?;
                let inode = self.inode(child)?;
                if inode.mode & S_IFMT == S_IFDIR {
                    waiting.push((path, child));
                } else {
                    self.show_file(path, child, &inode, &mut walk, visit)?;
                }
            }
            waiting[before..].reverse();
        }
        Ok(())
    }

    fn show_directory(
        &self,
        path: &EntryPath,
        inode: &Inode,
        visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let mut metadata = inode.metadata.clone();
        let opaque = metadata.xattrs.remove(OVERLAY_OPAQUE).is_some();
        let entry = |kind, metadata| Entry { path: path.clone(), kind, metadata };
        visit(entry(Kind::Directory, metadata), &mut io::empty())?;
        if opaque {
            visit(entry(Kind::Opaque, Metadata::default()), &mut io::empty())?;
        }
        Ok(())
    }

    fn show_file(
        &self,
        path: EntryPath,
        number: u64,
        inode: &Inode,
        walk: &mut Walk,
        visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let metadata = inode.metadata.clone();
        if inode.links > 1 {
            if let Some(first) = walk.linked.get(&number) {
                let kind = Kind::HardLink(first.clone());
                return visit(Entry { path, kind, metadata }, &mut io::empty());
            }
            walk.linked.insert(number, path.clone());
        }
        let (major, minor) = device_parts(inode.field);
        let kind = match inode.mode & S_IFMT {
            S_IFREG => {
                walk.bytes = walk.bytes.saturating_add(inode.size);
                if walk.bytes > self.limits.bytes {
                    let limit = self.limits.bytes;
                    return Err(LayerError::TooMuch { what: "bytes", limit });
                }
                let size = inode.size;
                let mut content = Content { image: self, inode, at: 0 };
                let kind = Kind::File { size, extents: None };
                return visit(Entry { path, kind, metadata }, &mut content);
            }
            S_IFLNK => {
                if inode.size == 0 || inode.size >= PATH_MAX as u64 {
                    return Err(DAMAGED);
                }
                Kind::Symlink(self.whole(inode)?)
            }
            S_IFCHR if inode.field == 0 => Kind::Whiteout,
            S_IFCHR => Kind::CharacterDevice { major, minor },
            S_IFBLK => Kind::BlockDevice { major, minor },
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return Err(DAMAGED),
        };
        visit(Entry { path, kind, metadata }, &mut io::empty())
    }

    fn inode(&self, number: u64) -> Result<Inode, LayerError> {
        let at =
            number.checked_mul(SLOT).and_then(|at| at.checked_add(self.meta)).ok_or(DAMAGED)?;
        let mut bytes = [0; EXTENDED_INODE];
        self.read(&mut bytes[..COMPACT_INODE], at)?;
        let format = u16_at(&bytes, 0);
        let layout = (format >> 1) & 7;
        let extended = format & EXTENDED != 0;
        if extended {
            self.read(&mut bytes[COMPACT_INODE..], at + COMPACT_INODE as u64)?;
        }
        let mut metadata = Metadata::default();
        let (size, links, length) = if extended {
            (metadata.uid, metadata.gid) = (u32_at(&bytes, 24), u32_at(&bytes, 28));
            metadata.mtime = u64_at(&bytes, 32).cast_signed();
            metadata.mtime_nsec = u32_at(&bytes, 40).min(999_999_999);
            (u64_at(&bytes, 8), u32_at(&bytes, 44), EXTENDED_INODE)
        } else {
            metadata.uid = u32::from(u16_at(&bytes, 24));
            metadata.gid = u32::from(u16_at(&bytes, 26));
            (u64::from(u32_at(&bytes, 8)), u32::from(u16_at(&bytes, 6)), COMPACT_INODE)
        };
        if ![LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKS].contains(&layout) {
            return Err(OTHER_FORMAT);
        }
        let mode = u16_at(&bytes, 4);
        metadata.mode = mode & 0o7777;
        let count = usize::from(u16_at(&bytes, 2));
        let xattrs = if count == 0 { 0 } else { XATTR_HEADER + (count - 1) * 4 };
        let place = at + length as u64;
        if count > 0 {
            let mut bytes = vec![0; xattrs];
            self.read(&mut bytes, place)?;
            metadata.xattrs = self.xattrs(&bytes)?;
        }
        let field = u32_at(&bytes, 16);
        Ok(Inode { layout, mode, size, field, metadata, links, beside: place + xattrs as u64 })
    }

    /// The attributes beside an inode, and those that it shares with others.
    fn xattrs(&self, bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, LayerError> {
        let mut xattrs = BTreeMap::new();
        let shared = usize::from(bytes[4]) * 4;
        let mut own = bytes.get(XATTR_HEADER + shared..).ok_or(DAMAGED)?;
        for number in bytes[XATTR_HEADER..XATTR_HEADER + shared].chunks_exact(4) {
            let at = self.xattrs + u64::from(u32_at(number, 0)) * 4;
            let mut head = [0; XATTR_ENTRY];
            self.read(&mut head, at)?;
            let mut entry = vec![0; entry_length(&head)];
            self.read(&mut entry, at)?;
            xattrs.extend(xattr(&entry));
        }
        while own.len() >= XATTR_ENTRY && own[..XATTR_ENTRY] != [0; XATTR_ENTRY] {
            let length = entry_length(own);
            xattrs.extend(xattr(own.get(..length).ok_or(DAMAGED)?));
            own = own.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(xattrs)
    }

    /// Names and inodes of a directory without its own and its parent's.
    fn names(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, u64)>, LayerError> {
        if directory.size > DIRECTORY_MAX {
            return Err(DAMAGED);
        }
        let content = self.whole(directory)?;
        let mut names = Vec::new();
        let block = usize::try_from(BLOCK).unwrap_or(0);
        for block in content.chunks(block).filter(|block| !block.is_empty()) {
            let first = block.get(8..10).map_or(0, |_| usize::from(u16_at(block, 8)));
            if first < DIRENT || first % DIRENT != 0 || first > block.len() {
                return Err(DAMAGED);
            }
            let entries: Vec<&[u8]> = block[..first].chunks_exact(DIRENT).collect();
            for (at, entry) in entries.iter().enumerate() {
                let start = usize::from(u16_at(entry, 8));
                let end = entries.get(at + 1).map_or(block.len(), |next| u16_at(next, 8).into());
                let name = block.get(start..end).ok_or(DAMAGED)?;
                // The last name of a block is filled up.
                let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
                match name {
                    b"." | b".." => {}
                    _ if name.is_empty() || name.contains(&b'/') => return Err(DAMAGED),
                    _ => names.push((name.to_vec(), u64_at(entry, 0))),
                }
            }
        }
        Ok(names)
    }

    fn whole(&self, inode: &Inode) -> Result<Vec<u8>, LayerError> {
        let mut content = vec![0; usize::try_from(inode.size).map_err(|_| DAMAGED)?];
        let mut at = 0;
        while at < content.len() {
            at += self.content(inode, at as u64, &mut content[at..])?;
        }
        Ok(content)
    }

    /// Reads a piece of a file; fewer bytes than asked for, but some, until its end.
    fn content(&self, inode: &Inode, at: u64, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let left = inode.size.saturating_sub(at);
        let (place, here) = match inode.layout {
            LAYOUT_INLINE if at >= inode.size / BLOCK * BLOCK => {
                (Some(inode.beside + at % BLOCK), left)
            }
            LAYOUT_INLINE => {
                let end = inode.size / BLOCK * BLOCK;
                (Some(u64::from(inode.field) * BLOCK + at), end - at)
            }
            LAYOUT_PLAIN => (Some(u64::from(inode.field) * BLOCK + at), left),
            LAYOUT_CHUNKS => self.chunk(inode, at, left)?,
            _ => return Err(OTHER_FORMAT),
        };
        let count = usize::try_from(here).unwrap_or(usize::MAX).min(buffer.len());
        match place {
            Some(place) => self.read(&mut buffer[..count], place)?,
            None => buffer[..count].fill(0),
        }
        Ok(count)
    }

    /// Where a piece of a file in chunks is, none = a hole, and how much of it.
    fn chunk(&self, inode: &Inode, at: u64, left: u64) -> Result<(Option<u64>, u64), LayerError> {
        let format = u16::try_from(inode.field & 0xffff).unwrap_or(0);
        if format & CHUNK_INDEXES != 0 {
            return Err(OTHER_FORMAT);
        }
        let chunk = BLOCK << (format & CHUNK_BITS_MASK);
        let mut entry = [0; 4];
        self.read(&mut entry, inode.beside + at / chunk * 4)?;
        let block = u32::from_le_bytes(entry);
        let place = (block != NO_BLOCK).then(|| u64::from(block) * BLOCK + at % chunk);
        Ok((place, left.min(chunk - at % chunk)))
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), LayerError> {
        match self.file.read_exact_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(DAMAGED),
            result => result.map_err(LayerError::Read),
        }
    }
}

/// What was seen on the way.
#[derive(Debug, Default)]
struct Walk {
    left: usize,
    bytes: u64,
    directories: HashSet<u64>,
    /// Files with several names, by their first one.
    linked: HashMap<u64, EntryPath>,
}

/// The content of a file as a stream.
struct Content<'a> {
    image: &'a Image,
    inode: &'a Inode,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.at >= self.inode.size {
            return Ok(0);
        }
        let count =
            self.image.content(self.inode, self.at, buffer).map_err(|error| match error {
                LayerError::Read(error) => error,
                error => io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
        self.at += count as u64;
        Ok(count)
    }
}

fn entry_length(entry: &[u8]) -> usize {
    XATTR_ENTRY + usize::from(entry[0]) + usize::from(u16_at(entry, 2))
}

/// Name and value of an attribute; none where its name is of a kind that nothing here has.
fn xattr(entry: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let name = entry.get(XATTR_ENTRY..)?;
    let (name, value) = name.split_at_checked(usize::from(entry[0]))?;
    let (_, prefix) = XATTR_PREFIXES.iter().find(|(index, _)| *index == entry[1])?;
    Some(([*prefix, name].concat(), value.to_vec()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
