//! Puts each workspace at its host path in the sandbox's root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hutch_wire::guest::WorkspaceMount;
use rustix::fs::{Gid, Uid};
use rustix::mount::MountFlags;

use crate::log;
use crate::root::{Kind, Root, RootError, plain_names};

/// Directories that a workspace must not take the place of: the sandbox would not work without what is in them.
const NEEDED: [&str; 26] = [
    "/bin",
    "/boot",
    "/etc",
    "/home",
    "/home/agent",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/root",
    "/sbin",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/lib",
    "/var/tmp",
];
/// Directories in which the container mounts file systems of its own: a workspace there would be covered.
const COVERED: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];
/// A short way to the first workspace.
const SHORTCUT: &str = "/home/agent/workspace";
const AGENT: u32 = 1000;

/// Why a workspace has no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    /// The sandbox needs what is there.
    #[error("a workspace cannot be at {}: the sandbox needs what is there", path.display())]
    Needed {
        /// The workspace.
        path: PathBuf,
    },
    /// The place cannot be made.
    #[error("no place for the workspace {}: {source}", path.display())]
    Place {
        /// The workspace.
        path: PathBuf,
        /// Why not.
        source: RootError,
    },
}

/// Binds child `i` of `source` at the path of workspace `i`. Blocks on the file system that is served there.
pub(crate) fn bind(
    root: &Root,
    source: &Path,
    workspaces: &[WorkspaceMount],
) -> Result<(), WorkspaceError> {
    for (index, workspace) in workspaces.iter().enumerate() {
        let path = path_of(workspace);
        check(path)?;
        let kind = if workspace.directory { Kind::Directory } else { Kind::File };
        let flags = if workspace.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        root.bind(&source.join(index.to_string()), path, kind, flags | MountFlags::NODEV)
            .map_err(|source| WorkspaceError::Place { path: path.to_owned(), source })?;
    }
    if let Some(first) = workspaces.first() {
        shortcut(root, path_of(first));
    }
    Ok(())
}

/// The path at which a workspace is.
pub(crate) fn path_of(workspace: &WorkspaceMount) -> &Path {
    Path::new(OsStr::from_bytes(&workspace.path))
}

fn shortcut(root: &Root, first: &Path) {
    let shortcut = Path::new(SHORTCUT);
    if first.starts_with(shortcut) {
        return;
    }
    let owner = (Uid::from_raw(AGENT), Gid::from_raw(AGENT));
    if let Err(error) = root.link_if_absent(shortcut, first, owner) {
        log::info(format!("no {SHORTCUT}: {error}"));
    }
}

/// Whether a workspace may be at `path`.
fn check(path: &Path) -> Result<(), WorkspaceError> {
    let names = plain_names(path)
        .map_err(|source| WorkspaceError::Place { path: path.to_owned(), source })?;
    let needed = names.is_empty()
        || NEEDED.iter().any(|needed| path == Path::new(needed))
        || COVERED.iter().any(|covered| path.starts_with(covered));
    if needed { Err(WorkspaceError::Needed { path: path.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_the_sandbox_needs_are_refused() {
        for path in
            ["/", "/etc", "/usr/", "/proc/1", "/dev/shm/x", "/run/user/1000/x", "/home/agent", "//"]
        {
            let error = check(Path::new(path)).expect_err(path).to_string();
            assert!(error.contains("the sandbox needs what is there"), "{error}");
        }
    }

    #[test]
    fn ordinary_places_are_allowed() {
        for path in [
            "/home/me/project",
            "/srv",
            "/etc/nginx",
            "/usr/src/x",
            "/tmp/x",
            "/opt/a b/ü",
            "/procs",
        ] {
            check(Path::new(path)).expect(path);
        }
    }

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        for path in ["", "relative", "/home/../etc", "/a/.."] {
            check(Path::new(path)).expect_err(path);
        }
    }
}
