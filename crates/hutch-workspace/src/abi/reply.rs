//! Replies and notifications: values into bytes for the guest's kernel.

use super::{REPLY_HEADER_LEN, notify};

/// A message to the guest's kernel under construction. The buffer is reused from reply to reply.
#[derive(Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    /// Messages that are sent before this one, and what they hold as of.
    ahead: Vec<u8>,
    turn: Option<u64>,
    code: i32,
}

/// A file's attributes as the guest shall see them (`struct fuse_attr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are those of linux/fuse.h")]
pub struct Attributes {
    pub inode: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub block_size: u32,
}

/// For how long the guest may believe something, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Valid {
    /// The name.
    pub entry: u64,
    /// The attributes.
    pub attributes: u64,
}

/// What a name stands for (`struct fuse_entry_out`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// 0: nothing, and the guest may remember that.
    pub node: u64,
    /// How long it holds.
    pub valid: Valid,
    /// Its attributes.
    pub attributes: Attributes,
}

/// Size of a directory entry's fixed part.
const DIRENT_LEN: usize = 24;
/// Size of an entry with attributes.
const ENTRY_LEN: usize = 128;

/// Records are aligned to 8 bytes.
fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

impl Default for Reply {
    fn default() -> Self {
        Self::new()
    }
}

impl Reply {
    /// An empty reply.
    pub fn new() -> Self {
        Self { bytes: vec![0; REPLY_HEADER_LEN], ahead: Vec::new(), turn: None, code: 0 }
    }

    /// Forgets what was put so far.
    pub fn clear(&mut self) {
        self.bytes.truncate(REPLY_HEADER_LEN);
        self.ahead.clear();
        self.turn = None;
        self.code = 0;
    }

    /// Makes it a reply that is not for the kernel as it is.
    pub fn set_code(&mut self, code: i32) {
        self.code = code;
    }

    /// 0, or what [`Reply::set_code`] said.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// Bytes put so far.
    pub fn len(&self) -> usize {
        self.bytes.len() - REPLY_HEADER_LEN
    }

    /// Says whether nothing was put yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the header and gives the whole message. `error` is 0, or the negated error number of an empty reply, or
    /// the code of a notification.
    pub fn finish(&mut self, unique: u64, error: i32) -> &[u8] {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let header = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        self.bytes[..REPLY_HEADER_LEN].copy_from_slice(&header);
        &self.bytes
    }

    /// What was put so far.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(REPLY_HEADER_LEN..).unwrap_or_default()
    }

    /// The message that was finished last.
    pub fn message(&self) -> &[u8] {
        &self.bytes
    }

    /// A message of our own protocol to be sent before this one, true while the turn of things is `turn`.
    pub fn put_ahead(&mut self, turn: u64, code: i32, body: &[u8]) {
        self.ahead.extend_from_slice(Self::new().own(code, body));
        self.turn = Some(turn);
    }

    /// What is to be sent before this message, and the turn of things that it is true in.
    pub fn ahead(&self) -> Option<(u64, &[u8])> {
        Some((self.turn?, &self.ahead))
    }

    /// Bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where data is read into: behind what was put so far.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// A number.
    pub fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// A number.
    pub fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// A number.
    pub fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// `struct fuse_attr`.
    fn put_attributes(&mut self, attributes: &Attributes) {
        self.put_u64(attributes.inode);
        self.put_u64(attributes.size);
        self.put_u64(attributes.blocks);
        let times = [attributes.atime, attributes.mtime, attributes.ctime];
        for (seconds, _) in times {
            self.put(&seconds.to_le_bytes());
        }
        for (_, nanoseconds) in times {
            self.put_u32(nanoseconds);
        }
        for field in [
            attributes.mode,
            attributes.links,
            attributes.uid,
            attributes.gid,
            attributes.device,
            attributes.block_size,
            0,
        ] {
            self.put_u32(field);
        }
    }

    /// `struct fuse_attr_out`.
    pub fn put_attr_out(&mut self, valid: u64, attributes: &Attributes) {
        self.put_u64(valid);
        self.put_u64(0);
        self.put_attributes(attributes);
    }

    /// `struct fuse_entry_out`.
    pub fn put_entry(&mut self, entry: &Entry) {
        self.put_u64(entry.node);
        // Nodes are never reused, so that one generation is enough.
        self.put_u64(0);
        self.put_u64(entry.valid.entry);
        self.put_u64(entry.valid.attributes);
        self.put_u64(0);
        self.put_attributes(&entry.attributes);
    }

    /// `struct fuse_open_out`.
    pub fn put_open(&mut self, handle: u64, flags: u32) {
        self.put_u64(handle);
        self.put_u32(flags);
        self.put_u32(0);
    }

    /// Bytes that a directory entry with a name of this length takes.
    pub fn dirent_len(name: usize, plus: bool) -> usize {
        aligned(DIRENT_LEN + name + if plus { ENTRY_LEN } else { 0 })
    }

    /// `struct fuse_dirent`, after a `struct fuse_entry_out` where attributes are wanted.
    pub fn put_dirent(
        &mut self,
        entry: Option<&Entry>,
        inode: u64,
        next: u64,
        kind: u32,
        name: &[u8],
    ) {
        if let Some(entry) = entry {
            self.put_entry(entry);
        }
        self.put_u64(inode);
        self.put_u64(next);
        self.put_u32(u32::try_from(name.len()).unwrap_or(0));
        self.put_u32(kind);
        self.put(name);
        let padding = aligned(name.len()) - name.len();
        self.bytes.resize(self.bytes.len() + padding, 0);
    }

    /// A notification: attributes and, with `data`, all content of this node are out of date.
    pub fn inval_inode(&mut self, node: u64, data: bool) -> &[u8] {
        self.clear();
        self.put_u64(node);
        // A negative offset leaves the content alone; length 0 means to the end.
        self.put(&if data { 0_i64 } else { -1 }.to_le_bytes());
        self.put_u64(0);
        self.finish(0, notify::INVAL_INODE)
    }

    /// A notification: the guest shall ask again what this name stands for.
    pub fn expire_entry(&mut self, parent: u64, name: &[u8], expire_only: bool) -> &[u8] {
        self.clear();
        self.put_u64(parent);
        self.put_u32(u32::try_from(name.len()).unwrap_or(0));
        self.put_u32(if expire_only { notify::EXPIRE_ONLY } else { 0 });
        self.put(name);
        self.put(&[0]);
        self.finish(0, notify::INVAL_ENTRY)
    }

    /// A message of our own protocol beside FUSE.
    pub fn own(&mut self, code: i32, body: &[u8]) -> &[u8] {
        self.clear();
        self.put(body);
        self.finish(0, code)
    }
}
