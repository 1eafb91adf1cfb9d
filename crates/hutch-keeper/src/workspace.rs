//! The workspace worker as the keeper sees it.

use std::fmt;
use std::path::PathBuf;

use hutch_store::{Program, Programs, Workspace};
use hutch_vmm::BoxFuture;
use tokio::net::UnixStream;

/// What the worker is started with.
#[derive(Debug)]
pub struct WorkspaceStart {
    /// What to serve, in order.
    pub workspaces: Vec<Workspace>,
    /// The VM's workspace port.
    pub port: UnixStream,
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
        _start: WorkspaceStart,
    ) -> BoxFuture<'_, Result<Box<dyn WorkspaceWorker>, String>> {
        Box::pin(async {
            let _program =
                self.programs.find(Program::Workspace).map_err(|error| error.to_string())?;
            Err("workspaces cannot be served yet".to_owned())
        })
    }
}
