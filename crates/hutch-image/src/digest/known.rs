//! Digests of files that were read before: a template of gigabytes is not read again to find that it is the same.
//!
//! `images/digests.json` says which file had which digest. A file counts as the same while its path, device, inode,
//! size and both its times are. One that was changed a moment ago is not written down: within one tick of the clock it
//! could change again without showing it (git calls this racy).

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

const FORMAT_VERSION: u32 = 1;
const FILE: &str = "digests.json";
/// The files that were used last; more are not kept.
const FILES_MAX: usize = 64;
/// No file of ours is larger.
const SIZE_MAX: u64 = 1 << 20;
/// Coarser clocks of file systems have ticks of two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    format_version: u32,
    /// The last one was used last.
    files: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    file: Identity,
    sha256: String,
}

/// What tells a file and its content from others, as far as that can be seen without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Identity {
    fn new(path: &Path, metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Says whether a later change would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let (now, settled) = (now.as_nanos(), SETTLED.as_nanos());
        [self.modified_ns, self.changed_ns]
            .into_iter()
            .all(|time| u128::try_from(time).is_ok_and(|time| time + settled < now))
    }
}

/// SHA-256 of a file's content, in hexadecimal; `reading` is called when it must be read for that.
pub(crate) fn of_file(images: &Path, path: &Path, reading: impl FnOnce()) -> io::Result<String> {
    // A path that cannot be written as text is read each time.
    let path = fs::canonicalize(path)?;
    let before = Identity::new(&path, &fs::metadata(&path)?);
    let mut known = read(images);
    if let Some(at) = known.files.iter().position(|entry| entry.file == before) {
        return Ok(known.files.swap_remove(at).sha256);
    }
    reading();
    let sha256 = super::of_file(&path)?;
    let same = Identity::new(&path, &fs::metadata(&path)?) == before;
    if same && before.is_settled(SystemTime::now()) && path.to_str().is_some() {
        known.files.retain(|entry| entry.file.path != path);
        known.files.push(Entry { file: before, sha256: sha256.clone() });
        let surplus = known.files.len().saturating_sub(FILES_MAX);
        known.files.drain(..surplus);
        if let Err(error) = write(images, &known) {
            tracing::info!(%error, "a digest was not written down");
        }
    }
    Ok(sha256)
}

/// What is known; nothing where the file is damaged or of another version.
fn read(images: &Path) -> Known {
    let path = images.join(FILE);
    let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= SIZE_MAX);
    let text = if small { fs::read(&path).ok() } else { None };
    text.and_then(|text| serde_json::from_slice::<Known>(&text).ok())
        .filter(|known| known.format_version == FORMAT_VERSION)
        .unwrap_or(Known { format_version: FORMAT_VERSION, files: Vec::new() })
}

/// Replaces the file. Of two commands that do it at once one is forgotten, and reads its file again next time.
fn write(images: &Path, known: &Known) -> io::Result<()> {
    fs::create_dir_all(images)?;
    let temporary = images.join(format!("{FILE}.{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    let written = serde_json::to_vec(known)
        .map_err(io::Error::other)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, images.join(FILE)));
    if written.is_err() {
        // The first error is the one to tell.
        let _second = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn images(&self) -> PathBuf {
            self.directory.path().join("images")
        }

        /// A file that was last modified long ago; its change time is that of now.
        fn file(&self, content: &[u8]) -> PathBuf {
            let path = self.directory.path().join("template.tar");
            let mut file = File::create(&path).unwrap();
            file.write_all(content).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
            path
        }

        fn digest(&self, path: &Path) -> (String, bool) {
            let mut read = false;
            let digest = of_file(&self.images(), path, || read = true).unwrap();
            (digest, read)
        }
    }

    #[test]
    fn a_file_that_changed_a_moment_ago_is_read_each_time() {
        let place = Place::new();
        let path = place.file(b"abc");
        let (digest, read) = place.digest(&path);
        assert!(read && digest.starts_with("ba7816bf"));
        assert!(place.digest(&path).1);
        assert!(!place.images().exists());
    }

    #[test]
    fn a_known_file_is_not_read_until_anything_about_it_changes() {
        let place = Place::new();
        let path = place.file(b"abc");
        let identity = |path: &Path| Identity::new(path, &fs::metadata(path).unwrap());
        let write_down = |sha256: &str| {
            let entry = Entry { file: identity(&path), sha256: sha256.to_owned() };
            write(&place.images(), &Known { format_version: FORMAT_VERSION, files: vec![entry] })
                .unwrap();
        };
        write_down("remembered");
        assert_eq!(place.digest(&path), ("remembered".to_owned(), false));
        // The same size and modification time, as a careless copy has them.
        place.file(b"xyz");
        assert!(place.digest(&path).1);
        write_down("remembered");
        let moved = place.directory.path().join("moved.tar");
        fs::rename(&path, &moved).unwrap();
        assert!(place.digest(&moved).1);
    }

    #[test]
    fn a_damaged_file_says_nothing() {
        let place = Place::new();
        let path = place.file(b"abc");
        fs::create_dir_all(place.images()).unwrap();
        for text in ["", "{}", "[1]", r#"{"format_version":2,"files":[]}"#] {
            let mut file = File::create(place.images().join(FILE)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert!(place.digest(&path).1, "{text}");
        }
    }

    #[test]
    fn only_what_cannot_change_unseen_any_more_is_settled() {
        let place = Place::new();
        let path = place.file(b"abc");
        let identity = Identity::new(&path, &fs::metadata(&path).unwrap());
        assert!(!identity.is_settled(SystemTime::now()));
        assert!(identity.is_settled(SystemTime::now() + SETTLED * 2));
        assert!(!identity.is_settled(SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn so_many_files_are_kept_and_no_more() {
        let place = Place::new();
        let entry = |number: usize| Entry {
            file: Identity {
                path: format!("/{number}").into(),
                device: 0,
                inode: 0,
                size: 0,
                modified_ns: 0,
                changed_ns: 0,
            },
            sha256: String::new(),
        };
        let files = (0..FILES_MAX).map(entry).collect();
        write(&place.images(), &Known { format_version: FORMAT_VERSION, files }).unwrap();
        // Something that changed long ago and is on every machine.
        let system = fs::canonicalize("/etc/os-release").unwrap();
        let settled =
            Identity::new(&system, &fs::metadata(&system).unwrap()).is_settled(SystemTime::now());
        assert!(place.digest(&system).1);
        let files = read(&place.images()).files;
        assert_eq!(files.len(), FILES_MAX);
        assert_eq!(files.iter().any(|entry| entry.file.path == system), settled);
        assert_eq!(files.first() == Some(&entry(0)), !settled);
        assert_eq!(place.digest(&system).1, !settled);
    }
}
