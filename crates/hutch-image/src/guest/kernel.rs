//! Gets the kernel: the distribution's package, kept in the cache, or files that a person gave.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::apt::{self, Apt, AptError};
use crate::cache::{Cache, CacheError, Locked};
use crate::digest::{self, Key};
use crate::guest::{GuestImageError, GuestImageOptions, GuestImageSource, Refresh};
use crate::tool::{ToolError, Toolbox};

/// The package that always depends on the newest kernel for virtual machines of this architecture.
#[cfg(target_arch = "x86_64")]
const META_PACKAGE: &str = "linux-image-cloud-amd64";
#[cfg(target_arch = "aarch64")]
const META_PACKAGE: &str = "linux-image-cloud-arm64";

const FORMAT_VERSION: u32 = 1;
const PACKAGE_FILE: &str = "package.deb";

/// `manifest.json` of a kept kernel package.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    package: String,
    version: String,
    sha256: String,
    /// Seconds since the epoch: of several, the one that was fetched last is used.
    fetched: u64,
}

/// A kernel that is on this machine, perhaps still packed.
#[derive(Debug)]
pub(crate) enum KernelSource {
    /// A package in the cache.
    Package { file: PathBuf, name: String, version: String, sha256: String },
    /// Plain files.
    Files { files: KernelFiles, key: String },
}

/// Whether a kernel loads modules without a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signatures {
    /// It does: the distribution's kernel.
    Optional,
    /// Not known of a kernel that somebody gave.
    PerhapsRequired,
}

/// A kernel in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelFiles {
    /// The image, as distributed.
    pub(crate) kernel: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: Option<PathBuf>,
    /// The release.
    pub(crate) release: String,
    /// The package's version; the release again where there was no package.
    pub(crate) version: String,
    /// What is known about a kernel that insists on signed modules.
    pub(crate) signatures: Signatures,
}

/// Finds or fetches the kernel that `options` ask for.
pub(crate) fn resolve(
    options: &GuestImageOptions,
    kernels: &Cache,
    progress: &dyn Progress,
) -> Result<KernelSource, GuestImageError> {
    let (mirror, refresh) = match &options.source {
        GuestImageSource::Files { kernel, modules } => return given(kernel, modules.as_deref()),
        GuestImageSource::Distribution { mirror, refresh } => (mirror.as_deref(), *refresh),
    };
    if refresh == Refresh::Missing
        && let Some(found) = newest(kernels)
    {
        return Ok(found);
    }
    let locked = kernels.lock(progress)?;
    locked.clean()?;
    if refresh == Refresh::Missing
        && let Some(found) = newest(kernels)
    {
        return Ok(found);
    }
    fetch(options, mirror, &locked, progress)?;
    newest(kernels).ok_or_else(|| no_content("kernel after it was fetched"))
}

fn no_content(missing: &'static str) -> GuestImageError {
    GuestImageError::PackageContent { package: META_PACKAGE.to_owned(), missing }
}

/// The kernel that [`resolve`] would give without fetching anything.
pub(crate) fn at_hand(options: &GuestImageOptions, kernels: &Cache) -> Option<KernelSource> {
    match &options.source {
        GuestImageSource::Files { kernel, modules } => given(kernel, modules.as_deref()).ok(),
        GuestImageSource::Distribution { .. } => newest(kernels),
    }
}

/// The kept package that was fetched last.
fn newest(kernels: &Cache) -> Option<KernelSource> {
    kernels
        .all::<Manifest>()
        .into_iter()
        .filter(|(path, manifest)| {
            manifest.format_version == FORMAT_VERSION && path.join(PACKAGE_FILE).is_file()
        })
        .max_by_key(|(_, manifest)| manifest.fetched)
        .map(|(path, manifest)| KernelSource::Package {
            file: path.join(PACKAGE_FILE),
            name: manifest.package,
            version: manifest.version,
            sha256: manifest.sha256,
        })
}

fn fetch(
    options: &GuestImageOptions,
    mirror: Option<&str>,
    locked: &Locked<'_>,
    progress: &dyn Progress,
) -> Result<(), GuestImageError> {
    let log = options.images.join("logs/kernel.log");
    let tools = Toolbox::new(&options.environment, &log, locked.file())
        .map_err(CacheError::io("create", &log))?;
    let draft = locked.begin("package")?;
    let failed = |error: AptError| match error {
        AptError::Tool(ToolError::Missing { .. }) => GuestImageError::NoApt,
        other => GuestImageError::Fetch(other),
    };
    progress.step("fetching the list of packages");
    let mirrors = apt::mirrors(&tools, mirror).map_err(failed)?;
    let work = draft.path().join("apt");
    let client = Apt::new(&tools, &work, &mirrors).map_err(failed)?;
    client
        .update(&mut |percent| progress.advance(apt::share(100, percent), Some(100), "percent"))
        .map_err(failed)?;
    let meta = client.show(META_PACKAGE).map_err(failed)?;
    let name =
        meta.dependency("linux-image-").ok_or_else(|| no_content("dependency on a kernel"))?;
    let package = client.show(name).map_err(failed)?;
    progress.step("fetching the guest's kernel");
    let deb = client
        .download(&package, &mut |bytes| progress.advance(bytes, Some(package.size), "bytes"))
        .map_err(failed)?;
    let kept = draft.path().join(PACKAGE_FILE);
    fs::rename(&deb, &kept).map_err(CacheError::io("rename", &deb))?;
    fs::remove_dir_all(&work).map_err(CacheError::io("remove", &work))?;
    let fetched = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let key =
        Key::default().part("package", &package.name).part("sha256", &package.sha256).finish();
    draft.publish_as(
        &key,
        &Manifest {
            format_version: FORMAT_VERSION,
            package: package.name,
            version: package.version,
            sha256: package.sha256,
            fetched,
        },
    )?;
    Ok(())
}

/// Files by path: their content is the key, so that a rebuilt kernel under the same name is a new one.
fn given(kernel: &Path, modules: Option<&Path>) -> Result<KernelSource, GuestImageError> {
    let unreadable = |what, path: &Path| {
        let path = path.to_owned();
        move |source| GuestImageError::Input { what, path, source }
    };
    let mut key = Key::default()
        .part("image", digest::of_file(kernel).map_err(unreadable("the kernel", kernel))?);
    if let Some(directory) = modules {
        let set = super::modules::collect(directory)?;
        for module in set.boot.iter().chain(&set.later) {
            key = key.part(&module.file_name, &module.content);
        }
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let release = match modules {
        Some(directory) => {
            let real = fs::canonicalize(directory)
                .map_err(unreadable("the kernel's modules", directory))?;
            name(&real)
        }
        None => name(kernel),
    };
    let release = release.unwrap_or_else(|| "unknown".to_owned());
    let files = KernelFiles {
        kernel: kernel.to_owned(),
        modules: modules.map(Path::to_owned),
        version: release.clone(),
        release,
        signatures: Signatures::PerhapsRequired,
    };
    Ok(KernelSource::Files { files, key: key.finish() })
}

impl KernelSource {
    /// Tells this kernel from all others.
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Package { sha256, .. } => sha256,
            Self::Files { key, .. } => key,
        }
    }

    /// The directory that keeps it, if it is one of ours.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Package { file, .. } => file.parent(),
            Self::Files { .. } => None,
        }
    }

    /// Makes sure that it is there as files, unpacking into `directory` where necessary.
    pub(crate) fn unpack(
        &self,
        directory: &Path,
        log: &Path,
        environment: &[(OsString, OsString)],
        lock: &File,
    ) -> Result<KernelFiles, GuestImageError> {
        match self {
            Self::Files { files, .. } => Ok(files.clone()),
            Self::Package { file, name, version, .. } => {
                let tools =
                    Toolbox::new(environment, log, lock).map_err(CacheError::io("create", log))?;
                tools
                    .tool("dpkg-deb", "dpkg")
                    .arg("-x")
                    .arg(file)
                    .arg(directory)
                    .output()
                    .map_err(GuestImageError::Unpack)?;
                find_files(directory, name, version)
            }
        }
    }
}

/// Finds the kernel and its modules in an unpacked package.
fn find_files(
    directory: &Path,
    package: &str,
    version: &str,
) -> Result<KernelFiles, GuestImageError> {
    let missing =
        |missing| GuestImageError::PackageContent { package: package.to_owned(), missing };
    // `/lib` is a link to `/usr/lib` on a merged system, but not in each package.
    let (release, modules) = ["usr/lib/modules", "lib/modules"]
        .iter()
        .find_map(|path| only_entry(&directory.join(path)))
        .ok_or_else(|| missing("modules"))?;
    let kernel = directory.join("boot").join(format!("vmlinuz-{release}"));
    if !kernel.is_file() {
        return Err(missing("kernel"));
    }
    Ok(KernelFiles {
        kernel,
        modules: Some(modules),
        release,
        version: version.to_owned(),
        signatures: Signatures::Optional,
    })
}

fn only_entry(directory: &Path) -> Option<(String, PathBuf)> {
    let entry = fs::read_dir(directory).ok()?.filter_map(Result::ok).next()?;
    Some((entry.file_name().into_string().ok()?, entry.path()))
}
