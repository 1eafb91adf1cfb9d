//! From a tree and its contents to an image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::FileExt as _;

use super::format::{
    BLOCK, BLOCK_BITS, BLOCK_SIZE, COMPAT_MTIME, DIRENT, EXTENDED, EXTENDED_INODE, INCOMPAT_CHUNKS,
    LAYOUT_CHUNKS, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, NO_BLOCK, OVERLAY_OPAQUE, S_IFBLK, S_IFCHR,
    S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK, SLOT, SLOT_SIZE, SUPERBLOCK_AT, SUPERBLOCK_SIZE,
    device, xattr_bytes,
};
use crate::entry::{Extent, LayerError};
use crate::tree::{Content, Inode, Node, NodeId, ROOT, Tree};

/// Most chunks of a sparse file: their map stays small, so chunks of a large file are large.
const CHUNKS_MAX: u64 = 1 << 14;
/// Contents are copied in pieces of this size.
const PIECE: usize = 256 << 10;
/// Blocks of inodes that may still get one; more are not looked at.
const OPEN_BLOCKS: usize = 16;

/// Writes an image: first contents, as they come, then the tree.
#[derive(Debug)]
pub struct Writer {
    image: File,
    /// The next block that is free.
    next: u64,
    /// Rests of files, on their way to the place beside their inodes.
    tails: BufWriter<File>,
    tails_length: u64,
}

impl Writer {
    /// An image into an empty file, with another empty file for what has to wait.
    pub fn new(image: File, scratch: File) -> Self {
        Self { image, next: 1, tails: BufWriter::with_capacity(PIECE, scratch), tails_length: 0 }
    }

    /// Takes the content of a file of `size` bytes, or of its extents; `xattrs` take room beside the inode.
    pub fn add(
        &mut self,
        size: u64,
        extents: Option<&[Extent]>,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
        content: &mut dyn Read,
    ) -> Result<Content, LayerError> {
        if let Some(extents) = extents {
            return self.add_sparse(size, extents, content);
        }
        let start = self.next;
        let rest = usize::try_from(size % BLOCK).unwrap_or(0);
        self.copy(content, size - rest as u64)?;
        let mut tail = vec![0; rest];
        content.read_exact(&mut tail).map_err(LayerError::Read)?;
        let tail = if tail.is_empty() {
            None
        } else if EXTENDED_INODE + xattr_bytes(xattrs).len() + rest <= BLOCK_SIZE {
            let at = self.tails_length;
            self.tails.write_all(&tail).map_err(LayerError::Write)?;
            self.tails_length += rest as u64;
            Some((at, u32::try_from(rest).unwrap_or(0)))
        } else {
            tail.resize(BLOCK_SIZE, 0);
            self.blocks(&tail)?;
            None
        };
        Ok(Content::Flat { size, block: block_number(start)?, tail })
    }

    fn add_sparse(
        &mut self,
        size: u64,
        extents: &[Extent],
        content: &mut dyn Read,
    ) -> Result<Content, LayerError> {
        let mut bits = 0_u8;
        while size.div_ceil(BLOCK << bits) > CHUNKS_MAX {
            bits += 1;
        }
        let chunk = BLOCK << bits;
        let mut extents = extents.iter().copied().filter(|extent| extent.length > 0).peekable();
        let mut chunks = Vec::new();
        let mut at = 0;
        while at < size {
            let end = (at + chunk).min(size);
            if extents.peek().is_none_or(|extent| extent.offset >= end) {
                chunks.push(None);
                at = end;
                continue;
            }
            let length = usize::try_from(end - at).unwrap_or(0);
            let mut bytes = vec![0; length.next_multiple_of(BLOCK_SIZE)];
            while let Some(extent) = extents.next_if(|extent| extent.offset < end) {
                let stop = (extent.offset + extent.length).min(end);
                let from = usize::try_from(extent.offset.max(at) - at).unwrap_or(0);
                let to = usize::try_from(stop - at).unwrap_or(0);
                content.read_exact(&mut bytes[from..to]).map_err(LayerError::Read)?;
                if extent.offset + extent.length > end {
                    break;
                }
            }
            chunks.push(Some(block_number(self.next)?));
            self.blocks(&bytes)?;
            at = end;
        }
        Ok(Content::Chunks { size, bits, chunks })
    }

    /// Copies whole blocks.
    fn copy(&mut self, content: &mut dyn Read, bytes: u64) -> Result<(), LayerError> {
        let mut piece = vec![0; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE))];
        let mut rest = bytes;
        while rest > 0 {
            let count = piece.len().min(usize::try_from(rest).unwrap_or(PIECE));
            content.read_exact(&mut piece[..count]).map_err(LayerError::Read)?;
            self.blocks(&piece[..count])?;
            rest -= count as u64;
        }
        Ok(())
    }

    /// Puts whole blocks where the next ones go.
    fn blocks(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.image.write_all_at(bytes, self.next * BLOCK).map_err(LayerError::Write)?;
        self.next += bytes.len() as u64 / BLOCK;
        Ok(())
    }

    /// Writes the tree, and gives the image, complete but not synced.
    pub fn finish(mut self, tree: &Tree) -> Result<File, LayerError> {
        self.tails.flush().map_err(LayerError::Write)?;
        let plan = Plan::new(tree);
        let mut links = vec![0_u32; tree.inodes.len()];
        for &id in &plan.order {
            if let Node::Directory { children, .. } = &tree.inodes[id].node {
                // Its own name and `.`; each directory in it adds `..`.
                links[id] += 1;
                for &child in children.values() {
                    links[child] += 1;
                    if matches!(tree.inodes[child].node, Node::Directory { .. }) {
                        links[id] += 1;
                    }
                }
            }
        }
        links[ROOT] += 1;
        let meta = self.next + plan.blocks;
        for (number, &id) in plan.order.iter().enumerate() {
            let number = u32::try_from(number + 1).unwrap_or(u32::MAX);
            self.inode(tree, &plan, id, meta * BLOCK, (number, links[id]))?;
        }
        let total = meta + plan.meta.blocks();
        self.image.set_len(total * BLOCK).map_err(LayerError::Write)?;
        let superblock = superblock(&plan, block_number(meta)?, block_number(total)?);
        self.image.write_all_at(&superblock, SUPERBLOCK_AT).map_err(LayerError::Write)?;
        Ok(self.image)
    }

    /// One inode with what stands beside it.
    fn inode(
        &mut self,
        tree: &Tree,
        plan: &Plan,
        id: NodeId,
        meta: u64,
        (number, links): (u32, u32),
    ) -> Result<(), LayerError> {
        let Inode { node, metadata } = &tree.inodes[id];
        let xattrs = xattrs_of(tree, id);
        let mut bytes = vec![0; EXTENDED_INODE];
        bytes.extend_from_slice(&xattrs);
        let (layout, size, field) = match node {
            Node::File(Content::Flat { size, block, tail }) => {
                let layout = match tail {
                    Some((at, length)) => {
                        let from = bytes.len();
                        bytes.resize(from + *length as usize, 0);
                        let tails = self.tails.get_ref();
                        tails.read_exact_at(&mut bytes[from..], *at).map_err(LayerError::Read)?;
                        LAYOUT_INLINE
                    }
                    None => LAYOUT_PLAIN,
                };
                (layout, *size, *block)
            }
            Node::File(Content::Chunks { size, bits, chunks }) => {
                // The map is aligned to its entries, and so is everything before it.
                bytes.extend(chunks.iter().flat_map(|at| at.unwrap_or(NO_BLOCK).to_le_bytes()));
                (LAYOUT_CHUNKS, *size, u32::from(*bits))
            }
            Node::Directory { .. } | Node::Symlink(_) => {
                let content = content(tree, plan, id);
                let size = content.len() as u64;
                let whole = content.len() / BLOCK_SIZE * BLOCK_SIZE;
                let start = block_number(self.next)?;
                self.blocks(&content[..whole])?;
                let mut rest = content[whole..].to_vec();
                if bytes.len() + rest.len() <= BLOCK_SIZE && !rest.is_empty() {
                    bytes.extend_from_slice(&rest);
                    (LAYOUT_INLINE, size, start)
                } else {
                    rest.resize(rest.len().next_multiple_of(BLOCK_SIZE), 0);
                    self.blocks(&rest)?;
                    (LAYOUT_PLAIN, size, start)
                }
            }
            Node::CharacterDevice(major, minor) | Node::BlockDevice(major, minor) => {
                (LAYOUT_PLAIN, 0, device(*major, *minor))
            }
            Node::Fifo | Node::Socket | Node::Whiteout => (LAYOUT_PLAIN, 0, 0),
        };
        let count = match xattrs.len() {
            0 => 0,
            length => u16::try_from((length - 12) / 4 + 1).unwrap_or(0),
        };
        put(&mut bytes, 0, &(EXTENDED | layout << 1).to_le_bytes());
        put(&mut bytes, 2, &count.to_le_bytes());
        put(&mut bytes, 4, &(kind(node).0 | metadata.mode & 0o7777).to_le_bytes());
        put(&mut bytes, 8, &size.to_le_bytes());
        put(&mut bytes, 16, &field.to_le_bytes());
        put(&mut bytes, 20, &number.to_le_bytes());
        put(&mut bytes, 24, &metadata.uid.to_le_bytes());
        put(&mut bytes, 28, &metadata.gid.to_le_bytes());
        put(&mut bytes, 32, &metadata.mtime.to_le_bytes());
        put(&mut bytes, 40, &metadata.mtime_nsec.to_le_bytes());
        put(&mut bytes, 44, &links.to_le_bytes());
        self.image.write_all_at(&bytes, meta + plan.place[id]).map_err(LayerError::Write)
    }
}

/// Where everything of a tree goes.
#[derive(Debug)]
struct Plan {
    /// The inodes that the image has: each directory before what is in it.
    order: Vec<NodeId>,
    /// Where each of them is in the area of inodes.
    place: Vec<u64>,
    parent: Vec<NodeId>,
    /// Blocks that directories and links need for themselves.
    blocks: u64,
    meta: MetaArea,
    has_chunks: bool,
}

impl Plan {
    fn new(tree: &Tree) -> Self {
        let count = tree.inodes.len();
        let mut plan = Self {
            order: Vec::new(),
            place: vec![0; count],
            parent: vec![ROOT; count],
            blocks: 0,
            meta: MetaArea::default(),
            has_chunks: false,
        };
        // Inode number 0 means "none" to some programs.
        plan.meta.take(EXTENDED_INODE);
        plan.add(tree, ROOT);
        let mut directories = vec![ROOT];
        while let Some(directory) = directories.pop() {
            let Node::Directory { children, .. } = &tree.inodes[directory].node else { continue };
            let before = directories.len();
            for &child in children.values() {
                if plan.place[child] != 0 {
                    continue;
                }
                plan.parent[child] = directory;
                plan.add(tree, child);
                if matches!(tree.inodes[child].node, Node::Directory { .. }) {
                    directories.push(child);
                }
            }
            directories[before..].reverse();
        }
        plan
    }

    fn add(&mut self, tree: &Tree, id: NodeId) {
        let head = EXTENDED_INODE + xattrs_of(tree, id).len();
        let mut beside = |bytes: u64| {
            let rest = usize::try_from(bytes % BLOCK).unwrap_or(0);
            let fits = head + rest <= BLOCK_SIZE;
            self.blocks += bytes / BLOCK + u64::from(!fits);
            if fits { rest } else { 0 }
        };
        let beside = match &tree.inodes[id].node {
            Node::File(Content::Flat { tail, .. }) => tail.map_or(0, |(_, length)| length as usize),
            Node::File(Content::Chunks { chunks, .. }) => {
                self.has_chunks = true;
                chunks.len() * 4
            }
            Node::Directory { children, .. } => beside(directory_size(children.keys())),
            Node::Symlink(target) => beside(target.len() as u64),
            _ => 0,
        };
        self.place[id] = self.meta.take(head + beside);
        self.order.push(id);
    }

    fn number(&self, meta_place: NodeId) -> u64 {
        self.place[meta_place] / SLOT
    }
}

/// Gives out places for inodes: nothing that fits a block crosses into the next.
#[derive(Debug, Default)]
struct MetaArea {
    next: u64,
    /// Places with room left: where, and how much.
    open: Vec<(u64, usize)>,
}

impl MetaArea {
    fn take(&mut self, bytes: usize) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT_SIZE);
        let fitting = self.open.iter_mut().filter(|(_, room)| *room >= bytes);
        if let Some(place) = fitting.min_by_key(|(_, room)| *room) {
            let at = place.0;
            *place = (at + bytes as u64, place.1 - bytes);
            return at;
        }
        let at = self.next;
        let blocks = bytes.div_ceil(BLOCK_SIZE);
        self.next += blocks as u64 * BLOCK;
        let room = blocks * BLOCK_SIZE - bytes;
        self.open.push((at + bytes as u64, room));
        if self.open.len() > OPEN_BLOCKS {
            let fullest = (0..self.open.len()).min_by_key(|&at| self.open[at].1).unwrap_or(0);
            self.open.swap_remove(fullest);
        }
        at
    }

    fn blocks(&self) -> u64 {
        self.next / BLOCK
    }
}

fn xattrs_of(tree: &Tree, id: NodeId) -> Vec<u8> {
    let inode = &tree.inodes[id];
    match inode.node {
        Node::Directory { opaque: true, .. } => {
            let mut xattrs = inode.metadata.xattrs.clone();
            xattrs.insert(OVERLAY_OPAQUE.to_vec(), b"y".to_vec());
            xattr_bytes(&xattrs)
        }
        _ => xattr_bytes(&inode.metadata.xattrs),
    }
}

/// Type bits of the mode, and the number that a directory has for it.
fn kind(node: &Node) -> (u16, u8) {
    match node {
        Node::File(_) => (S_IFREG, 1),
        Node::Directory { .. } => (S_IFDIR, 2),
        Node::CharacterDevice(..) | Node::Whiteout => (S_IFCHR, 3),
        Node::BlockDevice(..) => (S_IFBLK, 4),
        Node::Fifo => (S_IFIFO, 5),
        Node::Socket => (S_IFSOCK, 6),
        Node::Symlink(_) => (S_IFLNK, 7),
    }
}

/// Every name of a directory in the order that the kernel searches, with its own and its parent's.
fn names<'a>(children: impl Iterator<Item = &'a Box<[u8]>>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> =
        children.map(AsRef::as_ref).chain([b".".as_slice(), b".."]).collect();
    names.sort_unstable();
    names
}

/// How many of the names fill the first block, and how many bytes of it.
fn first_block(names: &[&[u8]]) -> (usize, usize) {
    let mut used = 0;
    for (at, name) in names.iter().enumerate() {
        if used + DIRENT + name.len() > BLOCK_SIZE {
            return (at, used);
        }
        used += DIRENT + name.len();
    }
    (names.len(), used)
}

fn directory_size<'a>(children: impl Iterator<Item = &'a Box<[u8]>>) -> u64 {
    let names = names(children);
    let mut rest = names.as_slice();
    let mut size = 0;
    loop {
        let (count, used) = first_block(rest);
        rest = &rest[count..];
        if rest.is_empty() {
            return size + used as u64;
        }
        size += BLOCK;
    }
}

/// What a directory or a link has as its content.
fn content(tree: &Tree, plan: &Plan, id: NodeId) -> Vec<u8> {
    let children = match &tree.inodes[id].node {
        Node::Directory { children, .. } => children,
        Node::Symlink(target) => return target.to_vec(),
        _ => return Vec::new(),
    };
    let names = names(children.keys());
    let mut content = Vec::new();
    let mut rest = names.as_slice();
    while !rest.is_empty() {
        content.resize(content.len().next_multiple_of(BLOCK_SIZE), 0);
        let (here, later) = rest.split_at(first_block(rest).0);
        let mut name_at = here.len() * DIRENT;
        for name in here {
            let child = match *name {
                b"." => id,
                b".." => plan.parent[id],
                name => children.get(name).copied().unwrap_or(ROOT),
            };
            content.extend_from_slice(&plan.number(child).to_le_bytes());
            content.extend_from_slice(&u16::try_from(name_at).unwrap_or(0).to_le_bytes());
            content.extend_from_slice(&[kind(&tree.inodes[child].node).1, 0]);
            name_at += name.len();
        }
        here.iter().for_each(|name| content.extend_from_slice(name));
        rest = later;
    }
    content
}

fn superblock(plan: &Plan, meta: u32, blocks: u32) -> [u8; SUPERBLOCK_SIZE] {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    let root = u16::try_from(plan.number(ROOT)).unwrap_or(0);
    put(&mut bytes, 0, &MAGIC.to_le_bytes());
    put(&mut bytes, 8, &COMPAT_MTIME.to_le_bytes());
    put(&mut bytes, 12, &[BLOCK_BITS]);
    put(&mut bytes, 14, &root.to_le_bytes());
    put(&mut bytes, 16, &(plan.order.len() as u64).to_le_bytes());
    put(&mut bytes, 36, &blocks.to_le_bytes());
    put(&mut bytes, 40, &meta.to_le_bytes());
    let incompatible = if plan.has_chunks { INCOMPAT_CHUNKS } else { 0 };
    put(&mut bytes, 80, &incompatible.to_le_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn block_number(block: u64) -> Result<u32, LayerError> {
    u32::try_from(block).map_err(|_| LayerError::Write(io::ErrorKind::FileTooLarge.into()))
}
