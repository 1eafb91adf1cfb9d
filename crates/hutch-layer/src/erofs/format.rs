//! Numbers of the format that both directions use.

use std::collections::BTreeMap;

pub(super) const BLOCK: u64 = 4096;
pub(super) const BLOCK_SIZE: usize = 4096;
pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const SUPERBLOCK_AT: u64 = 1024;
pub(super) const SUPERBLOCK_SIZE: usize = 128;
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// The time of an inode is that of its last modification.
pub(super) const COMPAT_MTIME: u32 = 2;
pub(super) const INCOMPAT_CHUNKS: u32 = 4;
/// Inodes are addressed in units of this many bytes.
pub(super) const SLOT: u64 = 32;
pub(super) const SLOT_SIZE: usize = 32;
pub(super) const COMPACT_INODE: usize = 32;
pub(super) const EXTENDED_INODE: usize = 64;
/// Bit 0 of an inode's format; the bits above say how its content is laid out.
pub(super) const EXTENDED: u16 = 1;
pub(super) const LAYOUT_PLAIN: u16 = 0;
pub(super) const LAYOUT_INLINE: u16 = 2;
pub(super) const LAYOUT_CHUNKS: u16 = 4;
/// In the format of chunks: the bits of their size, and a mark for another format of their map.
pub(super) const CHUNK_BITS_MASK: u16 = 0x1f;
pub(super) const CHUNK_INDEXES: u16 = 0x20;
pub(super) const NO_BLOCK: u32 = u32::MAX;
pub(super) const DIRENT: usize = 12;
pub(super) const XATTR_HEADER: usize = 12;
pub(super) const XATTR_ENTRY: usize = 4;

pub(super) const S_IFMT: u16 = 0o170_000;
pub(super) const S_IFSOCK: u16 = 0o140_000;
pub(super) const S_IFLNK: u16 = 0o120_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFIFO: u16 = 0o010_000;

/// How overlayfs marks an opaque directory (Linux, Documentation/filesystems/overlayfs.rst).
pub(super) const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Starts of attributes' names, which are kept as a number.
pub(super) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// A device number as Linux writes it (`new_encode_dev`, linux/kdev_t.h).
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The major and minor number of it.
pub(super) fn device_parts(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// The number and the rest of an attribute's name; none for one that no file here can have.
pub(super) fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // The names of access control lists are whole ones.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

/// The attributes as they stand behind an inode.
pub(super) fn xattr_bytes(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let Some((index, rest)) = xattr_name(name) else { continue };
        let (Ok(name_length), Ok(value_length)) =
            (u8::try_from(rest.len()), u16::try_from(value.len()))
        else {
            continue;
        };
        bytes.extend_from_slice(&[name_length, index]);
        bytes.extend_from_slice(&value_length.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == XATTR_HEADER { Vec::new() } else { bytes }
}
