//! The files of a layer as a tree in memory, their content elsewhere; and what one layer on another gives.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use crate::entry::{Entry, EntryPath, Kind, LayerError, Metadata, Refusal, XATTRS_MAX};
use crate::erofs::{Image, Writer};
use crate::tar;

/// Where a file's content is in the image that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Whole blocks, and a rest that waits to be written beside the file's inode.
    Flat {
        /// Bytes of the file.
        size: u64,
        /// Where its blocks start.
        block: u32,
        /// The rest: where it waits and how many bytes it has.
        tail: Option<(u64, u32)>,
    },
    /// Chunks of equal size, or holes.
    Chunks {
        /// Bytes of the file.
        size: u64,
        /// Logarithm of the blocks in a chunk.
        bits: u8,
        /// First block of each chunk; none = a hole.
        chunks: Vec<Option<u32>>,
    },
}

/// Number of a node in its tree.
pub(crate) type NodeId = usize;
pub(crate) const ROOT: NodeId = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory {
        children: BTreeMap<Box<[u8]>, NodeId>,
        opaque: bool,
        /// Nobody said anything about it: it only is on the way to something.
        implied: bool,
    },
    File(Content),
    Symlink(Box<[u8]>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
    Whiteout,
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) node: Node,
    pub(crate) metadata: Metadata,
}

/// The files of a layer.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { inodes: vec![Inode::implied(false)] }
    }
}

impl Inode {
    fn implied(opaque: bool) -> Self {
        let metadata = Metadata { mode: 0o755, ..Metadata::default() };
        let node = Node::Directory { children: BTreeMap::new(), opaque, implied: true };
        Self { node, metadata }
    }
}

/// Largest minor number and largest major number of Linux (`MKDEV`, linux/kdev_t.h).
const MINOR_MAX: u32 = (1 << 20) - 1;
const MAJOR_MAX: u32 = (1 << 12) - 1;

impl Tree {
    /// Reads all of an archive; contents go to `writer`.
    pub fn from_tar<R: Read>(
        reader: &mut tar::Reader<R>,
        writer: &mut Writer,
    ) -> Result<Self, LayerError> {
        let mut tree = Self::default();
        while let Some(entry) = reader.next()? {
            let content = tree.content_of(&entry, writer, reader)?;
            tree.insert(entry, content)?;
        }
        Ok(tree)
    }

    /// Reads all of an image; contents go to `writer`.
    pub fn from_image(image: &Image, writer: &mut Writer) -> Result<Self, LayerError> {
        let mut tree = Self::default();
        image.walk(&mut |entry, content| {
            let content = tree.content_of(&entry, writer, content)?;
            tree.insert(entry, content)
        })?;
        Ok(tree)
    }

    /// Only the directories of an image.
    pub fn directories_of(image: &Image) -> Result<Self, LayerError> {
        let mut tree = Self::default();
        image.walk(&mut |entry, _| match entry.kind {
            Kind::Directory => tree.insert(entry, None),
            _ => Ok(()),
        })?;
        Ok(tree)
    }

    /// Says whether a directory is only on the way to something.
    pub fn has_implied_directories(&self) -> bool {
        let implied = |inode: &Inode| matches!(inode.node, Node::Directory { implied: true, .. });
        self.inodes.iter().any(implied)
    }

    fn content_of(
        &self,
        entry: &Entry,
        writer: &mut Writer,
        content: &mut dyn Read,
    ) -> Result<Option<Content>, LayerError> {
        check(entry)?;
        let Kind::File { size, extents } = &entry.kind else { return Ok(None) };
        // Before gigabytes are written that nobody can use.
        self.find_parent(&entry.path)?;
        let xattrs = &entry.metadata.xattrs;
        writer.add(*size, extents.as_deref(), xattrs, content).map(Some)
    }

    /// Puts an entry in its place; a file comes with its content.
    pub fn insert(&mut self, entry: Entry, content: Option<Content>) -> Result<(), LayerError> {
        check(&entry)?;
        let Entry { path, kind, metadata } = entry;
        let Some((directory, name)) = path.split() else {
            return self.insert_root(&kind, metadata);
        };
        self.find_parent(&path)?;
        let refuse = |refusal| LayerError::refused(path.as_bytes(), refusal);
        let node = match (kind, content) {
            (Kind::Directory, _) => return self.insert_directory(&path, metadata),
            (Kind::Opaque, _) => {
                let id = self.make_directory(&path)?;
                self.hide_below(id);
                return Ok(());
            }
            (Kind::HardLink(target), _) => {
                let target = self.link_target(&target, &path)?;
                let parent = self.make_directory(&directory)?;
                self.children_mut(parent).insert(name.into(), target);
                return Ok(());
            }
            (Kind::Whiteout, _) => return self.insert_whiteout(&directory, name),
            (Kind::File { .. }, Some(content)) => Node::File(content),
            (Kind::File { .. }, None) => return Err(refuse(Refusal::Size)),
            (Kind::Symlink(target), _) => Node::Symlink(target.into()),
            (Kind::CharacterDevice { major, minor }, _) => Node::CharacterDevice(major, minor),
            (Kind::BlockDevice { major, minor }, _) => Node::BlockDevice(major, minor),
            (Kind::Fifo, _) => Node::Fifo,
            (Kind::Socket, _) => Node::Socket,
        };
        let parent = self.make_directory(&directory)?;
        let id = self.push(Inode { node, metadata });
        // Whatever was there before is not in the layer any more; nothing follows it.
        self.children_mut(parent).insert(name.into(), id);
        Ok(())
    }

    fn insert_root(&mut self, kind: &Kind, metadata: Metadata) -> Result<(), LayerError> {
        match kind {
            Kind::Directory => self.describe(ROOT, metadata),
            Kind::Opaque => self.hide_below(ROOT),
            _ => return Err(LayerError::refused(b"/", Refusal::Root)),
        }
        Ok(())
    }

    fn insert_directory(&mut self, path: &EntryPath, metadata: Metadata) -> Result<(), LayerError> {
        let Some((directory, name)) = path.split() else { return Ok(()) };
        let parent = self.make_directory(&directory)?;
        let there = self.children(parent).get(name).copied();
        let id = match there.map(|id| (id, &self.inodes[id].node)) {
            Some((id, Node::Directory { .. })) => id,
            // In place of a file of this layer, or of what is gone from those below.
            other => {
                let hides = matches!(other, Some((_, Node::Whiteout)));
                let id = self.push(Inode::implied(hides));
                self.children_mut(parent).insert(name.into(), id);
                id
            }
        };
        self.describe(id, metadata);
        Ok(())
    }

    /// Gives a directory what an entry of its own says.
    fn describe(&mut self, id: NodeId, metadata: Metadata) {
        let inode = &mut self.inodes[id];
        if let Node::Directory { implied, .. } = &mut inode.node {
            *implied = false;
            inode.metadata = metadata;
        }
    }

    fn hide_below(&mut self, id: NodeId) {
        if let Node::Directory { opaque, .. } = &mut self.inodes[id].node {
            *opaque = true;
        }
    }

    /// Hides what the layers below have, not what this one has.
    fn insert_whiteout(&mut self, directory: &EntryPath, name: &[u8]) -> Result<(), LayerError> {
        let parent = self.make_directory(directory)?;
        match self.children(parent).get(name).copied() {
            Some(id) => {
                self.hide_below(id);
            }
            None => {
                let id = self.push(Inode { node: Node::Whiteout, metadata: Metadata::default() });
                self.children_mut(parent).insert(name.into(), id);
            }
        }
        Ok(())
    }

    fn link_target(&self, target: &EntryPath, path: &EntryPath) -> Result<NodeId, LayerError> {
        let refuse = |refusal| LayerError::refused(path.as_bytes(), refusal);
        let id = self.find(target).ok_or_else(|| refuse(Refusal::LinkTargetMissing))?;
        match self.inodes[id].node {
            Node::Directory { .. } | Node::Whiteout => Err(refuse(Refusal::LinkTargetKind)),
            _ => Ok(id),
        }
    }

    /// Says whether something is at this path, links not followed.
    pub fn has(&self, path: &[u8]) -> bool {
        EntryPath::parse(path).is_ok_and(|path| self.find(&path).is_some())
    }

    fn find(&self, path: &EntryPath) -> Option<NodeId> {
        path.components().try_fold(ROOT, |id, name| match &self.inodes[id].node {
            Node::Directory { children, .. } => children.get(name).copied(),
            _ => None,
        })
    }

    /// Checks that the directories on the way can be there.
    fn find_parent(&self, path: &EntryPath) -> Result<(), LayerError> {
        let Some((directory, _)) = path.split() else { return Ok(()) };
        let mut id = ROOT;
        for name in directory.components() {
            match self.step(id, name, path)? {
                Some(next) => id = next,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// From a directory to one in it; none where nothing is yet.
    fn step(
        &self,
        id: NodeId,
        name: &[u8],
        path: &EntryPath,
    ) -> Result<Option<NodeId>, LayerError> {
        let Some(&next) = self.children(id).get(name) else { return Ok(None) };
        match &self.inodes[next].node {
            Node::Directory { .. } => Ok(Some(next)),
            Node::Whiteout => Ok(None),
            Node::Symlink(_) => Err(LayerError::refused(path.as_bytes(), Refusal::BelowLink)),
            _ => Err(LayerError::refused(path.as_bytes(), Refusal::BelowFile)),
        }
    }

    /// The directory of this path, made where it is missing.
    fn make_directory(&mut self, path: &EntryPath) -> Result<NodeId, LayerError> {
        let mut id = ROOT;
        for name in path.components() {
            id = match self.step(id, name, path)? {
                Some(next) => next,
                None => {
                    // A whiteout says that what was below is gone, and so it is from this directory.
                    let hides = self.children(id).contains_key(name);
                    let made = self.push(Inode::implied(hides));
                    self.children_mut(id).insert(name.into(), made);
                    made
                }
            };
        }
        Ok(id)
    }

    fn push(&mut self, inode: Inode) -> NodeId {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn children(&self, id: NodeId) -> &BTreeMap<Box<[u8]>, NodeId> {
        static NONE: BTreeMap<Box<[u8]>, NodeId> = BTreeMap::new();
        match &self.inodes[id].node {
            Node::Directory { children, .. } => children,
            _ => &NONE,
        }
    }

    /// Of a directory, which the caller knows it to be.
    fn children_mut(&mut self, id: NodeId) -> &mut BTreeMap<Box<[u8]>, NodeId> {
        match &mut self.inodes[id].node {
            Node::Directory { children, .. } => children,
            _ => unreachable!("only directories are asked for their children"),
        }
    }

    /// Puts another layer on this one, whose contents are in the same image.
    pub fn lay_over(&mut self, upper: &Self) {
        let mut moved = HashMap::new();
        self.merge(ROOT, upper, ROOT, &mut moved);
    }

    /// Lays the directory `from` of the upper layer over our directory `to`.
    fn merge(
        &mut self,
        to: NodeId,
        upper: &Self,
        from: NodeId,
        moved: &mut HashMap<NodeId, NodeId>,
    ) {
        let Inode { node: Node::Directory { children, opaque, implied }, metadata } =
            &upper.inodes[from]
        else {
            return;
        };
        if !implied {
            self.inodes[to].metadata.clone_from(metadata);
        }
        if let Node::Directory { children, opaque: is, implied: was } = &mut self.inodes[to].node {
            *was &= implied;
            *is |= opaque;
            if *opaque {
                children.clear();
            }
        }
        for (name, &child) in children {
            let there = self.children(to).get(name).copied();
            let is_directory = |node: &Node| matches!(node, Node::Directory { .. });
            let id = match (there, &upper.inodes[child].node) {
                (Some(there), Node::Directory { .. }) if is_directory(&self.inodes[there].node) => {
                    self.merge(there, upper, child, moved);
                    continue;
                }
                (there, Node::Directory { .. }) => {
                    // It takes the place of a file or whiteout of ours: what is below us stays hidden.
                    let made = self.push(Inode::implied(there.is_some()));
                    self.merge(made, upper, child, moved);
                    made
                }
                _ => match moved.get(&child) {
                    Some(&id) => id,
                    None => {
                        let id = self.push(upper.inodes[child].clone());
                        moved.insert(child, id);
                        id
                    }
                },
            };
            self.children_mut(to).insert(name.clone(), id);
        }
    }

    /// For the lowest layer: there is nothing below that could be hidden.
    pub fn settle(&mut self) {
        let gone: Vec<bool> =
            self.inodes.iter().map(|inode| inode.node == Node::Whiteout).collect();
        for inode in &mut self.inodes {
            if let Node::Directory { children, opaque, .. } = &mut inode.node {
                *opaque = false;
                children.retain(|_, id| !gone[*id]);
            }
        }
    }

    /// Gives directories that were only on the way the owner and permissions that they have in a layer below.
    pub fn take_directories_from(&mut self, lower: &Self) {
        let mut pairs = vec![(ROOT, ROOT)];
        while let Some((ours, theirs)) = pairs.pop() {
            let lower_inode = &lower.inodes[theirs];
            let inode = &mut self.inodes[ours];
            if let Node::Directory { children, opaque, implied } = &mut inode.node {
                if *implied && !*opaque {
                    *implied = matches!(lower_inode.node, Node::Directory { implied: true, .. });
                    inode.metadata.clone_from(&lower_inode.metadata);
                }
                for (name, &child) in children.iter() {
                    let other = lower.children(theirs).get(name);
                    let is_directory = |other: &&NodeId| {
                        matches!(lower.inodes[**other].node, Node::Directory { .. })
                    };
                    if let Some(&other) = other.filter(is_directory) {
                        pairs.push((child, other));
                    }
                }
            }
        }
    }
}

/// What needs no tree to be refused.
fn check(entry: &Entry) -> Result<(), LayerError> {
    let refuse = |refusal| Err(LayerError::refused(entry.path.as_bytes(), refusal));
    let xattrs = &entry.metadata.xattrs;
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let fits = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        name.len() <= 255 && !name.is_empty() && !name.contains(&0) && value.len() < XATTRS_MAX
    };
    if bytes > XATTRS_MAX || !xattrs.iter().all(fits) {
        return refuse(Refusal::Xattrs);
    }
    match entry.kind {
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor }
            if major > MAJOR_MAX || minor > MINOR_MAX =>
        {
            refuse(Refusal::DeviceNumber)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
