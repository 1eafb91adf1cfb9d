//! The container's own view: namespaces, file systems, devices.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move,
    mount_remount, unmount,
};
use rustix::thread::UnshareFlags;

use crate::engine;

/// What could not be done, as one sentence for init.
pub(super) type Broken = String;

/// The namespaces of the container. The network stays init's: there is none but what init offers.
pub(super) const NAMESPACES: UnshareFlags = UnshareFlags::NEWPID
    .union(UnshareFlags::NEWNS)
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

/// Turns `root` into the whole file system of this process, which is PID 1 of its own namespaces.
pub(super) fn enter(root: &Path, hostname: &str) -> Result<(), Broken> {
    rustix::system::sethostname(hostname.as_bytes())
        .map_err(|error| format!("cannot set the host name: {error}"))?;
    // Nothing mounted from here on is seen outside, and nothing outside comes in.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| format!("cannot make mounts private: {error}"))?;
    let root = &own_mount(root)
        .map_err(|error| format!("cannot use the root {}: {error}", root.display()))?;
    kernel_file_systems(root)?;
    programs(root).map_err(|error| format!("cannot offer init's programs: {error}"))?;
    devices(&root.join("dev")).map_err(|error| format!("cannot make /dev: {error}"))?;
    change_root(root).map_err(|error| format!("cannot change the root: {error}"))?;
    // Inside, what is mounted later may be passed on, to containers for one.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|error| format!("cannot share mounts: {error}"))
}

fn kernel_file_systems(root: &Path) -> Result<(), Broken> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    let plain = quiet | MountFlags::NOEXEC;
    for (kind, target, flags, data) in [
        ("proc", "proc", plain, ""),
        ("sysfs", "sys", plain, ""),
        ("cgroup2", "sys/fs/cgroup", plain, "nsdelegate"),
        ("tmpfs", "dev", MountFlags::NOSUID, "mode=755,size=64m"),
        ("tmpfs", "run", quiet, "mode=755"),
    ] {
        let target = root.join(target);
        make_directory(&target)?;
        mount_at(kind, &target, flags, data)?;
    }
    for file in MASKED {
        let file = root.join(file);
        // A kernel without one needs no mask for it.
        if file.exists() {
            mount_bind("/dev/null", &file)
                .map_err(|error| format!("cannot mask {}: {error}", file.display()))?;
        }
    }
    make_directory(&root.join("run/lock"))?;
    chmod(root.join("run/lock"), Mode::from_raw_mode(0o1777))
        .map_err(|error| format!("cannot make /run/lock: {error}"))
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
    fs::create_dir(dev.join("net"))?;
    device(&dev.join("net/tun"), 10, 200)?;
    for (name, target) in DEVICE_LINKS {
        symlink(target, dev.join(name))?;
    }
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, name, flags, data) in [
        // Group 5 is tty in every distribution.
        ("devpts", "pts", plain, "newinstance,ptmxmode=0666,mode=620,gid=5"),
        ("tmpfs", "shm", plain | MountFlags::NODEV, "mode=1777"),
        ("mqueue", "mqueue", plain | MountFlags::NODEV, ""),
    ] {
        fs::create_dir(dev.join(name))?;
        mount_at(kind, &dev.join(name), flags, data).map_err(io::Error::other)?;
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

fn mount_at(kind: &str, target: &Path, flags: MountFlags, data: &str) -> Result<(), Broken> {
    let data = std::ffi::CString::new(data).map_err(|error| error.to_string())?;
    mount(kind, target, kind, flags, Some(data.as_c_str()))
        .map_err(|error| format!("cannot mount {kind} on {}: {error}", target.display()))
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

/// `root` if it is a mount point already, else the same directory bound onto itself.
fn own_mount(root: &Path) -> io::Result<PathBuf> {
    let root = root.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let is_mount = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| Path::new(point) == root);
    if !is_mount {
        mount_bind(&root, &root)?;
    }
    Ok(root)
}
