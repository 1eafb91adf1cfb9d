//! The sandbox's way out as the keeper sees it: the proxy worker with its credential broker, and the policy.
//!
//! ```text
//!   policy        the policy file: read at the start, changed, put back
//!   worker        the first conversation with the worker, and the later ones
//!   service       answers what command lines ask about the network, one after the other
//!   environment   the variables that make programs in the guest use the proxy
//! ```
//!
//! Invariant: a policy is on disk before it is in force, and in force before a command is told so.

mod environment;
mod policy;
mod service;
mod worker;

use std::error::Error;
use std::fmt;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_proxy::{BrokerSpec, Spawn};
use hutch_store::{Program, Programs};
use hutch_vmm::BoxFuture;
use tokio::net::UnixStream;

pub(crate) use self::environment::{trusted, variables};
pub(crate) use self::policy::PolicyFile;
pub(crate) use self::service::{Network, NetworkTask};
pub(crate) use self::worker::WorkerLink;
use crate::driver::chain;
use crate::process::{End, ProcessLog, watch_end};

/// What the network is started with.
#[derive(Debug)]
pub struct NetworkStart {
    /// The VM's network port.
    pub port: UnixStream,
    /// The sandbox's network directory; it exists.
    pub directory: PathBuf,
    /// Receives the log of both processes.
    pub log: PathBuf,
}

/// A network that was started.
#[derive(Debug)]
pub struct NetworkStarted {
    /// The proxy worker.
    pub worker: Box<dyn NetworkWorker>,
    /// To the worker: the messages of `hutch_proxy::control`.
    pub control: UnixStream,
    /// To the broker: messages with the caller's variables.
    pub credentials: UnixStream,
}

/// Starts the network of sandboxes.
pub trait NetworkHost: fmt::Debug + Send + Sync {
    /// Starts one. On an error, one sentence, nothing is left behind.
    fn start(&self, start: NetworkStart) -> BoxFuture<'_, Result<NetworkStarted, String>>;
}

/// A running proxy worker. Dropping it kills it, and its broker.
pub trait NetworkWorker: fmt::Debug + Send {
    /// Its process number.
    fn pid(&self) -> u32;
    /// Waits until it has ended, and says how in one sentence. Cancel safe; may be called again afterwards.
    fn wait(&mut self) -> BoxFuture<'_, String>;
    /// Ends it at once.
    fn kill(&mut self);
}

/// The program `hutch-proxy`.
#[derive(Debug)]
pub struct HutchProxy {
    /// Where to look for it.
    pub programs: Programs,
    /// Where credentials are looked for.
    pub broker: BrokerSpec,
}

impl NetworkHost for HutchProxy {
    fn start(&self, start: NetworkStart) -> BoxFuture<'_, Result<NetworkStarted, String>> {
        Box::pin(async move {
            let program = self.programs.find(Program::Proxy).map_err(|error| error.to_string())?;
            started(&program, start, self.broker.clone()).map_err(|error| chain(error.as_ref()))
        })
    }
}

fn started(
    program: &Path,
    start: NetworkStart,
    broker: BrokerSpec,
) -> Result<NetworkStarted, Box<dyn Error + Send + Sync>> {
    let port = start.port.into_std()?;
    port.set_nonblocking(false)?;
    let (log, writer) = ProcessLog::start(&start.log)?;
    let spawn = Spawn { port: port.into(), directory: start.directory, log: writer, broker };
    let proxy = hutch_proxy::spawn(program, spawn)?;
    let ended = watch_end("proxy end", proxy.process().as_fd().try_clone_to_owned()?)?;
    let stream = |stream: &std::os::unix::net::UnixStream| {
        let stream = stream.try_clone()?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    let (control, credentials) = (stream(&proxy.control)?, stream(&proxy.credentials)?);
    let worker = Box::new(Worker { proxy, end: End::new(ended, log) });
    Ok(NetworkStarted { worker, control, credentials })
}

/// Both processes.
#[derive(Debug)]
struct Worker {
    proxy: hutch_proxy::Proxy,
    end: End,
}

impl NetworkWorker for Worker {
    fn pid(&self) -> u32 {
        self.proxy.pid()
    }

    fn wait(&mut self) -> BoxFuture<'_, String> {
        Box::pin(self.end.wait(|| self.proxy.wait(Duration::ZERO)))
    }

    fn kill(&mut self) {
        if let Err(error) = self.proxy.kill() {
            tracing::warn!(%error, "the proxy cannot be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use tempfile::TempDir;

    use super::*;

    /// A program in the proxy's place, and a start of it with the VM's end of its port.
    fn program(script: &str) -> (TempDir, HutchProxy, NetworkStart, UnixStream) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("hutch-proxy");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        file.write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        drop(file);
        let programs = Programs::new(Some(base.path()), &path);
        let host = HutchProxy { programs, broker: BrokerSpec::default() };
        let (port, vm) = UnixStream::pair().unwrap();
        let (directory, log) = (base.path().join("network"), base.path().join("log"));
        (base, host, NetworkStart { port, directory, log }, vm)
    }

    #[tokio::test]
    async fn a_proxy_that_fails_is_told_with_its_reason() {
        let script = "[ \"$1\" = worker ] || exec sleep 60
            echo '2026 ERROR x: no certificate for '\"$2\" >&2\nread x\nexit 3";
        let (base, host, start, vm) = program(script);
        let mut started = host.start(start).await.unwrap();
        // The port is its input.
        drop(vm);
        let how = started.worker.wait().await;
        let directory = base.path().join("network");
        assert_eq!(how, format!("exit status: 3: no certificate for {}", directory.display()));
        assert_eq!(started.worker.wait().await, how);
    }

    #[tokio::test]
    async fn a_proxy_that_is_killed_takes_its_broker_along() {
        let script = "exec sleep 60";
        let (base, host, start, _vm) = program(script);
        let mut started = host.start(start).await.unwrap();
        assert!(started.worker.pid() > 0);
        started.worker.kill();
        assert_eq!(started.worker.wait().await, "signal: 9 (SIGKILL)");
        // The broker's end of its stream closes with it.
        let mut rest = [0];
        let read = tokio::io::AsyncReadExt::read(&mut started.credentials, &mut rest).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        drop(base);
    }

    #[tokio::test]
    async fn a_proxy_that_is_not_installed_is_named() {
        let (base, host, start, _vm) = program("exit 0");
        std::fs::remove_file(base.path().join("hutch-proxy")).unwrap();
        let missing = host.start(start).await.unwrap_err();
        assert!(missing.contains("hutch-proxy"), "{missing}");
    }
}
