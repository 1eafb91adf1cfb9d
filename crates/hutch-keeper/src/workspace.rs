//! The workspace worker as the keeper sees it.

use std::error::Error;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_store::{Program, Programs, Workspace};
use hutch_vmm::BoxFuture;
use hutch_workspace::{WorkerSpec, WorkspaceSpec};
use tokio::net::UnixStream;

use crate::driver::chain;
use crate::process::{End, ProcessLog, watch_end};

/// What the worker is started with.
#[derive(Debug)]
pub struct WorkspaceStart {
    /// What to serve, in order.
    pub workspaces: Vec<Workspace>,
    /// The VM's workspace port.
    pub port: UnixStream,
    /// The file of the VM's disk of large contents ([`hutch_workspace::bulk`]).
    pub bulk: Option<OwnedFd>,
    /// Receives the worker's log.
    pub log: PathBuf,
}

/// Starts workspace workers.
pub trait WorkspaceHost: fmt::Debug + Send + Sync {
    /// Starts one. On an error, one sentence, nothing is left behind.
    fn start(
        &self,
        start: WorkspaceStart,
    ) -> BoxFuture<'_, Result<Box<dyn WorkspaceWorker>, String>>;
}

/// A running worker. Dropping it kills it.
pub trait WorkspaceWorker: fmt::Debug + Send {
    /// Its process number.
    fn pid(&self) -> u32;
    /// Waits until it has ended, and says how in one sentence. Cancel safe; may be called again afterwards.
    fn wait(&mut self) -> BoxFuture<'_, String>;
    /// Ends it at once.
    fn kill(&mut self);
}

/// The program `hutch-workspace`.
#[derive(Debug)]
pub struct HutchWorkspace {
    /// Where to look for it.
    pub programs: Programs,
}

impl WorkspaceHost for HutchWorkspace {
    fn start(
        &self,
        start: WorkspaceStart,
    ) -> BoxFuture<'_, Result<Box<dyn WorkspaceWorker>, String>> {
        Box::pin(async move {
            let program =
                self.programs.find(Program::Workspace).map_err(|error| error.to_string())?;
            let worker = Worker::start(&program, start).map_err(|error| chain(error.as_ref()))?;
            Ok(Box::new(worker) as Box<dyn WorkspaceWorker>)
        })
    }
}

/// A worker process.
#[derive(Debug)]
struct Worker {
    worker: hutch_workspace::Worker,
    end: End,
}

impl Worker {
    fn start(program: &Path, start: WorkspaceStart) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let workspaces = start
            .workspaces
            .iter()
            .map(|workspace| WorkspaceSpec::new(workspace.path.as_path(), workspace.read_only));
        let spec = WorkerSpec::new(workspaces.collect());
        let port = start.port.into_std()?;
        port.set_nonblocking(false)?;
        let (log, writer) = ProcessLog::start(&start.log)?;
        let worker = hutch_workspace::spawn(program, &spec, port.into(), start.bulk, writer)?;
        let ended = watch_end("workspace end", worker.process().as_fd().try_clone_to_owned()?)?;
        Ok(Self { worker, end: End::new(ended, log) })
    }
}

impl WorkspaceWorker for Worker {
    fn pid(&self) -> u32 {
        self.worker.pid()
    }

    fn wait(&mut self) -> BoxFuture<'_, String> {
        Box::pin(self.end.wait(|| self.worker.wait(Duration::ZERO)))
    }

    fn kill(&mut self) {
        if let Err(error) = self.worker.kill() {
            tracing::warn!(%error, "the workspace worker cannot be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_worker_that_fails_is_told_with_its_reason() {
        let base = tempfile::tempdir().unwrap();
        let program = base.path().join("hutch-workspace");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o755).open(&program).unwrap();
        file.write_all(b"#!/bin/sh\necho '2026 ERROR x: cannot serve' >&2\nread x\nexit 3\n")
            .unwrap();
        drop(file);
        let host = HutchWorkspace { programs: Programs::new(Some(base.path()), &program) };
        let (port, other_end) = UnixStream::pair().unwrap();
        let log = base.path().join("log");
        let start = WorkspaceStart { workspaces: Vec::new(), port, bulk: None, log: log.clone() };
        let mut worker = host.start(start).await.unwrap();
        // The port is its input.
        drop(other_end);
        let how = worker.wait().await;
        assert_eq!(how, "exit status: 3: cannot serve");
        assert_eq!(worker.wait().await, how);
        assert!(std::fs::read_to_string(&log).unwrap().contains("cannot serve"));
    }

    #[tokio::test]
    async fn a_worker_that_is_killed_or_missing_is_told() {
        let base = tempfile::tempdir().unwrap();
        let program = base.path().join("hutch-workspace");
        let host = HutchWorkspace { programs: Programs::new(Some(base.path()), &program) };
        let start = || WorkspaceStart {
            workspaces: Vec::new(),
            port: UnixStream::pair().unwrap().0,
            bulk: None,
            log: base.path().join("log"),
        };
        let missing = host.start(start()).await.unwrap_err();
        assert!(missing.contains("hutch-workspace"), "{missing}");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        // The descriptor's number is the time that it sleeps.
        let mut worker = host.start(start()).await.unwrap();
        assert!(worker.pid() > 0);
        worker.kill();
        assert_eq!(worker.wait().await, "signal: 9 (SIGKILL)");
    }
}
