//! The worker's jail, entered before the guest's first byte is read and before any thread runs.
//!
//! | stage | what goes | why it is not needed |
//! | --- | --- | --- |
//! | user (started by root) | root, whose number alone opens what root owns | its directory is given to `nobody` |
//! | capabilities | all | outgoing connections need none |
//! | no new privileges | set-id programs | nothing is ever executed |
//! | files (Landlock) | every path but its own directory and what resolving names reads | the trust store is read before |
//! | system calls | executing, tracing, mounting | a taken-over worker can do what the proxy does, and no more |
//! | not dumpable | tracing by processes of the same user | credentials pass through its memory |
//!
//! `/etc` is readable as a whole: `resolv.conf` is replaced by renaming when the user's network changes, and a rule for
//! the file alone would hold the old one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use hutch_sys::jail::{FileAccess, Identity, Jail, JailError, JailReport, SystemCalls, privileged};
use rustix::fs::{AtFlags, Gid, Uid};

/// Why the worker could not be confined: it does not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The directory could not be given to the user that the worker goes on as.
    #[error("the directory {} cannot be given to another user", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A stage failed.
    #[error("the proxy worker could not be jailed")]
    Jail(#[from] JailError),
}

/// What the system's resolver reads: its configuration, and the modules that it loads.
const RESOLVER: [&str; 9] = [
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
];

/// Confines the calling process, which must have a single thread. Gives the path by which it reaches its directory now.
pub(crate) fn confine(directory: &Path) -> Result<(PathBuf, JailReport), ConfineError> {
    let mut jail = Jail::new().allow_tcp().allow_path(directory, FileAccess::Write);
    for path in RESOLVER {
        jail = jail.allow_path_if_present(path, FileAccess::Read);
    }
    let mut reached = directory.to_owned();
    if Identity::can_be_changed() {
        let fail = |source| ConfineError::Directory { path: directory.to_owned(), source };
        give(directory, Identity::NOBODY).map_err(fail)?;
        // What leads there is root's alone.
        std::env::set_current_dir(directory).map_err(fail)?;
        reached = PathBuf::from(".");
        jail = jail.run_as(Identity::NOBODY);
    }
    let mut refused = privileged();
    refused.extend([libc::SYS_execve, libc::SYS_execveat]);
    let report = jail.system_calls(SystemCalls::AllBut(refused)).enter()?;
    Ok((reached, report))
}

/// Gives a directory and the files in it to a user.
fn give(directory: &Path, to: Identity) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
    let open = File::open(directory)?;
    for entry in std::fs::read_dir(directory)? {
        // The worker before us wrote here: a link would be given for what it names.
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&open, entry?.file_name(), uid, gid, flags)?;
    }
    rustix::fs::fchown(open.as_fd(), uid, gid)?;
    Ok(())
}
