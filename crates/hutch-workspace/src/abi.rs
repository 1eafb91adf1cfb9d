//! The FUSE protocol as bytes (`linux/fuse.h`): requests in, replies out. Pure, bounded, no `unsafe`, fuzzed.
//!
//! Guest and host share the machine's byte order: little-endian on every architecture that we run on.

mod names;
mod reply;
mod request;

pub use names::{Name, NameError};
pub use reply::{Attributes, Entry, Reply, Valid};
pub use request::{
    Changes, Create, Data, Fallocate, Header, Init, Malformed, Read, Request, TimeChange, Write,
};

/// The protocol's major version.
pub const MAJOR: u32 = 7;
/// The newest minor version that we know.
pub const MINOR: u32 = 40;
/// Size of the header of a request.
pub const HEADER_LEN: usize = 40;
/// Size of the header of a reply.
pub const REPLY_HEADER_LEN: usize = 16;
/// Most bytes that one read or write carries.
pub const DATA_MAX: usize = 1 << 20;
/// Largest request that we accept: data and a generous header, names and extensions.
pub const REQUEST_MAX: usize = DATA_MAX + (64 << 10);
/// The node of the root directory.
pub const ROOT: u64 = 1;

/// Operation codes.
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// Flags of the init request and reply.
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod init_flag {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const ABORT_ERROR: u32 = 1 << 21;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const INIT_EXT: u32 = 1 << 30;
}

/// `write_flags`: written back from the page cache, not by a `write` of this moment.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `write_flags`: the writer may not keep set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// Codes of notifications, in the `error` field of a reply with `unique` 0.
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    /// Flag of `INVAL_ENTRY`: ask again at the next use, instead of dropping the name (and what is mounted on it).
    pub const EXPIRE_ONLY: u32 = 1;
}

#[cfg(test)]
mod tests;
