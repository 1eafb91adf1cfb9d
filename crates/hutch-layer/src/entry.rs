//! One file of a layer as all formats know it, and why a layer is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// Bounds on what a layer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories, links: all entries together.
    pub entries: usize,
    /// Bytes of content of all files together, as large as they are when unpacked.
    pub bytes: u64,
    /// Bytes of all names, link targets and extended attributes together.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 64 << 30, names: 256 << 20 }
    }
}

/// Longest name of a file (`NAME_MAX`, limits.h).
pub(crate) const NAME_MAX: usize = 255;
/// Longest path and longest target of a link (`PATH_MAX`, limits.h).
pub(crate) const PATH_MAX: usize = 4096;
/// Directories in each other; no program makes more.
const DEPTH_MAX: usize = 256;
/// Bytes of extended attributes of one file, names included: what Linux takes as a list (`XATTR_LIST_MAX`).
pub(crate) const XATTRS_MAX: usize = 64 << 10;
/// Start of a whiteout's name in an archive (OCI image specification, layer.md).
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Start of names that have no other meaning than to direct whoever unpacks.
pub(crate) const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Name of the file that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path below a root: components without `.`, `..` or zero bytes, joined by `/`. Empty = the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Takes a path as archives have it: a leading `/`, `./` and doubled slashes mean nothing.
    pub fn parse(path: &[u8]) -> Result<Self, LayerError> {
        let refuse = |refusal| Err(LayerError::refused(path, refusal));
        if path.len() > PATH_MAX {
            return refuse(Refusal::PathTooLong);
        }
        if path.contains(&0) {
            return refuse(Refusal::ZeroByte);
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0;
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return refuse(Refusal::LeavesRoot),
                name if name.len() > NAME_MAX => return refuse(Refusal::NameTooLong),
                name => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(name);
                    depth += 1;
                }
            }
        }
        if depth > DEPTH_MAX { refuse(Refusal::TooDeep) } else { Ok(Self(clean)) }
    }

    /// The path without a leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names on the way, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// The directory and the name in it; none for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.iter().rposition(|&byte| byte == b'/');
        Some(match at {
            Some(at) => (Self(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (Self::default(), &self.0),
        })
    }

    /// The path of something in this directory.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }
}

/// What every file has, whatever it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with set-user-id, set-group-id and sticky bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification, seconds since 1970.
    pub mtime: i64,
    /// The rest of it.
    pub mtime_nsec: u32,
    /// Extended attributes by their full names: `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A part of a sparse file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory, whose content comes in entries of its own.
    Directory,
    /// A mark on a directory: it hides what the layers below have in it.
    Opaque,
    /// A file whose content follows: all of it, or the extents one after the other.
    File {
        /// Bytes, holes included.
        size: u64,
        /// The parts that are there, in order and without overlaps; none = all of it.
        extents: Option<Vec<Extent>>,
    },
    /// Another name of a file that came before.
    HardLink(EntryPath),
    /// A symbolic link; its target is only ever text here.
    Symlink(Vec<u8>),
    /// A character device.
    CharacterDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket, which only an image can hold.
    Socket,
    /// The layers below have something here, and it is gone.
    Whiteout,
}

/// A file of a layer, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: EntryPath,
    /// What.
    pub kind: Kind,
    /// Whose, and so on.
    pub metadata: Metadata,
}

/// Why an entry of a layer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has `..` in it.
    LeavesRoot,
    /// A directory on the way is a symbolic link.
    BelowLink,
    /// A directory on the way is a file or something else.
    BelowFile,
    /// Its link leads to nothing that came before it.
    LinkTargetMissing,
    /// Its link leads to a directory or a whiteout.
    LinkTargetKind,
    /// Its link has no target, or one that is too long.
    LinkTarget,
    /// Its name has more than 255 bytes.
    NameTooLong,
    /// Its path has more than 4096 bytes.
    PathTooLong,
    /// It is in more directories than anybody makes.
    TooDeep,
    /// Its path has a zero byte.
    ZeroByte,
    /// It says that something is gone, but not what.
    Whiteout,
    /// Its map of holes contradicts itself.
    SparseMap,
    /// Its extended attributes are too many or too long.
    Xattrs,
    /// It is larger than the archive or the limit.
    Size,
    /// It is of a type that no file system has.
    Type,
    /// Its device number does not exist.
    DeviceNumber,
    /// It would replace the root directory.
    Root,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeavesRoot => "leaves the root directory by `..`",
            Self::BelowLink => "lies behind a symbolic link",
            Self::BelowFile => "lies below something that is no directory",
            Self::LinkTargetMissing => "is a link to a file that is not in the layer before it",
            Self::LinkTargetKind => "is a hard link to something that cannot have one",
            Self::LinkTarget => "is a link whose target is empty or too long",
            Self::NameTooLong => "has a name of more than 255 bytes",
            Self::PathTooLong => "has a path of more than 4096 bytes",
            Self::TooDeep => "lies in more than 256 directories",
            Self::ZeroByte => "has a zero byte in its path",
            Self::Whiteout => "is a whiteout of nothing",
            Self::SparseMap => "has a map of holes that contradicts itself",
            Self::Xattrs => "has extended attributes that are too many or too long",
            Self::Size => "has a size that no layer may have",
            Self::Type => "is of an unknown type",
            Self::DeviceNumber => "has a device number that does not exist",
            Self::Root => "would replace the root directory",
        })
    }
}

/// Why a layer cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive or image cannot be read.
    #[error("failed to read the layer")]
    Read(#[source] io::Error),
    /// The image or archive cannot be written.
    #[error("failed to write the layer")]
    Write(#[source] io::Error),
    /// It is not what it should be.
    #[error("the layer is damaged: {0}")]
    Damaged(&'static str),
    /// One entry is not taken, and so the layer is not.
    #[error("the layer is refused: `{path}` {refusal}")]
    Refused {
        /// The entry, printable.
        path: String,
        /// Why.
        refusal: Refusal,
    },
    /// More than the limits allow.
    #[error("the layer is refused: it has more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// A path as it is shown: an archive's bytes must not reach a terminal.
const SHOWN_MAX: usize = 200;

impl LayerError {
    pub(crate) fn refused(path: &[u8], refusal: Refusal) -> Self {
        let shown = &path[..path.len().min(SHOWN_MAX)];
        Self::Refused { path: shown.escape_ascii().to_string(), refusal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_what_they_name() {
        for (path, clean) in [
            ("./etc//passwd", "etc/passwd"),
            ("/etc/./passwd/", "etc/passwd"),
            (".", ""),
            ("/", ""),
            ("a...b/..c", "a...b/..c"),
        ] {
            assert_eq!(EntryPath::parse(path.as_bytes()).unwrap().as_bytes(), clean.as_bytes());
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["..", "../x", "a/../../x", "a/..", "/../etc"] {
            let error = EntryPath::parse(path.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("leaves the root directory"), "{path}: {error}");
        }
        assert!(EntryPath::parse(&[b'a'; 256]).is_err());
        assert!(EntryPath::parse(&b"a/".repeat(257)).is_err());
        assert!(EntryPath::parse(&b"a/".repeat(5000)).is_err());
        assert!(EntryPath::parse(b"a\0b").is_err());
    }

    #[test]
    fn a_refusal_is_printable() {
        let error = LayerError::refused(b"\x1b[2J\xff", Refusal::Type).to_string();
        assert_eq!(error, "the layer is refused: `\\x1b[2J\\xff` is of an unknown type");
    }
}
