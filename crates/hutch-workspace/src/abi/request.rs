//! Requests: bytes of a hostile guest into checked values.

use std::ffi::CStr;

use hutch_wire::workspace::bulk;

use super::{HEADER_LEN, Name, NameError, REQUEST_MAX, opcode};

/// The header of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole message.
    pub len: usize,
    /// What is asked.
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    /// What it is about.
    pub node: u64,
    /// Thread that asks, in the numbering of the mount.
    pub pid: u32,
    /// Bytes of extensions at the end of the message.
    extensions: usize,
}

/// Why a message is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The header's length is impossible: the stream cannot be followed further.
    #[error("a message of {len} bytes")]
    Length {
        /// What the header says.
        len: u32,
    },
    /// The body ends too early or is not what the operation has.
    #[error("the body does not fit the operation")]
    Body,
    /// A name is not a single component.
    #[error("not a name")]
    Name(#[from] NameError),
}

impl Header {
    /// Parses the first bytes of a message.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let len = fields.u32()?;
        let length = usize::try_from(len).unwrap_or(usize::MAX);
        if !(HEADER_LEN..=REQUEST_MAX).contains(&length) {
            return Err(Malformed::Length { len });
        }
        let opcode = fields.u32()?;
        let (unique, node) = (fields.u64()?, fields.u64()?);
        let (_uid, _gid, pid) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let extensions = usize::from(fields.u16()?) * 8;
        Ok(Self { len: length, opcode, unique, node, pid, extensions })
    }

    /// Whether the answer is mostly a matter of microseconds: little data, and nothing that waits for a disk's flush.
    pub fn is_short(&self) -> bool {
        let slow = matches!(
            self.opcode,
            opcode::READ
                | opcode::FSYNC
                | opcode::FSYNCDIR
                | opcode::SYNCFS
                | opcode::FALLOCATE
                | opcode::COPY_FILE_RANGE
                | opcode::STATFS
                | opcode::LSEEK
        );
        !slow && self.len <= SHORT_MAX
    }

    /// Whether attributes or entries of a directory may be others afterwards.
    pub fn changes(&self) -> bool {
        matches!(
            self.opcode,
            opcode::SETATTR | opcode::SYMLINK
                ..=opcode::LINK
                    | opcode::SETXATTR
                    | opcode::REMOVEXATTR
                    | opcode::CREATE
                    | opcode::RENAME2
                    | opcode::TMPFILE
        )
    }
}

/// Bytes of a request that is answered shortly.
const SHORT_MAX: usize = 16 << 10;

/// What kernel and server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Bytes the kernel reads ahead.
    pub max_readahead: u32,
    /// Flags offered.
    pub flags: u32,
}

/// One new time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeChange {
    /// Unchanged.
    Keep,
    /// The time of the server.
    Now,
    /// This one.
    To {
        /// Seconds since 1970.
        seconds: i64,
        /// And nanoseconds.
        nanoseconds: u32,
    },
}

/// What to change about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: TimeChange,
    /// Time of last change of the content.
    pub mtime: TimeChange,
    /// Set-id bits go.
    pub kill_set_id: bool,
}

/// A new file that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// `open` flags.
    pub flags: u32,
    /// Mode, the caller's mask applied.
    pub mode: u32,
}

/// Bytes wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// From where.
    pub offset: u64,
    /// How many at most.
    pub size: u32,
    /// Where on the disk of large contents they may go.
    pub place: Option<u32>,
}

/// Bytes to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// What the server gave at creation; 0 otherwise.
    pub handle: u64,
    /// Where to.
    pub offset: u64,
    /// `FUSE_WRITE_…`.
    pub write_flags: u32,
    /// `open` flags of the file.
    pub flags: u32,
    /// The bytes.
    pub data: Data<'a>,
}

/// What is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data<'a> {
    /// It came with the request.
    Here(&'a [u8]),
    /// It is on the disk of large contents ([`hutch_wire::workspace::bulk`]).
    There {
        /// Number of the place.
        place: u32,
        /// Its bytes: at most those of a place.
        size: u32,
    },
}

/// A range to allocate or punch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallocate {
    /// Start.
    pub offset: u64,
    /// Length.
    pub length: u64,
    /// `FALLOC_FL_…`.
    pub mode: u32,
}

/// A request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of linux/fuse.h")]
pub enum Request<'a> {
    Init(Init),
    Destroy,
    Interrupt,
    Lookup {
        name: Name<'a>,
    },
    Forget {
        count: u64,
    },
    BatchForget {
        nodes: Vec<(u64, u64)>,
    },
    GetAttributes,
    SetAttributes(Changes),
    ReadLink,
    Symlink {
        name: Name<'a>,
        target: &'a CStr,
    },
    MakeNode {
        name: Name<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Name<'a>,
        mode: u32,
    },
    Unlink {
        name: Name<'a>,
    },
    RemoveDirectory {
        name: Name<'a>,
    },
    Rename {
        name: Name<'a>,
        to: u64,
        new_name: Name<'a>,
        flags: u32,
    },
    Link {
        node: u64,
        name: Name<'a>,
    },
    Read(Read),
    Write(Write<'a>),
    StatFs,
    Release {
        handle: u64,
    },
    Fsync {
        data_only: bool,
    },
    FsyncDirectory {
        data_only: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    ReadDirectory(Read),
    ReadDirectoryPlus(Read),
    Create {
        name: Name<'a>,
        create: Create,
    },
    TemporaryFile(Create),
    Fallocate(Fallocate),
    Seek {
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: u64,
        to_node: u64,
        to: u64,
        length: u64,
    },
    SyncFs,
    /// A message of our own protocol beside FUSE ([`hutch_wire::workspace`]).
    Own {
        opcode: u32,
        body: &'a [u8],
    },
    /// An operation that we leave to the kernel's default, or do not know.
    Other,
}

/// Opcodes from here on are ours.
const OWN_FIRST: u32 = 0x4855_0000;
/// `FUSE_BATCH_FORGET` messages of the kernel hold fewer: it sends what fits into the reader's smallest buffer.
const BATCH_MAX: usize = REQUEST_MAX / 16;

impl<'a> Request<'a> {
    /// Parses the body that follows this header: exactly `header.len - HEADER_LEN` bytes.
    pub fn parse(header: &Header, body: &'a [u8]) -> Result<Self, Malformed> {
        if header.opcode >= OWN_FIRST {
            return Ok(Self::Own { opcode: header.opcode, body });
        }
        let end = body.len().checked_sub(header.extensions).ok_or(Malformed::Body)?;
        let mut fields = Fields(body.get(..end).ok_or(Malformed::Body)?);
        match header.opcode {
            opcode::LOOKUP..=opcode::LINK => Self::parse_entry(header.opcode, &mut fields),
            opcode::READ..=opcode::FSYNC
            | opcode::FALLOCATE
            | opcode::LSEEK
            | opcode::COPY_FILE_RANGE => Self::parse_data(header.opcode, &mut fields),
            opcode::SETXATTR..=opcode::REMOVEXATTR => Self::parse_xattr(header.opcode, &mut fields),
            opcode::INIT => {
                let (major, minor) = (fields.u32()?, fields.u32()?);
                // A kernel before 7.6 says no more.
                let (max_readahead, flags) =
                    if fields.0.is_empty() { (0, 0) } else { (fields.u32()?, fields.u32()?) };
                Ok(Self::Init(Init { major, minor, max_readahead, flags }))
            }
            opcode::DESTROY => Ok(Self::Destroy),
            opcode::INTERRUPT => Ok(Self::Interrupt),
            opcode::SYNCFS => Ok(Self::SyncFs),
            opcode::READDIR => Ok(Self::ReadDirectory(fields.read()?)),
            opcode::READDIRPLUS => Ok(Self::ReadDirectoryPlus(fields.read()?)),
            opcode::FSYNCDIR => Ok(Self::FsyncDirectory { data_only: fields.fsync()? }),
            opcode::CREATE => {
                let create = fields.create()?;
                Ok(Self::Create { name: fields.name()?, create })
            }
            opcode::TMPFILE => Ok(Self::TemporaryFile(fields.create()?)),
            opcode::RENAME2 => {
                let (to, flags, _padding) = (fields.u64()?, fields.u32()?, fields.u32()?);
                Ok(Self::Rename { name: fields.name()?, to, new_name: fields.name()?, flags })
            }
            opcode::BATCH_FORGET => Self::parse_batch_forget(&mut fields),
            _ => Ok(Self::Other),
        }
    }

    fn parse_entry(opcode: u32, fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        Ok(match opcode {
            opcode::LOOKUP => Self::Lookup { name: fields.name()? },
            opcode::FORGET => Self::Forget { count: fields.u64()? },
            opcode::GETATTR => Self::GetAttributes,
            opcode::SETATTR => Self::SetAttributes(fields.changes()?),
            opcode::READLINK => Self::ReadLink,
            opcode::SYMLINK => Self::Symlink { name: fields.name()?, target: fields.string()? },
            opcode::MKNOD => {
                let (mode, _device, _mask, _padding) =
                    (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
                Self::MakeNode { name: fields.name()?, mode }
            }
            opcode::MKDIR => {
                let (mode, _mask) = (fields.u32()?, fields.u32()?);
                Self::MakeDirectory { name: fields.name()?, mode }
            }
            opcode::UNLINK => Self::Unlink { name: fields.name()? },
            opcode::RMDIR => Self::RemoveDirectory { name: fields.name()? },
            opcode::RENAME => {
                let to = fields.u64()?;
                Self::Rename { name: fields.name()?, to, new_name: fields.name()?, flags: 0 }
            }
            opcode::LINK => Self::Link { node: fields.u64()?, name: fields.name()? },
            _ => Self::Other,
        })
    }

    fn parse_data(opcode: u32, fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        Ok(match opcode {
            opcode::READ => {
                let read = fields.read()?;
                let (_flags, _lock_owner, _open_flags) =
                    (fields.u32()?, fields.u64()?, fields.u32()?);
                Self::Read(Read { place: fields.place()?, ..read })
            }
            opcode::WRITE => {
                let (handle, offset) = (fields.u64()?, fields.u64()?);
                let (size, write_flags) = (fields.u32()?, fields.u32()?);
                let (_lock_owner, flags) = (fields.u64()?, fields.u32()?);
                let data = match fields.place()? {
                    None => Data::Here(fields.bytes(size)?),
                    Some(_) if u64::from(size) > bulk::PLACE_BYTES => return Err(Malformed::Body),
                    Some(place) => Data::There { place, size },
                };
                Self::Write(Write { handle, offset, write_flags, flags, data })
            }
            opcode::STATFS => Self::StatFs,
            opcode::RELEASE => Self::Release { handle: fields.u64()? },
            opcode::FSYNC => Self::Fsync { data_only: fields.fsync()? },
            opcode::FALLOCATE => {
                let (_handle, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
                Self::Fallocate(Fallocate { offset, length, mode: fields.u32()? })
            }
            opcode::LSEEK => {
                let (_handle, offset) = (fields.u64()?, fields.u64()?);
                Self::Seek { offset, whence: fields.u32()? }
            }
            opcode::COPY_FILE_RANGE => {
                let (_handle, from, to_node) = (fields.u64()?, fields.u64()?, fields.u64()?);
                let (_handle, to, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
                Self::CopyRange { from, to_node, to, length }
            }
            _ => Self::Other,
        })
    }

    fn parse_xattr(opcode: u32, fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        Ok(match opcode {
            opcode::SETXATTR => {
                // The short form: we do not offer FUSE_SETXATTR_EXT.
                let (size, flags) = (fields.u32()?, fields.u32()?);
                let name = fields.string()?;
                Self::SetXattr { name, value: fields.bytes(size)?, flags }
            }
            opcode::GETXATTR => {
                let (size, _padding) = (fields.u32()?, fields.u32()?);
                Self::GetXattr { name: fields.string()?, size }
            }
            opcode::LISTXATTR => Self::ListXattr { size: fields.u32()? },
            opcode::REMOVEXATTR => Self::RemoveXattr { name: fields.string()? },
            _ => Self::Other,
        })
    }

    fn parse_batch_forget(fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        let (count, _padding) = (fields.u32()?, fields.u32()?);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        // The count is only believed as far as there are bytes.
        if count > BATCH_MAX || fields.0.len() < count * 16 {
            return Err(Malformed::Body);
        }
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            nodes.push((fields.u64()?, fields.u64()?));
        }
        Ok(Self::BatchForget { nodes })
    }
}

/// `FATTR_…`
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Body)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.take().map(i64::from_le_bytes)
    }

    fn bytes(&mut self, len: u32) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).map_err(|_| Malformed::Body)?;
        let (first, rest) = self.0.split_at_checked(len).ok_or(Malformed::Body)?;
        self.0 = rest;
        Ok(first)
    }

    fn string(&mut self) -> Result<&'a CStr, Malformed> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Malformed::Body)?;
        self.0 = self.0.get(string.count_bytes() + 1..).ok_or(Malformed::Body)?;
        Ok(string)
    }

    fn name(&mut self) -> Result<Name<'a>, Malformed> {
        Ok(Name::parse(self.string()?)?)
    }

    fn read(&mut self) -> Result<Read, Malformed> {
        let (_handle, offset) = (self.u64()?, self.u64()?);
        Ok(Read { offset, size: self.u32()?, place: None })
    }

    /// The place on the disk of large contents, where one is named.
    fn place(&mut self) -> Result<Option<u32>, Malformed> {
        match self.u32()?.checked_sub(1) {
            Some(place) if place >= bulk::PLACES => Err(Malformed::Body),
            place => Ok(place),
        }
    }

    fn fsync(&mut self) -> Result<bool, Malformed> {
        let _handle = self.u64()?;
        Ok(self.u32()? & 1 != 0)
    }

    fn create(&mut self) -> Result<Create, Malformed> {
        let (flags, mode, _mask, _open_flags) =
            (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        Ok(Create { flags, mode })
    }

    fn changes(&mut self) -> Result<Changes, Malformed> {
        let (valid, _padding, _handle) = (self.u32()?, self.u32()?, self.u64()?);
        let (size, _lock_owner) = (self.u64()?, self.u64()?);
        let (atime, mtime, _ctime) = (self.i64()?, self.i64()?, self.i64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (self.u32()?, self.u32()?, self.u32()?);
        let (mode, _unused) = (self.u32()?, self.u32()?);
        let (uid, gid) = (self.u32()?, self.u32()?);
        let has = |bit: u32| valid & bit != 0;
        let time = |set: u32, now: u32, seconds: i64, nanoseconds: u32| {
            if !has(set) {
                Ok(TimeChange::Keep)
            } else if has(now) {
                Ok(TimeChange::Now)
            } else if nanoseconds < 1_000_000_000 {
                Ok(TimeChange::To { seconds, nanoseconds })
            } else {
                // Larger values have meanings of their own in utimensat(2).
                Err(Malformed::Body)
            }
        };
        Ok(Changes {
            mode: has(valid::MODE).then_some(mode),
            uid: has(valid::UID).then_some(uid),
            gid: has(valid::GID).then_some(gid),
            size: has(valid::SIZE).then_some(size),
            atime: time(valid::ATIME, valid::ATIME_NOW, atime, atime_ns)?,
            mtime: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_ns)?,
            kill_set_id: has(valid::KILL_SUIDGID),
        })
    }
}
