//! Everything that is kept, by kind: how much of it, how much of that is in use, how much could go.
//!
//! Sandboxes are never given back by a prune: they hold somebody's work.

use std::path::{Path, PathBuf};

use hutch_image::{GuestImageOptions, KeptKind};
use hutch_store::usage::bytes_on_disk;
use hutch_store::{Listed, Snapshots, Unneeded};

use crate::context::Context;
use crate::failure::Failure;
use crate::images::Images;
use crate::sandboxes::Sandboxes;

/// One kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Kind {
    pub(super) kind: &'static str,
    pub(super) count: usize,
    /// Running, or something that runs stands on it.
    pub(super) active: usize,
    pub(super) bytes: u64,
    /// What `system prune` would free.
    pub(super) reclaimable_bytes: u64,
}

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What nothing can need.
    Unneeded,
    /// Also what is made again when it is missed.
    All,
}

impl Extent {
    pub(super) fn of_snapshots(self) -> Unneeded {
        match self {
            Self::Unneeded => Unneeded::Stale,
            Self::All => Unneeded::All,
        }
    }
}

/// Looks at everything.
pub(super) fn all(
    context: &Context,
    sandboxes: &Sandboxes,
    extent: Extent,
) -> Result<Vec<Kind>, Failure> {
    let listed = sandboxes.list()?;
    let images = Images::to_look_at(&context.settings, context.printer);
    let place = &context.settings.layout.images;
    let mut kinds = vec![of_sandboxes(sandboxes, &listed), templates(sandboxes, place, &listed)];
    kinds.extend(guest_images(&images.guest_options()));
    kinds.push(snapshots(&Snapshots::new(place), extent));
    kinds.push(logs(sandboxes, &listed, place));
    Ok(kinds)
}

fn of_sandboxes(sandboxes: &Sandboxes, listed: &[Listed]) -> Kind {
    let directory = sandboxes.store().layout().sandboxes();
    let logs = all_logs(&directory, listed);
    Kind {
        kind: "Sandboxes",
        count: listed.len(),
        active: listed.iter().filter(|one| one.running).count(),
        bytes: bytes_on_disk([&directory]).saturating_sub(bytes_on_disk(logs)),
        reclaimable_bytes: 0,
    }
}

fn templates(sandboxes: &Sandboxes, images: &Path, listed: &[Listed]) -> Kind {
    // Where it is not known what is in use, nothing goes.
    let in_use = sandboxes.templates_in_use().ok();
    let directory = images.join("templates");
    let kept = directories(&directory);
    let named = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        listed
            .iter()
            .filter_map(|one| one.record.as_ref().ok())
            .any(|record| record.template.digest.ends_with(&name))
    };
    Kind {
        kind: "Templates",
        count: kept.len(),
        active: kept.iter().filter(named).count(),
        bytes: bytes_on_disk([&directory, &images.join("layers")]),
        reclaimable_bytes: in_use.map_or(0, |used| hutch_image::reclaimable_bytes(images, &used)),
    }
}

/// Complete directories: those that are being made have another name.
fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("manifest.json").is_file()).collect()
}

fn guest_images(options: &GuestImageOptions) -> [Kind; 2] {
    let kept = hutch_image::kept(options);
    [(KeptKind::Guest, "Guest images"), (KeptKind::Kernel, "Kernel packages")].map(|(of, kind)| {
        let those = || kept.iter().filter(|one| one.kind == of);
        Kind {
            kind,
            count: those().count(),
            active: those().filter(|one| one.current || one.in_use).count(),
            bytes: those().map(|one| one.bytes).sum(),
            reclaimable_bytes: those().filter(|one| one.is_unneeded()).map(|one| one.bytes).sum(),
        }
    })
}

fn snapshots(snapshots: &Snapshots, extent: Extent) -> Kind {
    let all = snapshots.list();
    let left = bytes_on_disk(snapshots.leftovers());
    let unneeded = snapshots.unneeded(extent.of_snapshots());
    Kind {
        kind: "Snapshots",
        count: all.len(),
        active: all.iter().filter(|one| one.in_use).count(),
        bytes: all.iter().map(|one| one.bytes).sum::<u64>() + left,
        reclaimable_bytes: unneeded.iter().map(|one| one.bytes).sum::<u64>() + left,
    }
}

fn logs(sandboxes: &Sandboxes, listed: &[Listed], images: &Path) -> Kind {
    let directory = sandboxes.store().layout().sandboxes();
    let mut all = all_logs(&directory, listed);
    all.push(images.join("logs"));
    Kind {
        kind: "Logs",
        count: all.iter().filter(|path| path.is_dir()).count(),
        active: listed.iter().filter(|one| one.running).count(),
        bytes: bytes_on_disk(&all),
        reclaimable_bytes: bytes_on_disk(old_logs(sandboxes, listed)),
    }
}

fn all_logs(directory: &Path, listed: &[Listed]) -> Vec<PathBuf> {
    let of = |one: &Listed| {
        let own = directory.join(&one.name);
        [own.join("logs"), own.join("network")]
    };
    listed.iter().flat_map(of).collect()
}

/// Logs that were put aside, of sandboxes that do not run.
pub(super) fn old_logs(sandboxes: &Sandboxes, listed: &[Listed]) -> Vec<PathBuf> {
    let directory = sandboxes.store().layout().sandboxes();
    let stopped = listed.iter().filter(|one| !one.running);
    stopped
        .flat_map(|one| {
            let own = directory.join(&one.name);
            [own.join("logs"), own.join("network")]
        })
        .flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && is_old_log(path))
        .collect()
}

/// `init.log.old`, `log.jsonl.3`: what is written now ends otherwise.
fn is_old_log(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let numbered =
        name.rsplit_once(".jsonl.").is_some_and(|(_, number)| number.parse::<u8>().is_ok());
    name.ends_with(".log.old") || numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_that_are_written_now_are_not_old() {
        for (name, old) in [
            ("init.log", false),
            ("init.log.old", true),
            ("log.jsonl", false),
            ("log.jsonl.1", true),
            ("log.jsonl.x", false),
            ("ca.pem", false),
            ("ca-key.pem", false),
        ] {
            assert_eq!(is_old_log(Path::new(name)), old, "{name}");
        }
    }
}
