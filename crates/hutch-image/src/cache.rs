//! Directories that are made once and then never change: `<kind>/<key>/` with a `manifest.json`.
//!
//! Invariant: a directory under its final name is complete. It is made under `<kind>/tmp-…` and renamed, by the holder
//! of the exclusive lock `<kind>/lock`; so whoever gets the lock may remove every `tmp-…` as left by a dead maker.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Progress;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file system operation failed.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried: `create`, `lock`, …
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A manifest cannot be written as JSON.
    #[error("failed to encode {}", path.display())]
    Encode {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl CacheError {
    /// For `map_err` of an operation on `path`.
    pub(crate) fn io<'a>(
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

/// Name of the file that says what is in a directory and in which version of the format.
pub(crate) const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
const TEMPORARY: &str = "tmp-";

/// One kind of cached directories: guest images, kernels, templates.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in `root`, which need not exist yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the complete directory of `key` is or will be.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// The manifest of `key`, if it is there and readable: anything else is made again.
    pub(crate) fn manifest<M: DeserializeOwned>(&self, key: &str) -> Option<M> {
        read_manifest(&self.path(key))
    }

    /// All complete directories with their manifests, in no order.
    pub(crate) fn all<M: DeserializeOwned>(&self) -> Vec<(PathBuf, M)> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with(TEMPORARY))
            .filter_map(|entry| Some((entry.path(), read_manifest(&entry.path())?)))
            .collect()
    }

    /// Takes the lock, waiting for another maker to end.
    pub(crate) fn lock(&self, progress: &dyn Progress) -> Result<Locked<'_>, CacheError> {
        fs::create_dir_all(&self.root).map_err(CacheError::io("create", &self.root))?;
        let path = self.root.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(CacheError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.step("waiting for another hutch that makes the same");
                file.lock().map_err(CacheError::io("lock", &path))?;
            }
            Err(TryLockError::Error(source)) => {
                return Err(CacheError::Io { operation: "lock", path, source });
            }
        }
        Ok(Locked { cache: self, file })
    }
}

/// The cache while we are its only maker.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    cache: &'a Cache,
    file: File,
}

impl Locked<'_> {
    /// The open lock file: whoever has a duplicate of it keeps the lock.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Directories that a killed maker left behind.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>, CacheError> {
        let failed = || CacheError::io("list", &self.cache.root);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.cache.root).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Removes what dead makers left behind, as far as it is ours to remove.
    pub(crate) fn clean(&self) -> Result<(), CacheError> {
        for path in self.leftovers()? {
            tracing::info!(path = %path.display(), "removing what an interrupted run left behind");
            remove(&path).map_err(CacheError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes a complete directory: a crash in the middle leaves what the next maker clears away, never a half.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), CacheError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let gone = self.cache.root.join(format!("{TEMPORARY}gone-{name}"));
        fs::rename(path, &gone).map_err(CacheError::io("remove", path))?;
        remove(&gone).map_err(CacheError::io("remove", &gone))
    }

    /// A new empty directory to make `key` in; it goes away unless it is published.
    pub(crate) fn begin(&self, key: &str) -> Result<Draft, CacheError> {
        let path = self.cache.root.join(format!("{TEMPORARY}{key}"));
        fs::create_dir(&path).map_err(CacheError::io("create", &path))?;
        Ok(Draft { path, cache: self.cache.clone(), key: key.to_owned(), published: false })
    }
}

/// A directory being made.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    cache: Cache,
    key: String,
    published: bool,
}

impl Draft {
    /// Where to put the files.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the manifest, makes all files durable, and gives the directory its final name, which it returns.
    pub(crate) fn publish(self, manifest: &impl Serialize) -> Result<PathBuf, CacheError> {
        let key = self.key.clone();
        self.publish_as(&key, manifest)
    }

    /// Like [`Draft::publish`], where the key was not known when the work began.
    pub(crate) fn publish_as(
        mut self,
        key: &str,
        manifest: &impl Serialize,
    ) -> Result<PathBuf, CacheError> {
        let target = self.cache.path(key);
        let path = self.path.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(manifest)
            .map_err(|source| CacheError::Encode { path: path.clone(), source })?;
        text.push(b'\n');
        write_file(&path, &text)?;
        sync_files(&self.path)?;
        // What is there under the final name was not good enough to be used, or we would not have made it again.
        if target.exists() {
            remove(&target).map_err(CacheError::io("remove", &target))?;
        }
        fs::rename(&self.path, &target).map_err(CacheError::io("rename", &self.path))?;
        self.published = true;
        File::open(&self.cache.root)
            .and_then(|directory| directory.sync_all())
            .map_err(CacheError::io("sync", &self.cache.root))?;
        Ok(target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left behind, to be removed by the next run");
        }
    }
}

/// Replaces a file, so that others see the old content or the new.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), CacheError> {
    let temporary = path.with_extension("new");
    write_file(&temporary, content)?;
    File::open(&temporary)
        .and_then(|file| file.sync_all())
        .map_err(CacheError::io("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(CacheError::io("rename", &temporary))
}

/// Writes a file that is not there yet.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), CacheError> {
    File::create(path)
        .and_then(|mut file| io::Write::write_all(&mut file, content))
        .map_err(CacheError::io("write", path))
}

fn read_manifest<M: DeserializeOwned>(directory: &Path) -> Option<M> {
    let path = directory.join(MANIFEST);
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(manifest) => Some(manifest),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "unreadable manifest: making it again");
            None
        }
    }
}

fn sync_files(directory: &Path) -> Result<(), CacheError> {
    for entry in fs::read_dir(directory).map_err(CacheError::io("list", directory))? {
        let path = entry.map_err(CacheError::io("list", directory))?.path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(CacheError::io("sync", &path))?;
    }
    Ok(())
}

/// Removes a file or a whole directory.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}
