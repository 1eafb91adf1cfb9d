//! The read-only file system of layers: erofs without compression (Linux, fs/erofs/erofs_fs.h).
//!
//! ```text
//!   block 0     superblock at byte 1024
//!   1 …         contents of files, whole blocks in the order in which they came
//!   …           directories and long links, whole blocks
//!   meta …      inodes in slots of 32 bytes: inode, extended attributes, and the rest of a file that fills no block
//! ```
//!
//! Own code, because no library writes it and `mkfs.erofs` needs the whole tree on the host's disk, made by somebody
//! who may have its owners and devices; this one needs one pass over an archive. The same files give the same bytes.

mod format;
mod read;
mod write;

pub use read::Image;
pub use write::Writer;

#[cfg(test)]
mod tests;
