//! How a file is written: a temporary file beside it, fsync, rename, fsync of the directory.
//!
//! A reader, and a machine that loses its power, sees the old content or the new, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::name::random_hex;

/// Why a file of ours could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system, or the user's share of it, is full.
    #[error("no space is left on the disk that holds {}", path.display())]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
    },
    /// Another step failed.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was to be done, before the path: `read`, `make the directory`.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Sorts out the errors that a person can act on.
    pub(crate) fn new(step: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { step, path, source },
        }
    }
}

/// How a temporary file's name starts; whatever has such a name may be removed while its directory is locked.
const TEMPORARY: &str = ".write-";

/// Replaces the content of `path`, readable for us alone.
pub fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    put(path, content, |temporary| fs::rename(temporary, path))
}

/// The same for what means nothing after the machine has stopped: every reader sees the old content or the new, and nobody
/// waits for the disk. A loss of power may leave an empty file.
pub fn write_for_now(path: &Path, content: &[u8]) -> Result<(), FileError> {
    put_with(path, content, Durable::No, |temporary| fs::rename(temporary, path))
}

/// Makes the file `path`, readable for us alone; one that exists meanwhile stays as it is.
pub(crate) fn write_new_file(path: &Path, content: &[u8]) -> Result<(), FileError> {
    put(path, content, |temporary| {
        match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => fs::remove_file(temporary),
            placed => Ok(placed?),
        }
    })
}

/// Writes a file under another name, then has it put in its place.
fn put(
    path: &Path,
    content: &[u8],
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), FileError> {
    put_with(path, content, Durable::Yes, place)
}

/// Whether a file is to survive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    No,
}

fn put_with(
    path: &Path,
    content: &[u8],
    durable: Durable,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let random = random_hex::<6>()
        .map_err(|error| FileError::new("write", path, io::Error::other(error)))?;
    let temporary = directory.join(format!("{TEMPORARY}{random}"));
    let written = write_new(&temporary, content, durable).and_then(|()| place(&temporary));
    if let Err(error) = written {
        // The name is ours alone, so nothing else can be lost; it may never have been made.
        drop(fs::remove_file(&temporary));
        return Err(FileError::new("write", path, error));
    }
    if durable == Durable::Yes { sync_directory(directory) } else { Ok(()) }
}

fn write_new(path: &Path, content: &[u8], durable: Durable) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if durable == Durable::Yes { file.sync_all() } else { Ok(()) }
}

/// Makes renames and removals in a directory last.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| FileError::new("sync the directory", directory, error))
}

/// Reads a whole file of at most `max` bytes; a longer one is an error, not a part.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::new("read", path, error);
    let file = OpenOptions::new()
        .read(true)
        // A FIFO put in the file's place must not stop us.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > max {
        return Err(failed(io::Error::other("far larger than it can be")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        write(&path, b"one").unwrap();
        write_for_now(&path, b"now").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"now");
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("directory");
        fs::create_dir(&path).unwrap();
        write(&path, b"x").unwrap_err();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("long");
        write(&long, &[0; 11]).unwrap();
        assert!(read(&long, 10).is_err());
        assert!(read(base.path(), 10).is_err());
        let fifo = base.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read(&fifo, 10).is_err());
    }
}
