//! Saved virtual machines that sandboxes start from: made once a key, found by it, removed when in doubt.
//!
//! ```text
//! images/snapshots/<key>/      memory  state  snapshot.json
//! images/snapshots/<key>.lock  held by whoever makes it
//! images/snapshots/<key>.failed  why it could not be made last
//! ```
//!
//! The key says everything that a snapshot depends on; it is the caller's. Invariants: a snapshot's directory appears
//! complete or not at all; its files never change. A memory file that was written to after it was published has another
//! time of its last change (`ctime`, which nobody can set), and is not used any more.

mod cleanup;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::atomic::{self, FileError, sync_directory};
use crate::layout::{LayoutError, make_private};
use crate::lock::{Lock, LockError, is_used};
use crate::name::random_hex;
use crate::record::HostPath;
use crate::usage::bytes_on_disk;

const FORMAT_VERSION: u32 = 2;
const MEMORY: &str = "memory";
const STATE: &str = "state";
const RECORD: &str = "snapshot.json";
/// The state of devices has about half a MiB.
const STATE_MAX: u64 = 64 << 20;
const RECORD_MAX: u64 = 64 << 10;
const DAMAGED: &str = "its record is damaged";
/// How the directory of a snapshot that is being made starts.
const MAKING: &str = ".making-";

/// What a snapshot depends on, as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotKey(String);

impl SnapshotKey {
    /// The key of these facts: any two lists that differ have different keys.
    pub fn of<'a>(facts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for fact in facts {
            hash.update((fact.len() as u64).to_le_bytes());
            hash.update(fact);
        }
        Self(hex::encode(hash.finalize()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }
}

pub use self::cleanup::Unneeded;

/// All snapshots of an images directory.
#[derive(Debug, Clone)]
pub struct Snapshots {
    directory: PathBuf,
}

/// The open files of a snapshot.
#[derive(Debug)]
pub struct SnapshotFiles {
    /// Memory, open for reading.
    pub memory: File,
    /// State, open for reading, at its start.
    pub state: File,
}

/// A snapshot as `system df` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUse {
    /// Its key.
    pub key: SnapshotKey,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// When it was last resumed, or made.
    pub last_used: SystemTime,
    /// A VM runs on it.
    pub in_use: bool,
    /// It cannot be resumed any more: something that it stands on is gone, or it is of another version.
    pub stale: bool,
}

/// Why there is no snapshot to resume.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None was made, which is no reason to worry.
    #[error("no snapshot was made yet")]
    Missing,
    /// There is one that cannot be trusted.
    #[error("the snapshot cannot be used: {reason}")]
    Unusable {
        /// What is wrong with it, as a phrase.
        reason: String,
    },
}

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Somebody else makes it.
    #[error("another process is making this snapshot")]
    Busy,
    /// It is there already.
    #[error("the snapshot exists already")]
    Exists,
    /// The lock cannot be used.
    #[error(transparent)]
    Lock(LockError),
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] LayoutError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format_version: u32,
    /// SHA-256 of the state, in hexadecimal digits.
    state: String,
    memory: Stamp,
    /// Files without which it cannot be resumed.
    stands_on: Vec<HostPath>,
}

#[derive(Debug, Deserialize)]
struct Version {
    format_version: u32,
}

/// What tells one state of a file from every later one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: i64,
    changed_ns: i64,
}

impl Record {
    /// An error is a phrase about what is wrong.
    fn read(path: &Path) -> Result<Self, String> {
        let content = atomic::read(path, RECORD_MAX).map_err(|error| sentence(&error))?;
        // Of another version everything else may be different.
        let version: Version = serde_json::from_slice(&content).map_err(|_| DAMAGED)?;
        if version.format_version != FORMAT_VERSION {
            return Err(format!("it has format {}", version.format_version));
        }
        serde_json::from_slice(&content).map_err(|_| DAMAGED.to_owned())
    }
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        })
    }
}

impl Snapshots {
    /// Those in an images directory.
    pub fn new(images: &Path) -> Self {
        Self { directory: images.join("snapshots") }
    }

    /// Opens a snapshot after examining it. One that cannot be used is removed.
    pub fn find(&self, key: &SnapshotKey) -> Result<SnapshotFiles, FindError> {
        let found = self.open(key);
        if matches!(found, Err(FindError::Unusable { .. })) {
            self.discard(key);
        }
        found
    }

    fn open(&self, key: &SnapshotKey) -> Result<SnapshotFiles, FindError> {
        let directory = self.directory.join(key.as_str());
        if !directory.is_dir() {
            return Err(FindError::Missing);
        }
        let unusable = |reason: String| FindError::Unusable { reason };
        let unreadable = |error: FileError| unusable(sentence(&error));
        let record = Record::read(&directory.join(RECORD)).map_err(unusable)?;
        let state = atomic::read(&directory.join(STATE), STATE_MAX).map_err(unreadable)?;
        if hex::encode(Sha256::digest(&state)) != record.state {
            return Err(unusable("its state is damaged".to_owned()));
        }
        let open = |name: &str| {
            File::open(directory.join(name)).map_err(|error| unusable(format!("{name}: {error}")))
        };
        let (memory, state) = (open(MEMORY)?, open(STATE)?);
        let stamp = Stamp::of(&memory).map_err(|error| unusable(format!("{MEMORY}: {error}")))?;
        if stamp != record.memory {
            return Err(unusable("its memory was changed".to_owned()));
        }
        // For those who must decide which to remove; a failure changes nothing else.
        if let Ok(record) = File::open(directory.join(RECORD)) {
            drop(record.set_modified(SystemTime::now()));
        }
        Ok(SnapshotFiles { memory, state })
    }

    /// Begins to make a snapshot, unless it is there or somebody else makes it.
    pub fn make(&self, key: &SnapshotKey) -> Result<Making, MakeError> {
        make_private(&self.directory)?;
        let lock = match Lock::take(&self.lock(key), Duration::ZERO) {
            Ok(lock) => lock,
            Err(LockError::Held { .. }) => return Err(MakeError::Busy),
            Err(error) => return Err(MakeError::Lock(error)),
        };
        self.sweep(key);
        let place = self.directory.join(key.as_str());
        if place.is_dir() {
            return Err(MakeError::Exists);
        }
        let random = random_hex::<6>().map_err(|error| {
            FileError::new("make a file in", &self.directory, io::Error::other(error))
        })?;
        let directory = self.directory.join(format!("{MAKING}{}-{random}", key.as_str()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| FileError::new("make the directory", &directory, error))?;
        let making = Making { directory, place, published: false, _lock: lock };
        // Looked at once, so that a disk that is full says so before a VM is started.
        drop(making.create(STATE)?);
        Ok(making)
    }

    /// Removes what makers of this snapshot left behind; its lock is held.
    fn sweep(&self, key: &SnapshotKey) {
        let ours = format!("{MAKING}{}-", key.as_str());
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&ours) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Remembers that a snapshot could not be made, so that it is not tried at every start.
    pub fn note_failure(&self, key: &SnapshotKey, why: &str) {
        // Without the note it is tried again sooner, which is all.
        if make_private(&self.directory).is_ok() {
            drop(atomic::write(&self.failure(key), why.as_bytes()));
        }
    }

    /// Says whether a snapshot could not be made less than so long ago.
    pub fn failed_within(&self, key: &SnapshotKey, age: Duration) -> bool {
        let noted = fs::metadata(self.failure(key)).and_then(|of| of.modified());
        // A time in the future is of a clock that was set since.
        noted.is_ok_and(|noted| noted.elapsed().is_ok_and(|elapsed| elapsed < age))
    }

    fn lock(&self, key: &SnapshotKey) -> PathBuf {
        self.directory.join(format!("{}.lock", key.as_str()))
    }

    fn failure(&self, key: &SnapshotKey) -> PathBuf {
        self.directory.join(format!("{}.failed", key.as_str()))
    }

    /// Removes a snapshot. Those who run on it keep it.
    pub fn discard(&self, key: &SnapshotKey) {
        drop(fs::remove_dir_all(self.directory.join(key.as_str())));
    }

    /// All complete snapshots, those used last first.
    pub fn list(&self) -> Vec<SnapshotUse> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let key = SnapshotKey::parse(entry.file_name().to_str()?)?;
                let path = entry.path();
                let record = path.join(RECORD);
                // Made before time was counted: the first to go.
                let last_used = fs::metadata(&record).and_then(|of| of.modified());
                let gone = |of: &HostPath| !of.as_path().exists();
                Some(SnapshotUse {
                    bytes: bytes_on_disk([&path]),
                    key,
                    last_used: last_used.unwrap_or(SystemTime::UNIX_EPOCH),
                    in_use: is_used(&path.join(MEMORY)),
                    stale: Record::read(&record).map_or(true, |of| of.stands_on.iter().any(gone)),
                })
            })
            .collect();
        found.sort_by_key(|of| std::cmp::Reverse(of.last_used));
        found
    }

    /// Removes those used longest ago until the rest takes at most so many bytes; gives what was removed. The one used
    /// last stays, so that a limit that is too small does not make each start cold.
    pub fn prune(&self, at_most: u64) -> Vec<SnapshotUse> {
        let mut total = 0_u64;
        let mut removed = Vec::new();
        for (at, snapshot) in self.list().into_iter().enumerate() {
            total = total.saturating_add(snapshot.bytes);
            if at > 0 && total > at_most {
                self.discard(&snapshot.key);
                removed.push(snapshot);
            }
        }
        removed
    }
}

/// A snapshot on its way. Dropping it without [`Making::publish`] removes it.
#[derive(Debug)]
pub struct Making {
    directory: PathBuf,
    place: PathBuf,
    published: bool,
    _lock: Lock,
}

impl Making {
    /// Makes the file for the memory, empty.
    pub fn memory(&self) -> Result<File, FileError> {
        self.create(MEMORY)
    }

    /// Makes the file for the state, empty.
    pub fn state(&self) -> Result<File, FileError> {
        self.create(STATE)
    }

    fn create(&self, name: &str) -> Result<File, FileError> {
        let path = self.directory.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| FileError::new("make", &path, error))
    }

    /// Opens what was written, to try it before others do.
    pub fn files(&self) -> Result<SnapshotFiles, FileError> {
        let open = |name: &str| {
            let path = self.directory.join(name);
            File::open(&path).map_err(|error| FileError::new("open", &path, error))
        };
        Ok(SnapshotFiles { memory: open(MEMORY)?, state: open(STATE)? })
    }

    /// Makes it one that others find. Nobody may write to the files from here on. `stands_on`: files without which it
    /// cannot be resumed.
    pub fn publish(mut self, stands_on: Vec<HostPath>) -> Result<(), FileError> {
        let SnapshotFiles { memory, state } = self.files()?;
        for (name, file) in [(MEMORY, &memory), (STATE, &state)] {
            file.sync_all()
                .map_err(|error| FileError::new("sync", &self.directory.join(name), error))?;
        }
        let content = atomic::read(&self.directory.join(STATE), STATE_MAX)?;
        let stamp = Stamp::of(&memory)
            .map_err(|error| FileError::new("examine", &self.directory.join(MEMORY), error))?;
        let record = Record {
            format_version: FORMAT_VERSION,
            state: hex::encode(Sha256::digest(&content)),
            memory: stamp,
            stands_on,
        };
        let path = self.directory.join(RECORD);
        let record = serde_json::to_vec_pretty(&record)
            .map_err(|error| FileError::new("write", &path, error.into()))?;
        atomic::write(&path, &record)?;
        fs::rename(&self.directory, &self.place)
            .map_err(|error| FileError::new("publish", &self.place, error))?;
        self.published = true;
        let snapshots = self.place.parent().unwrap_or(&self.place);
        drop(fs::remove_file(self.place.with_extension("failed")));
        sync_directory(snapshots)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.published {
            drop(fs::remove_dir_all(&self.directory));
        }
    }
}

fn sentence(error: &FileError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
