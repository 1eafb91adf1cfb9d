//! Guest images and kernels that are kept, and which of them nobody needs any more.
//!
//! Each new init or kernel is a guest image of its own, and those before it stay until somebody removes them.

use std::path::{Path, PathBuf};

use hutch_store::lock::is_used;
use hutch_store::usage::bytes_on_disk;
use serde::de::IgnoredAny;

use super::{GuestImageOptions, kernel, key};
use crate::Progress;
use crate::cache::{Cache, CacheError, Locked};
use crate::digest;

/// What a kept directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptKind {
    /// Kernel and initramfs.
    Guest,
    /// A package that kernels are taken from.
    Kernel,
}

/// One directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it holds.
    pub kind: KeptKind,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
    /// The next start uses it.
    pub current: bool,
    /// A VM runs on it.
    pub in_use: bool,
}

impl Kept {
    /// Whether nobody would miss it.
    pub fn is_unneeded(&self) -> bool {
        !self.current && !self.in_use
    }
}

/// All guest images and kernels; `options` tell which are current.
pub fn kept(options: &GuestImageOptions) -> Vec<Kept> {
    let kernels = Cache::new(options.images.join("kernel"));
    let guests = Cache::new(options.images.join("guest"));
    let source = kernel::at_hand(options, &kernels);
    let init = digest::known::of_file(&options.images, &options.init, || {}).ok();
    let guest = source.as_ref().zip(init).map(|(source, init)| guests.path(&key(source, &init)));
    let kernel = source.as_ref().and_then(kernel::KernelSource::directory).map(Path::to_owned);
    let all = |cache: &Cache, kind, current: Option<&PathBuf>| -> Vec<Kept> {
        let found = cache.all::<IgnoredAny>().into_iter().map(|(path, _)| Kept {
            kind,
            bytes: bytes_on_disk([&path]),
            // Where nothing says what is current, everything may be.
            current: current.is_none_or(|current| *current == path),
            in_use: ["kernel", "initramfs"].iter().any(|file| is_used(&path.join(file))),
            path,
        });
        found.collect()
    };
    let mut kept = all(&guests, KeptKind::Guest, guest.as_ref());
    kept.extend(all(&kernels, KeptKind::Kernel, kernel.as_ref()));
    kept.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    kept
}

/// Removes what nobody needs, and what dead makers left; gives the directories that are gone. Waits while one is made.
pub fn remove_unneeded(
    options: &GuestImageOptions,
    progress: &dyn Progress,
) -> Result<Vec<Kept>, CacheError> {
    let mut removed = Vec::new();
    for (kind, name) in [(KeptKind::Guest, "guest"), (KeptKind::Kernel, "kernel")] {
        let cache = Cache::new(options.images.join(name));
        if !options.images.join(name).is_dir() {
            continue;
        }
        let locked = cache.lock(progress)?;
        locked.clean()?;
        // Looked at under the lock: nothing becomes current meanwhile.
        for one in kept(options) {
            if one.kind == kind && one.is_unneeded() {
                remove(&locked, &one.path)?;
                removed.push(one);
            }
        }
    }
    Ok(removed)
}

fn remove(locked: &Locked<'_>, path: &Path) -> Result<(), CacheError> {
    tracing::info!(path = %path.display(), "removing an image that nobody needs");
    locked.remove(path)
}
