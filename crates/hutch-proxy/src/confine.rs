//! The worker's jail, entered before the guest's first byte is read and before any thread runs.
//!
//! | stage | what goes | why it is not needed |
//! | --- | --- | --- |
//! | capabilities | all | outgoing connections need none |
//! | no new privileges | set-id programs | nothing is ever executed |
//! | files (Landlock) | every path but its own directory and what resolving names reads | the trust store is read before |
//! | system calls | executing, tracing, mounting | a taken-over worker can do what the proxy does, and no more |
//! | not dumpable | tracing by processes of the same user | credentials pass through its memory |
//!
//! `/etc` is readable as a whole: `resolv.conf` is replaced by renaming when the user's network changes, and a rule for
//! the file alone would hold the old one.

use std::path::Path;

use hutch_sys::jail::{FileAccess, Jail, JailError, JailReport, SystemCalls, privileged};

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

/// Confines the calling process, which must have a single thread.
pub(crate) fn confine(directory: &Path) -> Result<JailReport, JailError> {
    let mut jail = Jail::new().allow_tcp().allow_path(directory, FileAccess::Write);
    for path in RESOLVER {
        jail = jail.allow_path_if_present(path, FileAccess::Read);
    }
    let mut refused = privileged();
    refused.extend([libc::SYS_execve, libc::SYS_execveat]);
    jail.system_calls(SystemCalls::AllBut(refused)).enter()
}
