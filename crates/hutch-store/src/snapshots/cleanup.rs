//! What may go: snapshots that nobody needs, and what makers left behind.

use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::path::PathBuf;
use std::time::Duration;

use super::{MAKING, SnapshotKey, SnapshotUse, Snapshots};
use crate::lock::Lock;
use crate::usage::bytes_on_disk;

/// A failure is remembered for an hour; a note that is older says nothing.
const NOTE_HOLDS: Duration = Duration::from_secs(60 * 60);

/// Which snapshots are not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unneeded {
    /// Those that cannot be resumed any more.
    Stale,
    /// All: they are made again when they are missed.
    All,
}

impl Unneeded {
    fn covers(self, snapshot: &SnapshotUse) -> bool {
        !snapshot.in_use && (snapshot.stale || self == Self::All)
    }
}

impl Snapshots {
    /// The snapshots that are not needed, and do not run.
    pub fn unneeded(&self, which: Unneeded) -> Vec<SnapshotUse> {
        self.list().into_iter().filter(|snapshot| which.covers(snapshot)).collect()
    }

    /// Removes them; gives what was removed.
    pub fn remove_unneeded(&self, which: Unneeded) -> Vec<SnapshotUse> {
        let unneeded = self.unneeded(which);
        unneeded.iter().for_each(|snapshot| self.discard(&snapshot.key));
        unneeded.into_iter().filter(|of| !self.directory.join(of.key.as_str()).exists()).collect()
    }

    /// What dead makers left: half a snapshot, a lock that nobody holds, a note that says nothing any more.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let left = |entry: &DirEntry| {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { return false };
            match Self::of_maker(name) {
                Some(Left::Half(key) | Left::Lock(key)) => {
                    !Lock::is_held(&self.lock(&key)).unwrap_or(true)
                }
                Some(Left::Note(key)) => !self.failed_within(&key, NOTE_HOLDS),
                None => false,
            }
        };
        entries.flatten().filter(left).map(|entry| entry.path()).collect()
    }

    /// Removes what is left, if it still is; gives the bytes that it took.
    pub fn remove_leftovers(&self) -> u64 {
        let mut bytes = 0_u64;
        for path in self.leftovers() {
            let kind = path.file_name().and_then(OsStr::to_str).and_then(Self::of_maker);
            let takes = bytes_on_disk([&path]);
            let removed = match kind {
                // While we hold the lock nobody makes this snapshot. Who waits for it looks at its name again.
                Some(Left::Half(key)) => Lock::take(&self.lock(&key), Duration::ZERO)
                    .is_ok_and(|_lock| fs::remove_dir_all(&path).is_ok()),
                Some(Left::Lock(_)) => {
                    Lock::take_existing(&path).is_ok_and(|_lock| fs::remove_file(&path).is_ok())
                }
                Some(Left::Note(_)) => fs::remove_file(&path).is_ok(),
                None => false,
            };
            if removed {
                bytes = bytes.saturating_add(takes);
            }
        }
        bytes
    }

    fn of_maker(name: &str) -> Option<Left> {
        if let Some(rest) = name.strip_prefix(MAKING) {
            return Some(Left::Half(SnapshotKey::parse(rest.split_once('-')?.0)?));
        }
        let (key, kind) = name.split_once('.')?;
        let key = SnapshotKey::parse(key)?;
        match kind {
            "lock" => Some(Left::Lock(key)),
            "failed" => Some(Left::Note(key)),
            _ => None,
        }
    }
}

/// What a maker has beside complete snapshots.
enum Left {
    Half(SnapshotKey),
    Lock(SnapshotKey),
    Note(SnapshotKey),
}
