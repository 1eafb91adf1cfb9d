//! From what a person typed to the workspaces of a sandbox.
//!
//! Everything that would end in a confusing failure inside the sandbox is refused here, before anything is made: places
//! that do not exist or cannot be read, and places that would hide the sandbox's own system or hand it our state.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hutch_store::{HostPath, Layout, Workspace, atomic};
use rustix::fs::{Access, access};

use crate::failure::Failure;

/// Ends of an argument that say read-only.
const READ_ONLY: &[&[u8]] = &[b":ro", b":readonly"];

/// Directories of the sandbox's own system that a workspace must not lie over.
const OF_THE_SYSTEM: &[&str] = &[
    "/bin",
    "/boot",
    "/etc",
    "/home/agent",
    "/lib",
    "/lib64",
    "/opt",
    "/run",
    "/sbin",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var/lib",
    "/var/tmp",
];
/// Directories that are no files at all.
const OF_THE_KERNEL: &[&str] = &["/dev", "/proc", "/sys"];

/// Where Claude Code keeps its user's key.
const CLAUDE_FILE: &str = ".claude.json";
/// A larger one is not looked into.
const CLAUDE_FILE_MAX: u64 = 16 << 20;

/// Resolves the arguments: the first is the primary workspace, a directory.
pub(crate) fn resolve(arguments: &[OsString], layout: &Layout) -> Result<Vec<Workspace>, Failure> {
    let mut workspaces: Vec<Workspace> = Vec::with_capacity(arguments.len());
    for (position, argument) in arguments.iter().enumerate() {
        let (path, read_only) = split(argument);
        let path = canonical(&path)?;
        check_place(&path, layout)?;
        let directory = check_access(&path)?;
        if !directory {
            let inside =
                workspaces.iter().any(|workspace| path.starts_with(workspace.path.as_path()));
            if position == 0 {
                return Err(Failure::user(format!("{} is not a directory", path.display()))
                    .hint("the workspace is a directory, such as `.`"));
            }
            if !inside || !read_only {
                return Err(Failure::user(format!("{} is a file", path.display())).hint(
                    "a file can be made read-only inside a workspace: name the workspace first and the file with `:ro`",
                ));
            }
        }
        if workspaces.iter().any(|workspace| workspace.path.as_path() == path) {
            return Err(Failure::user(format!("{} is given twice", path.display())));
        }
        let path = HostPath::new(path).map_err(|error| Failure::bug(error.to_string()))?;
        workspaces.push(Workspace { path, read_only });
    }
    Ok(workspaces)
}

/// Fails when a workspace of a sandbox is no longer there.
pub(crate) fn still_there(workspaces: &[Workspace], sandbox: &str) -> Result<(), Failure> {
    for workspace in workspaces {
        let path = workspace.path.as_path();
        if std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Err(Failure::user(format!(
                "the workspace {} of the sandbox `{sandbox}` is not there any more",
                path.display()
            ))
            .hint("put it back, or remove the sandbox and create one for the new place"));
        }
        check_access(path)?;
    }
    Ok(())
}

/// The files of a workspace in which its user's API key stands for everybody in the sandbox to read.
pub(crate) fn files_with_keys(workspaces: &[Workspace]) -> Vec<PathBuf> {
    #[derive(serde::Deserialize)]
    struct ClaudeFile {
        #[serde(rename = "primaryApiKey")]
        key: Option<String>,
    }
    let has_key = |path: &PathBuf| {
        atomic::read(path, CLAUDE_FILE_MAX)
            .ok()
            .and_then(|text| serde_json::from_slice::<ClaudeFile>(&text).ok())
            .is_some_and(|file| file.key.is_some_and(|key| !key.is_empty()))
    };
    let files = workspaces.iter().map(|workspace| workspace.path.as_path().join(CLAUDE_FILE));
    files.filter(has_key).collect()
}

/// Takes a read-only ending off. A path that really ends so is taken as it is, unless it also exists without.
fn split(argument: &OsStr) -> (PathBuf, bool) {
    let bytes = argument.as_bytes();
    let Some(path) = READ_ONLY.iter().find_map(|end| bytes.strip_suffix(*end)) else {
        return (PathBuf::from(argument), false);
    };
    let path = Path::new(OsStr::from_bytes(path));
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if !exists(path) && exists(Path::new(argument)) {
        return (PathBuf::from(argument), false);
    }
    (path.to_owned(), true)
}

fn canonical(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => Failure::user(format!(
                "the workspace {shown} does not exist"
            ))
            .hint("a workspace is an existing directory; make it first, or check the spelling"),
            io::ErrorKind::PermissionDenied => unreadable(path),
            _ => Failure::host(format!("the workspace {shown} cannot be found: {error}")),
        }
    })
}

fn unreadable(path: &Path) -> Failure {
    Failure::user(format!("the workspace {} cannot be read by this user", path.display()))
        .hint(format!("see who may read it: ls -la '{}'", path.display()))
}

/// Says whether it is a directory, and fails when it cannot be read.
fn check_access(path: &Path) -> Result<bool, Failure> {
    let metadata = std::fs::metadata(path).map_err(|_| unreadable(path))?;
    let wanted =
        if metadata.is_dir() { Access::READ_OK | Access::EXEC_OK } else { Access::READ_OK };
    if access(path, wanted).is_err() {
        return Err(unreadable(path));
    }
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Failure::user(format!("{} is neither a directory nor a file", path.display())));
    }
    Ok(metadata.is_dir())
}

fn check_place(path: &Path, layout: &Layout) -> Result<(), Failure> {
    let shown = path.display();
    let hint = "choose the directory of a project";
    if path.parent().is_none() {
        return Err(Failure::user(
            "the workspace cannot be `/`: the sandbox has a root of its own",
        )
        .hint(hint));
    }
    if OF_THE_KERNEL.iter().any(|place| path.starts_with(place)) {
        return Err(Failure::user(format!("the workspace cannot be {shown}: those are no files"))
            .hint(hint));
    }
    if let Some(place) = OF_THE_SYSTEM.iter().find(|place| Path::new(place).starts_with(path)) {
        return Err(Failure::user(format!(
            "the workspace cannot be {shown}: it would hide the sandbox's own {place}"
        ))
        .hint(hint));
    }
    for (what, ours) in [
        ("state", &layout.state),
        ("images", &layout.images),
        ("sockets", &layout.runtime),
        ("configuration", &layout.config),
    ] {
        let ours = existing_part_resolved(ours);
        if ours.starts_with(path) || path.starts_with(&ours) {
            return Err(Failure::user(format!(
                "the workspace cannot be {shown}: hutch keeps its {what} in {}, which a sandbox must not reach",
                ours.display()
            ))
            .hint(hint));
        }
    }
    Ok(())
}

/// The path with links resolved as far as it exists.
fn existing_part_resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(resolved), Ok(rest)) =
            (std::fs::canonicalize(ancestor), path.strip_prefix(ancestor))
        {
            return if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests;
