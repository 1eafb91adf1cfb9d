//! The archives that layers come in: POSIX and GNU tar, read and written entry by entry.
//!
//! Own code and no library: those that there are hold a long name of any length in memory, and none knows all three
//! ways to write a sparse file, nor lets a caller bound what it reads.

mod header;
mod pax;
mod read;
mod write;

pub use read::Reader;
pub use write::Writer;

/// Everything in a tar comes in blocks of this size.
const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = BLOCK as u64;
/// Longest extension of an entry: its long names, its extended attributes, its map of holes.
const EXTENSION_MAX: u64 = 1 << 20;
/// Most parts of one sparse file.
const EXTENTS_MAX: usize = 1 << 16;
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

#[cfg(test)]
mod tests;
