//! The broker's jail, entered before anything is read.
//!
//! | stage | what goes | why it is not needed |
//! | --- | --- | --- |
//! | capabilities, new privileges | all | an ordinary user's files are read |
//! | files (Landlock) | writing anywhere but to the secret store's directory and `/dev/null` | nothing else is written |
//! | network (filter) | making and connecting sockets of any kind | the two sockets are open |
//! | system calls | tracing, mounting and the like | |
//! | not dumpable | tracing by processes of the same user, core dumps | it holds secrets |
//!
//! What stays, because the user's login shell runs in here: reading and executing files. The shell's start files are the
//! user's own program; they run as always, but cannot reach the network, cannot gain privileges, and cannot write
//! anything but into the configuration directory. A start file that needs one of these (a here-document in `/tmp`, a
//! version check on the network) fails at that line, and the shell goes on with the next. A shell that was started is
//! dumpable again, as the user's every shell is.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use hutch_sys::jail::{
    FileAccess, Jail, JailError, JailReport, SystemCalls, networking, privileged,
};

use crate::spawn::BrokerSpec;

/// Why the broker could not be confined: it does not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The store's directory, which the jail names, could not be made.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A stage failed.
    #[error("the credential broker could not be jailed")]
    Jail(#[from] JailError),
}

/// Confines the calling process, which must have a single thread.
pub(super) fn confine(spec: &BrokerSpec) -> Result<JailReport, ConfineError> {
    let path = &spec.store;
    if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(path) {
        return Err(ConfineError::Directory { path: path.clone(), source });
    }
    // Start files expect to begin at home. One that is gone leaves the shell where it is.
    if let Err(error) = std::env::set_current_dir(&spec.home) {
        tracing::warn!(%error, "the home directory cannot be entered");
    }
    let mut refused = networking();
    refused.extend(privileged());
    Ok(Jail::new()
        .allow_path("/", FileAccess::Execute)
        .allow_path(path, FileAccess::Write)
        .allow_path_if_present("/dev/null", FileAccess::Device)
        .system_calls(SystemCalls::AllBut(refused))
        .enter()?)
}
