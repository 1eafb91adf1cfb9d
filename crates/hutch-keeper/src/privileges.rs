//! What the keeper gives up, in stages.
//!
//! `start`, before it reads anything: new privileges, and being read or traced by other processes of its user (it hands
//! over secrets of the sandbox later).
//!
//! `running`, once the VM and the workers run: starting programs, the network and new sockets of any kind, and whatever
//! changes the machine or other processes. What is left are its open descriptors, and the files of its user: a file jail
//! can be put on before the first thread alone (Landlock before ABI 8), and there the keeper still has to start programs
//! that need other files than it does, which would be in that jail with it.

use hutch_sys::jail::{JailError, networking, privileged, refuse_in_every_thread};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

/// Stage `start`. Call it in `main`, before another thread exists, and after what is opened through `/proc/self`: that
/// belongs to root afterwards.
pub fn give_up_at_start() -> std::io::Result<()> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Stage `running`: after the VM and the workers were started. For the whole process and for ever.
pub fn give_up_when_running() -> Result<(), JailError> {
    let mut calls = networking();
    // The keeper's own socket goes on taking connections.
    calls.retain(|call| ![libc::SYS_accept, libc::SYS_accept4].contains(call));
    calls.extend(privileged());
    calls.extend([libc::SYS_execve, libc::SYS_execveat]);
    let report = refuse_in_every_thread(calls)?;
    for weakness in report.weaknesses() {
        tracing::warn!(weakness, "the keeper's jail");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_stage_is_in_force_in_threads_that_run_already() {
        use std::os::unix::net::{UnixListener, UnixStream};
        use std::sync::mpsc;

        let base = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(base.path().join("s")).unwrap();
        let _waiting = UnixStream::connect(base.path().join("s")).unwrap();
        let (go, gone) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            gone.recv().unwrap();
            let started = hutch_sys::spawn::command("/bin/true").status();
            let socket = UnixStream::connect("/nowhere");
            (started.unwrap_err().kind(), socket.unwrap_err().kind(), listener.accept().is_ok())
        });
        give_up_when_running().unwrap();
        go.send(()).unwrap();
        let refused = std::io::ErrorKind::PermissionDenied;
        assert_eq!(other.join().unwrap(), (refused, refused, true));
        // What the keeper goes on doing.
        hutch_store::atomic::write(&base.path().join("file"), b"x").unwrap();
        UnixStream::pair().unwrap();
        std::thread::spawn(|| {}).join().unwrap();
    }

    #[test]
    fn the_start_stage_is_in_force_afterwards() {
        give_up_at_start().unwrap();
        assert!(rustix::thread::no_new_privs().unwrap());
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
