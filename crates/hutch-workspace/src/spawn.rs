//! How the keeper starts a worker.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use hutch_sys::process::Process;
use hutch_sys::spawn::{Launch, LaunchError};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::spec::WorkerSpec;

/// Why a worker was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The spec could not be handed over.
    #[error("the worker's spec could not be handed over")]
    Spec(#[source] io::Error),
    /// The program could not be started.
    #[error("the worker could not be started")]
    Launch(#[from] LaunchError),
    /// It was started and is lost.
    #[error("the worker could not be followed")]
    Follow(#[source] io::Error),
}

/// A running worker. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    process: Process,
}

/// Starts the worker program on a connected stream; its log goes to `log`, and large contents by the file `bulk`, if
/// there is one. It dies with the caller.
pub fn spawn(
    program: &Path,
    spec: &WorkerSpec,
    port: OwnedFd,
    bulk: Option<OwnedFd>,
    log: File,
) -> Result<Worker, SpawnError> {
    let spec = spec_file(spec).map_err(SpawnError::Spec)?;
    let mut launch = Launch::new(program);
    let spec = launch.inherit(spec);
    launch.arg(spec.to_string());
    if let Some(bulk) = bulk {
        let bulk = launch.inherit(bulk);
        launch.arg(bulk.to_string());
    }
    // A descriptor that a program is given as its input can be had without `unsafe`.
    launch.stdin(port).stderr(log).new_session().die_with_parent();
    let mut child = launch.start()?.child;
    match Process::of_child(&child) {
        Ok(process) => Ok(Worker { child, process }),
        Err(error) => {
            child.kill().ok();
            child.wait().ok();
            Err(SpawnError::Follow(error))
        }
    }
}

/// The spec as a file without a name: paths do not show in arguments.
fn spec_file(spec: &WorkerSpec) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create(c"workspace spec", flags)?;
    let mut file = File::from(memory.try_clone()?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0))?;
    let sealed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    drop(file);
    rustix::fs::fcntl_add_seals(memory.as_fd(), sealed)?;
    Ok(memory)
}

impl Worker {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process, for event loops: readable once it has ended.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()
    }

    /// Waits until it has ended, at most so long; none if it still runs.
    pub fn wait(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        if self.process.wait_ended(at_most)? { self.child.wait().map(Some) } else { Ok(None) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing is left to do about a failure here; the kernel kills it when we end.
        self.process.kill().ok();
        self.child.wait().ok();
    }
}
