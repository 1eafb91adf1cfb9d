//! The container's cgroups: one for the supervisor, one for each session.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The container's own cgroup under the root.
const CONTAINER: &str = "sandbox";
/// The supervisor's, under the container's.
pub(super) const SUPERVISOR: &str = "supervisor";
/// Controllers handed on to the container where the kernel has them.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// The container's cgroup.
#[derive(Debug, Clone)]
pub(super) struct ContainerCgroup {
    path: PathBuf,
}

/// One session's cgroup.
#[derive(Debug)]
pub(super) struct SessionCgroup {
    path: PathBuf,
}

impl ContainerCgroup {
    /// Makes it, and removes the empty ones of a former container.
    pub(super) fn create(root: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let path = root.join(CONTAINER);
        hand_on_controllers(root);
        let make = |path: &Path| match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err((path.to_owned(), error))
            }
            _ => Ok(()),
        };
        make(&path)?;
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            // One that is not empty keeps its number taken: that session is then refused, with the reason.
            fs::remove_dir(entry.path()).ok();
        }
        make(&path.join(SUPERVISOR))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup of a session.
    pub(super) fn session(&self, number: u32) -> io::Result<SessionCgroup> {
        let path = self.path.join(format!("session-{number}"));
        fs::create_dir(&path)?;
        Ok(SessionCgroup { path })
    }

    /// Ends every process in the container at once, the supervisor included.
    pub(super) fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }
}

impl SessionCgroup {
    /// Its directory, for a process that is to begin in it.
    pub(super) fn directory(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }

    /// Ends every process in it at once, forks in flight included.
    pub(super) fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes it if it is empty; says whether it is gone.
    pub(super) fn remove(&self) -> bool {
        // What a container manager made below it goes too, deepest first; anything alive keeps its directory.
        remove_tree(&self.path, 0);
        !self.path.exists()
    }
}

/// Deeper trees of a hostile session stay until the VM ends.
const DEPTH_MAX: usize = 32;

fn remove_tree(path: &Path, depth: usize) {
    if fs::remove_dir(path).is_ok() || depth == DEPTH_MAX {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), depth + 1);
        }
    }
    // Fails while a process lives in it: the caller tries again later.
    fs::remove_dir(path).ok();
}

/// Lets children of `path` use the controllers. One that is missing, or taken by a version 1 hierarchy, is no reason to
/// stop: limits are then not available in the sandbox.
pub(super) fn hand_on_controllers(path: &Path) {
    for controller in CONTROLLERS {
        write(&path.join("cgroup.subtree_control"), &format!("+{controller}")).ok();
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}
