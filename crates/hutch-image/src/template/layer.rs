//! From files that were given or built to the disk images that layers are.
//!
//! erofs without compression: under emulation decompression costs more than reading does, and the host's page cache
//! holds the pages once for all sandboxes (`docs/design/001-template-image-format.md`).

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use hutch_layer::erofs::Writer;
use hutch_layer::{LayerError, Limits, Tree, erofs, tar};

use crate::cache::CacheError;
use crate::template::compression::Decompressed;
use crate::template::namespace::{Namespace, NamespaceError};
use crate::tool::{ToolError, Toolbox};

/// Why files do not become a layer.
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
    /// The archive is damaged or refused.
    #[error(transparent)]
    Layer(#[from] LayerError),
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
    /// Anything else: an archive, or an error of whoever reads it.
    Archive,
}

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

/// A new image in a directory of ours, and who writes it.
pub(crate) fn begin(image: &Path) -> Result<Writer, CacheError> {
    let create = |path: &Path| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(path).map_err(CacheError::io("create", path))
    };
    let waiting = image.with_extension("tails");
    let scratch = create(&waiting)?;
    // Needed by nobody else, so it goes with us.
    fs::remove_file(&waiting).map_err(CacheError::io("remove", &waiting))?;
    Ok(Writer::new(create(image)?, scratch))
}

/// Makes `image` from the archive of a root file system, compressed or not.
pub(crate) fn of_root_archive(archive: &Path, image: &Path) -> Result<(), DiskError> {
    let file = File::open(archive).map_err(CacheError::io("open", archive))?;
    let input =
        Decompressed::new(BufReader::with_capacity(256 << 10, file)).map_err(LayerError::Read)?;
    let mut writer = begin(image)?;
    let mut reader = tar::Reader::new(input, Limits::default());
    let mut tree = Tree::from_tar(&mut reader, &mut writer)?;
    // There is nothing below that it could hide.
    tree.settle();
    // `bin` may be a link to `usr/bin`.
    if !tree.has(b"bin/sh") && !tree.has(b"usr/bin/sh") {
        return Err(DiskError::NotARoot { archive: archive.to_owned() });
    }
    writer.finish(&tree)?;
    Ok(())
}

/// Makes `image` from the archive of one layer, as it comes from `input`, together with the image of the layer under it
/// where that is to be the same one.
pub(crate) fn of_archive(
    input: impl Read,
    under: Option<&Path>,
    image: &Path,
) -> Result<(), DiskError> {
    let mut writer = begin(image)?;
    let mut reader = tar::Reader::new(input, Limits::default());
    let upper = Tree::from_tar(&mut reader, &mut writer)?;
    let tree = match under {
        None => upper,
        Some(path) => {
            let file = File::open(path).map_err(CacheError::io("open", path))?;
            let under = erofs::Image::open(file, Limits::default())?;
            let mut tree = Tree::from_image(&under, &mut writer)?;
            tree.lay_over(&upper);
            tree
        }
    };
    writer.finish(&tree)?;
    Ok(())
}

/// Makes `image` from a directory whose files have the owners that they have in the tools' namespace.
pub(crate) fn of_directory(
    tools: &Toolbox,
    namespace: Namespace,
    tree: &Path,
    image: &Path,
) -> Result<(), DiskError> {
    let tool = namespace
        .tool(tools, "tar", "tar")
        .args(["--create", "--file=-", "--format=posix", "--numeric-owner", "--sparse"])
        .args(["--xattrs", "--xattrs-include=*", "--sort=name"])
        .arg("--directory")
        .arg(tree)
        .arg(".");
    let mut made = Ok(());
    tool.read(&mut |output| {
        made = of_archive(&mut *output, None, image);
        // Its last blocks, which nobody needs, must not look like a failure to the program.
        io::copy(output, &mut io::sink()).map(drop)
    })?;
    made
}
