//! The sandbox's root file system seen from outside, where nothing in it may lead us astray.
//!
//! What an earlier run of the sandbox left in the upper layer is hostile: a symbolic link in place of a directory must
//! not make init write into its own file system. So a path is walked one name at a time, below a held descriptor, and
//! never through a link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat, openat2,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree,
};

/// A file larger than this is not one that we would have written.
const READ_MAX: u64 = 64 * 1024;
const STRICT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Name under which a file is written before it takes its place.
const TEMPORARY: &str = ".hutch-new";

/// Why something in the root could not be reached or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// A name on the way is a symbolic link.
    #[error("{} is a symbolic link in the sandbox, which is not followed", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A name on the way is not a directory.
    #[error("{} is not a directory in the sandbox", path.display())]
    NotDirectory {
        /// What is in the way.
        path: PathBuf,
    },
    /// The path is not a plain absolute path.
    #[error("{} is not an absolute path without `.` and `..`", path.display())]
    NotPlain {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What to make where a path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory, 0755.
    Directory,
    /// An empty file.
    File,
}

/// A held root directory.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
}

impl RootError {
    /// For an error of the system about `path`.
    pub(crate) fn from_io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}

impl Root {
    /// Holds the directory at `path`, which is ours.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: openat(CWD, path, flags, Mode::empty())? })
    }

    /// Opens the place `path` names, for use as a mount point; makes what is missing, owned by root.
    pub(crate) fn make(&self, path: &Path, kind: Kind) -> Result<OwnedFd, RootError> {
        let names = plain_names(path)?;
        let mut at = PathBuf::from("/");
        let mut current = self.here()?;
        for (index, name) in names.iter().enumerate() {
            at.push(name);
            let kind = if index + 1 == names.len() { kind } else { Kind::Directory };
            current = match open_name(&current, name, kind) {
                Err(Errno::NOENT) => {
                    make_name(&current, name, kind).map_err(|error| explain(&at, error))?;
                    open_name(&current, name, kind)
                }
                result => result,
            }
            .map_err(|error| explain(&at, error))?;
        }
        Ok(current)
    }

    /// Mounts what is at `source`, which is ours, at `target` in the root; makes the mount point if it is missing.
    ///
    /// `flags` are added to those that the source's mount has.
    pub(crate) fn bind(
        &self,
        source: &Path,
        target: &Path,
        kind: Kind,
        flags: MountFlags,
    ) -> Result<(), RootError> {
        let io = |error: Errno| RootError::Io { path: target.to_owned(), source: error.into() };
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source, clone).map_err(io)?;
        // By descriptors: between the check of the path and the mount nobody can put a link there.
        let place = self.make(target, kind)?;
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &place, "", empty).map_err(io)?;
        if flags.is_empty() {
            return Ok(());
        }
        let mounted = format!("/proc/self/fd/{}", tree.as_raw_fd());
        mount_remount(&mounted, MountFlags::BIND | flags, "").map_err(io)
    }

    /// Opens a directory that is there.
    pub(crate) fn directory(&self, path: &Path) -> Result<OwnedFd, RootError> {
        // The leading point stands for the root itself when there is no name.
        let names = plain_names(path)?;
        let relative: PathBuf = std::iter::once(OsStr::new(".")).chain(names).collect();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.directory, &relative, flags, Mode::empty(), STRICT)
            .map_err(|error| explain(path, error))
    }

    /// Whether a file is there, seen as a process in the sandbox sees it: links are followed inside the root.
    pub(crate) fn has_file(&self, path: &Path) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.directory, path, flags, Mode::empty(), resolve).is_ok()
    }

    /// Opens a regular file for reading, as a process in the sandbox would: links are followed inside the root.
    pub(crate) fn read(&self, path: &Path) -> io::Result<File> {
        // A FIFO in the file's place must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(&self.directory, path, flags, Mode::empty(), resolve)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Makes a file have this content; leaves it alone when it has. A link in its place is replaced.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        let io = |source: io::Error| RootError::Io { path: path.to_owned(), source };
        if read_file(&parent, name).is_ok_and(|now| now == content) {
            return Ok(());
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        unlinkat(&parent, TEMPORARY, AtFlags::empty()).ok();
        let file = openat(&parent, TEMPORARY, flags, Mode::from_raw_mode(0o644))
            .map_err(|error| io(error.into()))?;
        File::from(file).write_all(content).map_err(io)?;
        renameat(&parent, TEMPORARY, &parent, name).map_err(|error| io(error.into()))
    }

    /// Reads a regular file of at most `most` bytes, as [`Root::read`] opens it. `None` when there is none.
    pub(crate) fn content(&self, path: &Path, most: u64) -> Result<Option<Vec<u8>>, RootError> {
        let failed = |source| RootError::Io { path: path.to_owned(), source };
        let file = match self.read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut content = Vec::new();
        file.take(most + 1).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > most {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(Some(content))
    }

    /// Makes a regular file have this content without making a new one in its place: whoever has it mounted sees it
    /// too. Links are followed inside the root. Leaves it alone when it has the content.
    pub(crate) fn overwrite(&self, path: &Path, content: &[u8]) -> Result<(), RootError> {
        let failed = |source| RootError::Io { path: path.to_owned(), source };
        let most = content.len() as u64 + READ_MAX;
        if self.content(path, most).is_ok_and(|now| now.as_deref() == Some(content)) {
            return Ok(());
        }
        // A FIFO in the file's place must not hold us up.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut file = openat2(&self.directory, path, flags, Mode::from_raw_mode(0o644), resolve)
            .map(File::from)
            .map_err(|error| explain(path, error))?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        file.write_all(content).map_err(failed)?;
        file.set_len(content.len() as u64).map_err(failed)
    }

    /// Removes a file or a link.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        unlinkat(&parent, name, AtFlags::empty()).map_err(|error| explain(path, error))
    }

    /// Sets who may do what with a file that is no link.
    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::empty())
            .and_then(|file| rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)))
            .map_err(|error| explain(path, error))
    }

    /// Gives a file or link to a user.
    pub(crate) fn set_owner(&self, path: &Path, owner: (Uid, Gid)) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        let (user, group) = owner;
        chownat(&parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| explain(path, error))
    }

    /// Makes a symbolic link; replaces what is there unless it is a directory.
    pub(crate) fn link(&self, path: &Path, target: &Path) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        let io = |error: Errno| RootError::Io { path: path.to_owned(), source: error.into() };
        if rustix::fs::readlinkat(&parent, name, Vec::new())
            .is_ok_and(|now| now.as_bytes() == target.as_os_str().as_encoded_bytes())
        {
            return Ok(());
        }
        unlinkat(&parent, TEMPORARY, AtFlags::empty()).ok();
        symlinkat(target, &parent, TEMPORARY).map_err(io)?;
        renameat(&parent, TEMPORARY, &parent, name).map_err(io)
    }

    /// Makes a symbolic link owned by `owner` where nothing is.
    pub(crate) fn link_if_absent(
        &self,
        path: &Path,
        target: &Path,
        owner: (Uid, Gid),
    ) -> Result<(), RootError> {
        let (parent, name) = self.parent(path)?;
        let made = match symlinkat(target, &parent, name) {
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                let (user, group) = owner;
                chownat(&parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
            }
        };
        made.map_err(|error| explain(path, error))
    }

    fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), RootError> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((self.directory(parent)?, name)),
            _ => Err(RootError::NotPlain { path: path.to_owned() }),
        }
    }

    fn here(&self) -> Result<OwnedFd, RootError> {
        self.directory
            .try_clone()
            .map_err(|source| RootError::Io { path: PathBuf::from("/"), source })
    }
}

fn open_name(parent: &OwnedFd, name: &OsStr, kind: Kind) -> Result<OwnedFd, Errno> {
    let flags = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Kind::File => OFlags::PATH | OFlags::CLOEXEC,
    };
    openat2(parent, name, flags, Mode::empty(), STRICT)
}

fn make_name(parent: &OwnedFd, name: &OsStr, kind: Kind) -> Result<(), Errno> {
    match kind {
        Kind::Directory => mkdirat(parent, name, DIRECTORY_MODE),
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

fn read_file(parent: &OwnedFd, name: &OsStr) -> io::Result<Vec<u8>> {
    // A FIFO left in the file's place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(parent, name, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(READ_MAX).read_to_end(&mut content)?;
    Ok(content)
}

fn explain(path: &Path, error: Errno) -> RootError {
    let path = path.to_owned();
    match error {
        Errno::LOOP => RootError::Link { path },
        Errno::NOTDIR => RootError::NotDirectory { path },
        error => RootError::Io { path, source: error.into() },
    }
}

/// The names of an absolute path that has nothing else in it.
pub(crate) fn plain_names(path: &Path) -> Result<Vec<&OsStr>, RootError> {
    let not_plain = || RootError::NotPlain { path: path.to_owned() };
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(not_plain());
    }
    components
        .map(|component| match component {
            Component::Normal(name) if !name.as_encoded_bytes().contains(&0) => Ok(name),
            _ => Err(not_plain()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let held = Root::open(&root).unwrap();
        (directory, held)
    }

    #[test]
    fn missing_directories_are_made() {
        let (directory, root) = root();
        root.make(Path::new("/home/ü x/project"), Kind::Directory).unwrap();
        root.make(Path::new("/home/ü x/file"), Kind::File).unwrap();
        let made = fs::metadata(directory.path().join("root/home/ü x/project")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.mode() & 0o7777, 0o755);
        assert!(directory.path().join("root/home/ü x/file").is_file());
    }

    #[test]
    fn files_are_read_inside_the_root_and_nothing_else_is() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("root/etc")).unwrap();
        for (place, content) in [("secret", "outside"), ("root/etc/file", "inside")] {
            File::create(directory.path().join(place))
                .unwrap()
                .write_all(content.as_bytes())
                .unwrap();
        }
        symlink("/etc/file", directory.path().join("root/link")).unwrap();
        symlink("../secret", directory.path().join("root/out")).unwrap();
        let read = |path: &str| {
            let mut text = String::new();
            root.read(Path::new(path))?.read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(read("/etc/file").unwrap(), "inside");
        assert_eq!(read("/link").unwrap(), "inside");
        for not in ["/out", "/../secret", "/etc", "/missing"] {
            assert!(read(not).is_err(), "{not}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_refused_and_nothing_is_made_behind_it() {
        let (directory, root) = root();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, directory.path().join("root/home")).unwrap();
        let error = root.make(Path::new("/home/project"), Kind::Directory).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/home is a symbolic link in the sandbox, which is not followed"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_link_at_the_end_is_refused() {
        let (directory, root) = root();
        symlink("/", directory.path().join("root/project")).unwrap();
        for kind in [Kind::Directory, Kind::File] {
            let error = root.make(Path::new("/project"), kind).unwrap_err();
            assert!(matches!(error, RootError::Link { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_on_the_way_is_named() {
        let (_directory, root) = root();
        root.make(Path::new("/a"), Kind::File).unwrap();
        let error = root.make(Path::new("/a/b"), Kind::Directory).unwrap_err();
        assert_eq!(error.to_string(), "/a is not a directory in the sandbox");
    }

    #[test]
    fn only_plain_absolute_paths_are_walked() {
        for path in ["relative", "/a/../b", "", "/a/.."] {
            assert!(plain_names(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(plain_names(Path::new("/a//b/")).unwrap(), ["a", "b"]);
    }

    #[test]
    fn writing_replaces_a_link_and_not_its_target() {
        let (directory, root) = root();
        let etc = directory.path().join("root/etc");
        fs::create_dir(&etc).unwrap();
        let victim = directory.path().join("victim");
        File::create(&victim).unwrap();
        symlink(&victim, etc.join("hostname")).unwrap();
        root.write(Path::new("/etc/hostname"), b"box\n").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"");
        assert_eq!(fs::read(etc.join("hostname")).unwrap(), b"box\n");
    }

    #[test]
    fn an_equal_file_is_not_touched() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("root/etc")).unwrap();
        let file = directory.path().join("root/etc/hostname");
        root.write(Path::new("/etc/hostname"), b"box\n").unwrap();
        let before = fs::metadata(&file).unwrap().ino();
        root.write(Path::new("/etc/hostname"), b"box\n").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), before);
        root.write(Path::new("/etc/hostname"), b"other\n").unwrap();
        assert_ne!(fs::metadata(&file).unwrap().ino(), before);
    }

    #[test]
    fn a_fifo_in_a_files_place_does_not_block() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("root/etc")).unwrap();
        let fifo = directory.path().join("root/etc/hosts");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o666)).unwrap();
        root.write(Path::new("/etc/hosts"), b"hosts\n").unwrap();
        assert_eq!(fs::read(&fifo).unwrap(), b"hosts\n");
    }

    #[test]
    fn an_existing_link_is_kept_when_only_the_absent_is_wanted() {
        let (directory, root) = root();
        let owner = (rustix::process::getuid(), rustix::process::getgid());
        root.link_if_absent(Path::new("/w"), Path::new("/one"), owner).unwrap();
        root.link_if_absent(Path::new("/w"), Path::new("/two"), owner).unwrap();
        let link = directory.path().join("root/w");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/one"));
        root.link(Path::new("/w"), Path::new("/two")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/two"));
    }
}
