//! The container's own view: namespaces, file systems, devices.

//!
//! File systems are made before the root is known ([`Parts`]): mounts that are in no tree yet, held by descriptors. When
//! it is known they are put in their places in it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_bind, mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use crate::engine;

/// What could not be done, as one sentence for init.
pub(super) type Broken = String;

/// The namespaces of the container but that of its mounts, which comes with the root. The network stays init's: there is
/// none but what init offers.
pub(super) const NAMESPACES: UnshareFlags = UnshareFlags::NEWPID
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWCGROUP);

/// Character devices every program expects, with their numbers.
const DEVICES: [(&str, u32, u32); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Files of the kernel that act on the whole machine, whoever is root: a session would end its own sandbox with them.
const MASKED: [&str; 2] = ["proc/sysrq-trigger", "proc/kcore"];

/// What every container has, whatever its root: file systems in the order of their places, each below the root.
#[derive(Debug)]
pub(super) struct Parts {
    file_systems: Vec<(&'static str, OwnedFd)>,
    /// A device that hides files of the kernel, once for each of them.
    masks: Vec<(&'static str, OwnedFd)>,
}

/// Where the cgroup file system has its place.
const CGROUP: &str = "sys/fs/cgroup";

impl Parts {
    /// Makes them in the namespaces of this process.
    pub(super) fn make() -> Result<Self, Broken> {
        let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let plain = quiet | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let no_programs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mut file_systems = Vec::new();
        for (kind, place, flags, options) in [
            ("proc", "proc", plain, &[][..]),
            ("sysfs", "sys", plain, &[]),
            ("cgroup2", CGROUP, plain, &[("nsdelegate", "")]),
            (
                "tmpfs",
                "dev",
                MountAttrFlags::MOUNT_ATTR_NOSUID,
                &[("mode", "755"), ("size", "64m")],
            ),
            ("tmpfs", "run", quiet, &[("mode", "755")]),
            (
                "devpts",
                "dev/pts",
                no_programs,
                // Group 5 is tty in every distribution.
                &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "620"), ("gid", "5")],
            ),
            ("tmpfs", "dev/shm", plain, &[("mode", "1777")]),
            ("mqueue", "dev/mqueue", plain, &[]),
        ] {
            let made = file_system(kind, flags, options)
                .map_err(|error| format!("cannot make the file system {kind}: {error}"))?;
            file_systems.push((place, made));
        }
        let parts = Self { file_systems, masks: masks()? };
        devices(&parts.path("dev")).map_err(|error| format!("cannot make /dev: {error}"))?;
        let lock = parts.path("run").join("lock");
        fs::create_dir(&lock)
            .and_then(|()| Ok(chmod(&lock, Mode::from_raw_mode(0o1777))?))
            .map_err(|error| format!("cannot make /run/lock: {error}"))?;
        Ok(parts)
    }

    /// The container's cgroup file system, to be used before it has its place.
    pub(super) fn cgroup(&self) -> PathBuf {
        self.path(CGROUP)
    }

    /// A path to a file system that is in no tree.
    fn path(&self, place: &str) -> PathBuf {
        let of = self.file_systems.iter().find(|(known, _)| *known == place);
        let number = of.map_or(-1, |(_, file_system)| file_system.as_raw_fd());
        PathBuf::from(format!("/proc/self/fd/{number}"))
    }

    /// Turns `root` into the whole file system of this process, which is PID 1 of its own namespaces.
    pub(super) fn enter(self, root: &Path, hostname: &str) -> Result<(), Broken> {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|error| format!("cannot set the host name: {error}"))?;
        // Nothing mounted from here on is seen outside, and nothing outside comes in.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|error| format!("cannot make mounts private: {error}"))?;
        own_mount(root)
            .map_err(|error| format!("cannot use the root {}: {error}", root.display()))?;
        for (place, file_system) in &self.file_systems {
            let target = root.join(place);
            if !place.contains('/') {
                make_directory(&target)?;
            }
            put(file_system, &target)
                .map_err(|error| format!("cannot mount {}: {error}", target.display()))?;
        }
        for (file, mask) in &self.masks {
            put(mask, &root.join(file)).map_err(|error| format!("cannot mask {file}: {error}"))?;
        }
        programs(root).map_err(|error| format!("cannot offer init's programs: {error}"))?;
        change_root(root).map_err(|error| format!("cannot change the root: {error}"))?;
        // Inside, what is mounted later may be passed on, to containers for one.
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
            .map_err(|error| format!("cannot share mounts: {error}"))
    }
}

/// A mounted file system that is in no tree yet. An option without a value is a flag.
fn file_system(
    kind: &str,
    flags: MountAttrFlags,
    options: &[(&str, &str)],
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (name, value) in options {
        match value.is_empty() {
            true => fsconfig_set_flag(context.as_fd(), *name)?,
            false => fsconfig_set_string(context.as_fd(), *name, *value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn masks() -> Result<Vec<(&'static str, OwnedFd)>, Broken> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut masks = Vec::new();
    for file in MASKED {
        // A kernel without one needs no mask for it.
        if Path::new("/").join(file).exists() {
            let mask = open_tree(CWD, "/dev/null", flags)
                .map_err(|error| format!("cannot mask {file}: {error}"))?;
            masks.push((file, mask));
        }
    }
    Ok(masks)
}

fn put(mount: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Init's own program in the container, for what is done there in its name.
fn programs(root: &Path) -> io::Result<()> {
    let place = |path: &str| root.join(path.trim_start_matches('/'));
    fs::create_dir_all(place(engine::PROGRAMS))?;
    let program = place(engine::PROGRAM);
    fs::File::create(&program)?;
    // By its path: the link itself leads to the mount of another namespace.
    mount_bind(fs::read_link("/proc/self/exe")?, &program)?;
    mount_remount(&program, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, "")?;
    symlink(engine::PROGRAM, place(engine::PROGRAMS).join(engine::RUNTIME))
}

fn devices(dev: &Path) -> io::Result<()> {
    for (name, major, minor) in DEVICES {
        device(&dev.join(name), major, minor)?;
    }
    for directory in ["net", "pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(directory))?;
    }
    device(&dev.join("net/tun"), 10, 200)?;
    for (name, target) in DEVICE_LINKS {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    mknodat(
        CWD,
        path,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        makedev(major, minor),
    )?;
    // Whatever the umask is.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// Makes a mount point. The root was written by a former run of a hostile sandbox: a link in its place is refused.
fn make_directory(path: &Path) -> Result<(), Broken> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is no directory", path.display())),
        Err(_) => {
            fs::create_dir(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
        }
    }
}

fn change_root(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // Our root is the initramfs, which cannot be left that way; it is covered instead.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    rustix::process::chdir("/")?;
    Ok(())
}

/// Makes sure that `root` is a mount of its own: what is bound onto itself.
fn own_mount(root: &Path) -> io::Result<()> {
    let parent = root.parent().unwrap_or(root);
    // A file system of its own, as the sandbox's root is, is a mount.
    if fs::symlink_metadata(root)?.dev() == fs::symlink_metadata(parent)?.dev() {
        mount_bind(root, root)?;
    }
    Ok(())
}
