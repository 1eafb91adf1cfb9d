//! The sandbox's disks: the template's layers, the data disk, and the overlay that makes them one root.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_wire::guest::DATA_DISK;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::devices::{DeviceMissing, Devices};
use crate::root::{Kind, Root, RootError};
use crate::{log, modules};

/// How long a disk may take to appear after the driver is loaded.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// Directories that are large, or that cannot lie on an overlay because the container engine makes overlays of its own
/// in them: name on the data disk, place in the sandbox.
const PLAIN_DIRECTORIES: [(&str, &str); 2] =
    [("docker", "/var/lib/docker"), ("containerd", "/var/lib/containerd")];

/// The overlay's upper directory on the data disk.
const UPPER: &str = "overlay/upper";

/// Where the parts are mounted, all below one directory.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The file systems of the template's layers, each in a directory that its number names, the lowest being 0.
    pub(crate) template: PathBuf,
    /// How many there are.
    pub(crate) layers: usize,
    /// The data disk.
    pub(crate) data: PathBuf,
    /// The overlay: the sandbox's root.
    pub(crate) root: PathBuf,
    /// The file system with one child for each workspace.
    pub(crate) workspaces: PathBuf,
}

impl Places {
    /// Makes the mount points below `base`.
    pub(crate) fn make(base: &Path) -> io::Result<Self> {
        let place = |name: &str| {
            let path = base.join(name);
            fs::create_dir_all(&path).map(|()| path)
        };
        Ok(Self {
            template: place("template")?,
            layers: 0,
            data: place("data")?,
            root: place("root")?,
            workspaces: place("workspaces")?,
        })
    }

    /// The overlay's upper directory: what the sandbox has changed.
    pub(crate) fn upper(&self) -> PathBuf {
        self.data.join(UPPER)
    }

    /// Where each layer is, the uppermost first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = PathBuf> {
        (0..self.layers).rev().map(|layer| self.template.join(layer.to_string()))
    }
}

/// Why the root file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// A disk did not come.
    #[error(transparent)]
    Missing(#[from] DeviceMissing),
    /// A disk cannot be read.
    #[error("the {disk} disk cannot be read: {source}")]
    Read {
        /// Which.
        disk: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A disk has no file system that we mount.
    #[error("the {disk} disk has no {wanted} file system: it is damaged, or not one of ours")]
    Format {
        /// Which.
        disk: &'static str,
        /// What it should have.
        wanted: &'static str,
    },
    /// The kernel refuses a file system.
    #[error("the {disk} disk's file system {kind} cannot be mounted: {source}")]
    Mount {
        /// Which.
        disk: &'static str,
        /// Its type.
        kind: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The data disk cannot be prepared.
    #[error("cannot prepare {name} on the data disk: {source}")]
    Prepare {
        /// Which directory.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The two cannot be joined.
    #[error("the template and the data disk cannot be overlaid: {0}")]
    Overlay(#[source] io::Error),
    /// The mount points cannot be made.
    #[error("cannot make mount points: {0}")]
    Places(#[source] io::Error),
}

/// Mounts the template's layers, each by itself and read-only.
pub(crate) fn mount_template(devices: &Devices, places: &mut Places) -> Result<(), DiskError> {
    for (layer, device) in devices.template_disks(DISK_LIMIT)?.iter().enumerate() {
        let target = places.template.join(layer.to_string());
        fs::create_dir_all(&target).map_err(DiskError::Places)?;
        mount_layer(device, &target)?;
        places.layers = layer + 1;
    }
    Ok(())
}

fn mount_layer(device: &Path, target: &Path) -> Result<(), DiskError> {
    let disk = "template";
    let head = read_head(device).map_err(|source| DiskError::Read { disk, source })?;
    let kind = match Format::detect(&head) {
        Some(Format::Erofs) => "erofs",
        Some(Format::Squashfs) => "squashfs",
        _ => return Err(DiskError::Format { disk, wanted: "erofs or squashfs" }),
    };
    let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NODEV;
    let failed = |source: Errno| DiskError::Mount { disk, kind, source: source.into() };
    match mount(device, target, kind, flags, None::<&CStr>) {
        // The kernel does not know the type yet.
        Err(Errno::NODEV) => {
            modules::load_later(kind);
            mount(device, target, kind, flags, None::<&CStr>).map_err(failed)
        }
        result => result.map_err(failed),
    }
}

/// Mounts the data disk; the kernel repairs what a crash left by its journal.
pub(crate) fn mount_data(devices: &Devices, target: &Path) -> Result<(), DiskError> {
    let disk = DATA_DISK;
    let device = devices.disk(disk, DISK_LIMIT)?;
    let head = read_head(&device).map_err(|source| DiskError::Read { disk, source })?;
    if Format::detect(&head) != Some(Format::Ext4) {
        return Err(DiskError::Format { disk, wanted: "ext4" });
    }
    mount(&device, target, "ext4", MountFlags::NOATIME, Some(c"discard"))
        .map_err(|source| DiskError::Mount { disk, kind: "ext4", source: source.into() })
}

/// Joins template and data disk to the sandbox's root.
pub(crate) fn mount_root(places: &Places) -> Result<(), DiskError> {
    let make = |name| {
        make_data_directory(&places.data, name, 0o755)
            .map_err(|source| DiskError::Prepare { name, source })
    };
    make("overlay")?;
    let upper = make(UPPER)?;
    let work = make("overlay/work")?;
    let options = overlay_options(places.layers(), &upper, &work).map_err(DiskError::Overlay)?;
    mount("overlay", &places.root, "overlay", MountFlags::NOATIME, Some(options.as_c_str()))
        .map_err(|source| DiskError::Overlay(source.into()))
}

/// Puts directories of the data disk itself in the root. A root that cannot take them works without.
pub(crate) fn mount_plain_directories(places: &Places, root: &Root) {
    for (name, target) in PLAIN_DIRECTORIES {
        if !root.has_file(Path::new("/var/lib")) {
            continue;
        }
        let mounted = make_data_directory(&places.data, name, 0o711)
            .map_err(RootError::from_io(name))
            .and_then(|source| {
                root.bind(&source, Path::new(target), Kind::Directory, MountFlags::empty())
            });
        if let Err(error) = mounted {
            log::warn(format!("{target} stays on the overlay: {error}"));
        }
    }
}

/// `redirect_dir`: without it a directory of the template cannot be renamed, and package managers fail on that.
/// `index` and `metacopy` buy nothing here and tie the upper layer to this very template image.
fn overlay_options(
    layers: impl Iterator<Item = PathBuf>,
    upper: &Path,
    work: &Path,
) -> io::Result<CString> {
    let lower: Vec<String> = layers.map(|layer| layer.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=on,xino=auto",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    CString::new(options).map_err(io::Error::other)
}

fn make_data_directory(data: &Path, name: &str, mode: u32) -> io::Result<PathBuf> {
    let path = data.join(name);
    match fs::create_dir(&path) {
        Ok(()) => fs::set_permissions(&path, Permissions::from_mode(mode))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // The data disk is written by us alone, but a disk may be damaged.
    if !fs::symlink_metadata(&path)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(path)
}

/// A file system told by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Erofs,
    Squashfs,
    Ext4,
}

/// Enough of a disk's start for every magic number.
const HEAD: usize = 2048;

impl Format {
    fn detect(head: &[u8]) -> Option<Self> {
        let at = |offset: usize, magic: &[u8]| {
            head.get(offset..offset + magic.len()).is_some_and(|found| found == magic)
        };
        if at(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
            Some(Self::Erofs)
        } else if at(0, b"hsqs") {
            Some(Self::Squashfs)
        } else if at(1024 + 56, &[0x53, 0xef]) {
            Some(Self::Ext4)
        } else {
            None
        }
    }
}

fn read_head(device: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    File::open(device)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(Format::detect(&head(1024, &[0xe2, 0xe1, 0xf5, 0xe0])), Some(Format::Erofs));
        assert_eq!(Format::detect(&head(0, b"hsqs")), Some(Format::Squashfs));
        assert_eq!(Format::detect(&head(1080, &[0x53, 0xef])), Some(Format::Ext4));
        assert_eq!(Format::detect(&vec![0; HEAD]), None);
    }

    #[test]
    fn options_name_all_three_directories() {
        let base = tempfile::tempdir().unwrap();
        let places = Places { layers: 2, ..Places::make(base.path()).unwrap() };
        let options = overlay_options(places.layers(), Path::new("/d/u"), Path::new("/d/w"));
        let options = options.unwrap().into_string().unwrap();
        let template = places.template.display();
        let start =
            format!("lowerdir={template}/1:{template}/0,upperdir=/d/u,workdir=/d/w,index=off");
        assert!(options.starts_with(&start), "{options}");
    }

    #[test]
    fn something_else_in_a_directorys_place_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        File::create(data.path().join("docker")).unwrap();
        assert!(make_data_directory(data.path(), "docker", 0o711).is_err());
        let made = make_data_directory(data.path(), "overlay", 0o755).unwrap();
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    proptest! {
        #[test]
        fn any_disk_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..HEAD)) {
            let _ignored = Format::detect(&bytes);
        }
    }
}
