//! From a root file system's tar to a read-only disk image.
//!
//! erofs without compression: under emulation decompression costs more than reading does, and the host's page cache
//! holds the pages once for all sandboxes (`docs/design/001-template-image-format.md`).

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::cache::CacheError;
use crate::template::namespace::{Namespace, NamespaceError};
use crate::tool::{ToolError, Toolbox};

/// Why a tar does not become a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// No namespace to work in.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A file of ours cannot be written.
    #[error(transparent)]
    File(#[from] CacheError),
    /// The archive holds something else.
    #[error("{} is not the archive of a root file system: it has no /bin/sh", archive.display())]
    NotARoot {
        /// The archive.
        archive: PathBuf,
    },
}

/// What a file given as a template is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A disk image that the guest can mount as it is.
    Image,
    /// Anything else: an archive, or an error of `tar`.
    Archive,
}

/// Package that has `mkfs.erofs`.
pub(crate) const MKFS_PACKAGE: &str = "erofs-utils";

const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
const EROFS_MAGIC_AT: u64 = 1024;
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";

/// Tells by its content what `path` is.
pub(crate) fn kind_of(path: &Path) -> io::Result<Kind> {
    let mut file = File::open(path)?;
    let mut magic_at = |at| {
        let mut magic = [0; 4];
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            result => result.map(|()| Some(magic)),
        }
    };
    let image =
        magic_at(0)? == Some(SQUASHFS_MAGIC) || magic_at(EROFS_MAGIC_AT)? == Some(EROFS_MAGIC);
    Ok(if image { Kind::Image } else { Kind::Archive })
}

/// Makes `image` from `archive`, with a tree in `tree` that is removed whatever happens.
pub(crate) fn make(
    tools: &Toolbox,
    namespace: Namespace,
    archive: &Path,
    tree: &Path,
    image: &Path,
) -> Result<(), DiskError> {
    fs::create_dir(tree).map_err(CacheError::io("create", tree))?;
    let made = unpack(tools, namespace, archive, tree).and_then(|()| {
        let mkfs = namespace.tool(tools, "mkfs.erofs", MKFS_PACKAGE);
        Ok(mkfs.arg("-d0").arg(image).arg(tree).output().map(drop)?)
    });
    let removed = namespace.remove(tools, tree);
    made?;
    Ok(removed?)
}

fn unpack(
    tools: &Toolbox,
    namespace: Namespace,
    archive: &Path,
    tree: &Path,
) -> Result<(), DiskError> {
    namespace
        .tool(tools, "tar", "tar")
        .args(["--extract", "--numeric-owner", "--same-owner", "--preserve-permissions"])
        .args(["--xattrs", "--xattrs-include=*", "--delay-directory-restore"])
        // The guest has its own; making device nodes needs a privilege that a user namespace does not give.
        .args(["--exclude=./dev/*", "--exclude=dev/*", "--anchored"])
        .arg("--directory")
        .arg(tree)
        .arg("--file")
        .arg(archive)
        .output()?;
    // The tree's root is the image's root, and it was made for us alone.
    namespace.tool(tools, "chmod", "coreutils").arg("0755").arg(tree).output()?;
    // `bin` may be a link to `usr/bin`, which must not be followed on the host if it is absolute.
    let found =
        ["bin/sh", "usr/bin/sh"].iter().any(|path| tree.join(path).symlink_metadata().is_ok());
    if found { Ok(()) } else { Err(DiskError::NotARoot { archive: archive.to_owned() }) }
}
