//! Who may do something now, and who runs.
//!
//! Locks are flock(2) locks: they belong to an open file, so they end with their holder, however it ends, and they are
//! not inherited by the programs that the holder starts (every descriptor of ours is close-on-exec).
//!
//! The other way round for files that a VM stands on: [`mark_used`] locks the very descriptor that the VMM inherits, so
//! that the file counts as used until the VMM has ended ([`is_used`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::atomic::FileError;

/// How often a lock that somebody holds is tried again; flock(2) itself knows no time-out.
const RETRY: Duration = Duration::from_millis(10);

/// A lock that is held. Dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it, and did for the whole time.
    #[error("{} is locked by another process", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// What it belongs to is not there.
    #[error("{} does not exist", path.display())]
    Gone {
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Lock {
    /// Takes the lock, waiting at most so long. The file is made where its directory exists.
    pub fn take(path: &Path, at_most: Duration) -> Result<Self, LockError> {
        Self::acquire(path, OFlags::CREATE, at_most, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock if its file exists and nobody holds it. Never makes the file: somebody may just be removing the
    /// directory.
    pub(crate) fn take_existing(path: &Path) -> Result<Self, LockError> {
        let operation = FlockOperation::NonBlockingLockExclusive;
        Self::acquire(path, OFlags::empty(), Duration::ZERO, operation)
    }

    /// Says whether somebody holds the lock. What does not exist is not held.
    pub fn is_held(path: &Path) -> Result<bool, LockError> {
        // Shared, so that two who ask at once do not see each other.
        let operation = FlockOperation::NonBlockingLockShared;
        match Self::acquire(path, OFlags::empty(), Duration::ZERO, operation) {
            Ok(_) | Err(LockError::Gone { .. }) => Ok(false),
            Err(LockError::Held { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn acquire(
        path: &Path,
        flags: OFlags,
        at_most: Duration,
        operation: FlockOperation,
    ) -> Result<Self, LockError> {
        let failed = |error| LockError::File(FileError::new("lock", path, error));
        let started = Instant::now();
        loop {
            let file = match open(path, flags) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(LockError::Gone { path: path.to_owned() });
                }
                Err(error) => return Err(failed(error)),
            };
            match flock(&file, operation) {
                // While we waited, the directory may have been removed or replaced: then this is nobody's lock.
                Ok(()) => match names(path, &file) {
                    Ok(true) => return Ok(Self { _file: file }),
                    Ok(false) => continue,
                    Err(error) => return Err(failed(error)),
                },
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(failed(error.into())),
            }
            if started.elapsed() >= at_most {
                return Err(LockError::Held { path: path.to_owned() });
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Has a file count as used while this open file lives: in this process, or in one that inherited the descriptor.
///
/// Waits while somebody removes the file, who is done in an instant; what was opened can be used all the same.
pub fn mark_used(file: &impl AsFd) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| flock(file, FlockOperation::LockShared))?)
}

/// Says whether somebody uses the file. What cannot be examined is used; what is not there is not.
pub fn is_used(path: &Path) -> bool {
    match OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
    {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

/// Says whether the path still leads to this very file.
fn names(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
