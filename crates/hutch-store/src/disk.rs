//! The sandbox's data disk: a sparse file with an empty ext4 file system.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::atomic::FileError;

/// Smallest data disk: ext4 with a journal and room for something.
pub const DISK_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Why there is no data disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// A size that no file system fits.
    #[error("a data disk of {bytes} bytes is too small: at least {DISK_BYTES_MIN}")]
    TooSmall {
        /// The size.
        bytes: u64,
    },
    /// The program is missing.
    #[error("mkfs.ext4 is not installed (Debian package e2fsprogs)")]
    NoMkfs,
    /// The program could not be started.
    #[error("mkfs.ext4 could not be started")]
    Start(#[source] io::Error),
    /// The program failed.
    #[error("mkfs.ext4 failed for {}: {said}", path.display())]
    Mkfs {
        /// The file.
        path: PathBuf,
        /// The end of what it said.
        said: String,
    },
}

/// Makes the file `path`, which must not exist, and the file system in it. Takes about a tenth of a second.
pub fn create(path: &Path, bytes: u64) -> Result<(), DiskError> {
    if bytes < DISK_BYTES_MIN {
        return Err(DiskError::TooSmall { bytes });
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| FileError::new("make", path, error))?;
    file.set_len(bytes).map_err(|error| FileError::new("make", path, error))?;

    let output = hutch_sys::spawn::command("mkfs.ext4")
        .args(["-F", "-q", "-m", "0"])
        // The kernel would otherwise write the inode tables in the background: a sparse file reads as zeros already.
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(path)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DiskError::NoMkfs),
        Err(error) => return Err(DiskError::Start(error)),
    };
    if output.status.success() {
        // The sandbox must not appear before its disk is on disk.
        return Ok(file.sync_all().map_err(|error| FileError::new("sync", path, error))?);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Its messages are not translated: the environment says `LANG=C.UTF-8`.
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        return Err(FileError::DiskFull { path: path.to_owned() }.into());
    }
    let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(DiskError::Mkfs { path: path.to_owned(), said: said.to_owned() })
}
