//! Files that a session's program is to find in its user's home, put there before it starts.
//!
//! The host says what is to be there; what is there already is a person's, or the program's own, and stays: only what is
//! missing is added, and what is taken back is only what nobody changed. A file that makes no sense is left alone.

mod json;
mod toml;

use std::path::Path;

use hutch_wire::guest::{SeedAction, SeedFile, SeedFormat};
use rustix::fs::{Gid, Uid};

use crate::home::Home;
use crate::log;
use crate::root::{Kind, Root, RootError, plain_names};

/// A file that is longer than this is not ours to change.
const READ_MAX: u64 = 16 << 20;
/// More files than these no agent has.
const FILES_MAX: usize = 64;

/// What is to become of a file.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It stays as it is.
    None,
    /// It has this content.
    Write(String),
    /// Nothing is left in it.
    Remove,
}

/// Does it for one user. A file with which it does not work is a line in the log.
pub(crate) fn apply(root: &Root, user: &str, seeds: &[SeedFile]) {
    if seeds.is_empty() {
        return;
    }
    let Some(home) = Home::of(root, user) else {
        return log::warn(format!("no files for {user:?}, who has no home"));
    };
    if seeds.len() > FILES_MAX {
        log::warn(format!("{} files for a session, of which {FILES_MAX} are made", seeds.len()));
    }
    for seed in seeds.iter().take(FILES_MAX) {
        if let Err(error) = one(root, &home, seed) {
            log::warn(format!("~/{} not written: {error}", seed.path));
        }
    }
}

fn one(root: &Root, home: &Home, seed: &SeedFile) -> Result<(), RootError> {
    let path = home.path.join(&seed.path);
    // Nothing of the host's leads out of the home either.
    plain_names(&path)?;
    let now = root.content(&path, READ_MAX)?;
    let Some(now) = now.map(String::from_utf8).transpose().ok() else { return Ok(()) };
    match change(now.as_deref(), seed) {
        Change::None => Ok(()),
        Change::Remove => root.remove(&path),
        Change::Write(text) => {
            let owner = (Uid::from_raw(home.owner.0), Gid::from_raw(home.owner.1));
            make_parents(root, &home.path, &path, owner)?;
            root.overwrite(&path, text.as_bytes())?;
            if now.is_none() {
                root.set_owner(&path, owner)?;
            }
            Ok(())
        }
    }
}

/// Decides; pure.
fn change(now: Option<&str>, seed: &SeedFile) -> Change {
    let now = now.filter(|text| !text.trim().is_empty());
    match (seed.format, seed.action) {
        (SeedFormat::Text, SeedAction::Merge) if now.is_none() => {
            Change::Write(seed.content.clone())
        }
        (SeedFormat::Text, SeedAction::TakeBack) if now == Some(seed.content.as_str()) => {
            Change::Remove
        }
        (SeedFormat::Text, _) => Change::None,
        (SeedFormat::Json, SeedAction::Merge) => json::merge(now, &seed.content),
        (SeedFormat::Json, SeedAction::TakeBack) => json::take_back(now, &seed.content),
        (SeedFormat::Toml, SeedAction::Merge) => toml::merge(now, &seed.content),
        (SeedFormat::Toml, SeedAction::TakeBack) => toml::take_back(now, &seed.content),
    }
}

/// Makes the directories between the home and a file; new ones belong to the user.
fn make_parents(root: &Root, home: &Path, path: &Path, owner: (Uid, Gid)) -> Result<(), RootError> {
    let between: Vec<&Path> =
        path.ancestors().skip(1).take_while(|directory| *directory != home).collect();
    for directory in between.into_iter().rev() {
        if !root.has_file(directory) {
            root.make(directory, Kind::Directory)?;
            root.set_owner(directory, owner)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
