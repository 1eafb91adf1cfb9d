//! The guest image: a kernel of the distribution and an initramfs with our init, cached by digest.
//!
//! ```text
//! images/kernel/<key>/   package.deb  manifest.json       what the distribution gave, kept
//! images/guest/<key>/    kernel  initramfs  manifest.json  key = kernel + init + recipe
//! ```
//!
//! A new init only makes the second one again. Both are made by [`crate::cache`]'s rules.

mod cpio;
mod kept;
mod kernel;
mod modules;
mod vmlinux;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::apt::AptError;
use crate::cache::{Cache, CacheError, write_file};
use crate::digest::{self, Key};
use crate::guest::cpio::{Archive, Entry};
pub use crate::guest::kept::{Kept, KeptKind, kept, remove_unneeded};
use crate::guest::kernel::{KernelFiles, KernelSource, Signatures};
pub use crate::guest::modules::ModulesError;
pub use crate::guest::vmlinux::VmlinuxError;
use crate::tool::ToolError;

/// Changes whenever the same inputs would give another image.
const RECIPE_VERSION: &str = "3";
const FORMAT_VERSION: u32 = 1;

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestImageSource {
    /// The Debian archive in the configuration of the host's apt.
    Distribution {
        /// Another archive than the configured one.
        mirror: Option<String>,
        /// Ask the archive although a kernel is there already.
        refresh: Refresh,
    },
    /// Files that a person has.
    Files {
        /// A kernel image that the VMM can boot.
        kernel: PathBuf,
        /// Its `lib/modules/RELEASE` directory; `None` for a kernel that has all it needs built in.
        modules: Option<PathBuf>,
    },
}

/// When to ask for something newer than what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Only when nothing is there.
    Missing,
    /// Always.
    Always,
}

/// What [`guest_image`] needs to know.
#[derive(Debug, Clone)]
pub struct GuestImageOptions {
    /// `Layout.images`.
    pub images: PathBuf,
    /// The `hutch-init` binary, statically linked.
    pub init: PathBuf,
    /// Where the kernel comes from.
    pub source: GuestImageSource,
    /// Variables for the tools that fetch, like proxy settings; nothing else of the environment reaches them.
    pub environment: Vec<(OsString, OsString)>,
}

/// A kernel and an initramfs that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// Kernel image for the VMM.
    pub kernel: PathBuf,
    /// Initramfs with init and the kernel's modules.
    pub initramfs: PathBuf,
    /// Kernel release, e.g. `6.12.48+deb13-cloud-amd64`.
    pub release: String,
    /// Digest of both files and the recipe: the cache key.
    pub digest: String,
}

/// Why there is no guest image.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// The host has no apt, so it cannot fetch a kernel.
    #[error(
        "this host has no apt to fetch the guest's kernel with: set HUTCH_KERNEL to a kernel image and \
         HUTCH_KERNEL_MODULES to its lib/modules/RELEASE directory"
    )]
    NoApt,
    /// The kernel's package cannot be fetched.
    #[error("failed to fetch the guest's kernel")]
    Fetch(#[source] AptError),
    /// A tool failed or is missing.
    #[error("failed to unpack the guest's kernel")]
    Unpack(#[source] ToolError),
    /// The package does not have what a kernel package has.
    #[error("the package {package} has no {missing}")]
    PackageContent {
        /// The package.
        package: String,
        /// What is not in it.
        missing: &'static str,
    },
    /// The kernel's modules cannot be used.
    #[error("failed to collect the kernel's modules")]
    Modules(#[from] ModulesError),
    /// A file that was given cannot be read.
    #[error("failed to read {what} {}", path.display())]
    Input {
        /// `the init binary`, `the kernel`, …
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The init binary needs libraries, which the initramfs does not have.
    #[error("{} is not a statically linked program", path.display())]
    InitNotStatic {
        /// The binary.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// `manifest.json` of a guest image.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    release: String,
    kernel_version: String,
    recipe: String,
    kernel_sha256: String,
    initramfs_sha256: String,
}

/// Returns the guest image for the given init, making it if it is not there yet.
///
/// Blocks, for minutes when a kernel must be downloaded. Of several processes that ask for the same image one makes it
/// and the others wait.
pub fn guest_image(
    options: &GuestImageOptions,
    progress: &dyn Progress,
) -> Result<GuestImage, GuestImageError> {
    let unreadable = |source| GuestImageError::Input {
        what: "the init binary",
        path: options.init.clone(),
        source,
    };
    let kernels = Cache::new(options.images.join("kernel"));
    let source = kernel::resolve(options, &kernels, progress)?;
    let guests = Cache::new(options.images.join("guest"));
    let init = digest::known::of_file(&options.images, &options.init, || {}).map_err(unreadable)?;
    if let Some(image) = find(&guests, &key(&source, &init)) {
        return Ok(image);
    }
    let init = read_init(&options.init)?;
    // Of the very bytes that the image is made of, whatever happens to the file.
    let key = key(&source, &digest::of_bytes(&init));
    let locked = guests.lock(progress)?;
    locked.clean()?;
    if let Some(image) = find(&guests, &key) {
        return Ok(image);
    }
    progress.step("making the guest image");
    let draft = locked.begin(&key)?;
    let unpacked = draft.path().join("unpacked");
    let log = options.images.join("logs/guest.log");
    let files = source.unpack(&unpacked, &log, &options.environment, locked.file())?;
    let kernel_sha256 = write_kernel(&files, &draft.path().join("kernel"))?;
    let archive = initramfs(&init, &files)?;
    let initramfs = draft.path().join("initramfs");
    let initramfs_sha256 = write_initramfs(&archive, &initramfs)?;
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(CacheError::io("remove", &unpacked))?;
    }
    let release = files.release.clone();
    draft.publish(&Manifest {
        format_version: FORMAT_VERSION,
        release,
        kernel_version: files.version,
        recipe: RECIPE_VERSION.to_owned(),
        kernel_sha256,
        initramfs_sha256,
    })?;
    tracing::info!(digest = %key, "guest image made");
    find(&guests, &key).ok_or_else(|| {
        let path = guests.path(&key);
        let source = io::Error::other("it is not there after it was made");
        CacheError::Io { operation: "find", path, source }.into()
    })
}

fn key(source: &KernelSource, init_sha256: &str) -> String {
    Key::default()
        .part("recipe", RECIPE_VERSION)
        .part("architecture", std::env::consts::ARCH)
        .part("kernel", source.key())
        .part("init", init_sha256)
        .finish()
}

fn find(guests: &Cache, key: &str) -> Option<GuestImage> {
    let manifest: Manifest = guests.manifest(key)?;
    let directory = guests.path(key);
    let image = GuestImage {
        kernel: directory.join("kernel"),
        initramfs: directory.join("initramfs"),
        release: manifest.release,
        digest: key.to_owned(),
    };
    let whole = manifest.format_version == FORMAT_VERSION
        && image.kernel.is_file()
        && image.initramfs.is_file();
    whole.then_some(image)
}

fn read_init(path: &Path) -> Result<Vec<u8>, GuestImageError> {
    use object::elf::PT_INTERP;
    use object::read::elf::{ElfFile64, ProgramHeader as _};

    let init = fs::read(path).map_err(|source| GuestImageError::Input {
        what: "the init binary",
        path: path.to_owned(),
        source,
    })?;
    let is_static = ElfFile64::<object::LittleEndian>::parse(&init[..]).is_ok_and(|elf| {
        let endian = elf.endian();
        !elf.elf_program_headers().iter().any(|header| header.p_type(endian) == PT_INTERP)
    });
    is_static
        .then_some(init)
        .ok_or_else(|| GuestImageError::InitNotStatic { path: path.to_owned() })
}

/// Writes the kernel as the VMM boots it fastest, and returns its digest.
fn write_kernel(files: &KernelFiles, target: &Path) -> Result<String, GuestImageError> {
    let image = fs::read(&files.kernel).map_err(|source| GuestImageError::Input {
        what: "the kernel",
        path: files.kernel.clone(),
        source,
    })?;
    match vmlinux::extract(&image) {
        Ok(vmlinux) => write_file(target, &vmlinux)?,
        Err(error) => {
            tracing::info!(%error, "booting the compressed kernel");
            write_file(target, &image)?;
        }
    }
    Ok(digest::of_file(target).map_err(CacheError::io("read", target))?)
}

/// Collects what the initramfs holds: init, the modules and the lists that init loads them by.
fn initramfs(init: &[u8], files: &KernelFiles) -> Result<Archive, GuestImageError> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "lib/modules"] {
        archive.add(directory, Entry::Directory);
    }
    archive.add("init", Entry::File { content: init.to_vec(), mode: 0o755 });
    let set = files.modules.as_deref().map(modules::collect).transpose()?.unwrap_or_default();
    let mut aliases = String::new();
    for (list, modules) in
        [("hutch.order", set.boot), ("network.order", set.network), ("later.order", set.later)]
    {
        let order: String =
            modules.iter().map(|module| format!("{}\n", module.file_name)).collect();
        let entry = Entry::File { content: order.into_bytes(), mode: 0o644 };
        archive.add(&format!("lib/modules/{list}"), entry);
        for mut module in modules {
            for alias in &module.aliases {
                aliases.extend([alias, " ", &module.file_name, "\n"]);
            }
            if files.signatures == Signatures::Optional {
                module.strip_signature();
            }
            let entry = Entry::File { content: module.content, mode: 0o644 };
            archive.add(&format!("lib/modules/{}", module.file_name), entry);
        }
    }
    let entry = Entry::File { content: aliases.into_bytes(), mode: 0o644 };
    archive.add("lib/modules/aliases", entry);
    Ok(archive)
}

fn write_initramfs(archive: &Archive, target: &Path) -> Result<String, GuestImageError> {
    let mut out =
        io::BufWriter::new(File::create(target).map_err(CacheError::io("create", target))?);
    archive
        .write_to(&mut out)
        .and_then(|()| out.flush())
        .map_err(CacheError::io("write", target))?;
    Ok(digest::of_file(target).map_err(CacheError::io("read", target))?)
}
