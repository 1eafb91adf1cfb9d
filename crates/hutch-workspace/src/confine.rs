//! The jail, entered after the workspaces were opened and before the guest's first byte is read.
//!
//! | stage | what goes | why it is not needed |
//! | --- | --- | --- |
//! | identity | root, if the workspaces have one owner | what the guest makes shall belong to that owner |
//! | capabilities | all; a root worker of root's own files keeps file permissions | an ordinary user needs none |
//! | no new privileges | set-id programs | nothing is ever executed |
//! | files (Landlock) | every path but the workspaces, and writing to those that are read-only | everything served is below them |
//! | network (Landlock, filter) | all of it | the one stream is open |
//! | system calls | executing, tracing, mounting, sockets | a taken-over worker can do file work in the workspaces only |
//! | not dumpable | tracing by processes of the same user | the workspace may hold secrets |
//!
//! `/proc/self/fd` needs no rule: its links lead to files that are held already, and opening one is judged by where the
//! file is. It stays readable to ourselves when the process is not dumpable.

use hutch_sys::jail::{
    Capabilities, FileAccess, Identity, Jail, JailError, JailReport, SystemCalls, networking,
    privileged,
};

use crate::serve::Prepared;

/// Why the worker could not be confined: it does not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A stage failed.
    #[error("the worker could not be jailed")]
    Jail(#[from] JailError),
    /// A held file could not be handed to the jail.
    #[error("a workspace could not be handed to the jail")]
    Workspace(#[source] std::io::Error),
}

/// Confines the calling process, which must have a single thread.
pub fn confine(prepared: &Prepared) -> Result<JailReport, ConfineError> {
    let mut jail = Jail::new();
    for opened in &prepared.opened {
        let access = if opened.read_only { FileAccess::Read } else { FileAccess::Write };
        let root = opened.root.try_clone().map_err(ConfineError::Workspace)?;
        jail = jail.allow_open(root, access);
    }
    let mut refused = networking();
    refused.extend(privileged());
    refused.extend([libc::SYS_execve, libc::SYS_execveat]);
    jail = jail.system_calls(SystemCalls::AllBut(refused));
    if Identity::can_be_changed() {
        jail = match common_owner(prepared) {
            Some(owner) => jail.run_as(owner),
            // Root serves its own files, or those of several users, as root would use them.
            None => jail.keep_capabilities(
                Capabilities::CHOWN | Capabilities::DAC_OVERRIDE | Capabilities::FOWNER,
            ),
        };
    }
    // Files that the guest makes get exactly the mode it asked for: its own mask is applied there.
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(jail.enter()?)
}

/// The user whom all workspaces belong to, unless that is root.
fn common_owner(prepared: &Prepared) -> Option<Identity> {
    let mut owners =
        prepared.opened.iter().map(|opened| (opened.status.stx_uid, opened.status.stx_gid));
    let (uid, gid) = owners.next()?;
    let same = owners.all(|(other, _)| other == uid);
    (same && uid != 0).then_some(Identity { uid, gid })
}
