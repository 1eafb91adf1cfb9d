//! How the driver starts the network, while the guest boots.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use hutch_policy::settings::NetworkSettings;
use hutch_proxy::control::Start;
use hutch_wire::guest::AttachSpec;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{BETTER_REASON, Driver, Ending};
use crate::attach;
use crate::control::Asker;
use crate::machine::Machine;
use crate::network::{NetworkStart, NetworkTask, NetworkWorker, PolicyFile, WorkerLink};

/// A proxy that was started and was not told anything yet.
pub(super) struct Opening {
    policy: PolicyFile,
    start: Start,
    control: UnixStream,
    credentials: UnixStream,
}

/// A proxy that serves.
pub(super) struct Serving {
    policy: PolicyFile,
    link: WorkerLink,
    credentials: UnixStream,
    ca_pem: String,
    settings: NetworkSettings,
}

/// What the guest must be told of the network.
pub(super) struct ForGuest {
    ca_pem: String,
    settings: NetworkSettings,
}

impl Driver<'_> {
    /// The sandbox's policy, where it has a network. Comes first: without it nothing starts.
    pub(super) fn policy(&self) -> Result<Option<PolicyFile>, Ending> {
        let Some(network) = &self.settings.network else { return Ok(None) };
        let default = network.default_policy.as_deref();
        // Written anew by each change, so what the keeper was started with may be out of date.
        let record = self.store.load(&self.record.name);
        let record = record.map_err(|error| Ending::over(super::chain(&error)))?;
        PolicyFile::open(self.store, &record, default, network.settings.inspect)
            .map(Some)
            .map_err(Ending::over)
    }

    /// Starts the proxy of a sandbox that has a network. Any other guest finds nobody at its port.
    pub(super) async fn start_proxy(
        &self,
        machine: &mut Machine,
        policy: Option<PolicyFile>,
        port: UnixStream,
    ) -> Result<Option<Opening>, Ending> {
        let (Some(network), Some(policy)) = (&self.settings.network, policy) else {
            return Ok(None);
        };
        let failed =
            |reason: String| Ending::over(format!("the network cannot be started: {reason}"));
        let paths = self.store.paths(&self.record.name);
        let directory = paths.network();
        make(&directory).map_err(|error| {
            failed(format!("the directory {} cannot be made: {error}", directory.display()))
        })?;
        let start = NetworkStart { port, directory, log: paths.log("proxy") };
        let started = self.parts.network.start(start).await.map_err(failed)?;
        let pid = started.worker.pid();
        self.state.send_modify(|state| state.proxy_pid = Some(pid));
        tracing::info!(pid, "the proxy runs");
        machine.proxy = Some(started.worker);
        let start = Start {
            sandbox: self.record.name.to_string(),
            settings: network.settings.clone(),
            policy: policy.state(),
        };
        let (control, credentials) = (started.control, started.credentials);
        Ok(Some(Opening { policy, start, control, credentials }))
    }
}

/// Has the proxy serve, and tells what the guest must know as soon as it is known.
pub(super) async fn serve(
    opening: Option<Opening>,
    tell: oneshot::Sender<Option<ForGuest>>,
) -> Result<Option<Serving>, String> {
    let Some(Opening { policy, start, control, credentials }) = opening else {
        let _not_needed_any_more = tell.send(None);
        return Ok(None);
    };
    let (link, ca_pem) = WorkerLink::start(control, &start)
        .await
        .map_err(|reason| format!("the network cannot be started: {reason}"))?;
    let settings = start.settings;
    let _not_needed_any_more =
        tell.send(Some(ForGuest { ca_pem: ca_pem.clone(), settings: settings.clone() }));
    Ok(Some(Serving { policy, link, credentials, ca_pem, settings }))
}

/// The sandbox with its network, once that is known.
pub(super) async fn attached(
    mut spec: AttachSpec,
    told: oneshot::Receiver<Option<ForGuest>>,
) -> Result<AttachSpec, String> {
    match told.await {
        Ok(Some(ForGuest { ca_pem, settings })) => {
            attach::add_network(&mut spec, &ca_pem, &settings);
            Ok(spec)
        }
        Ok(None) => Ok(spec),
        // Whoever was to tell has failed, and that is told first.
        Err(_) => Err("the network could not be started".to_owned()),
    }
}

impl Serving {
    /// Takes requests from now on.
    pub(super) fn answer(self, machine: &mut Machine, guest: Asker) {
        let Self { policy, link, credentials, ca_pem, settings } = self;
        let task = NetworkTask { policy, worker: link, credentials, ca_pem, settings, guest };
        let (network, lost) = task.start();
        machine.network = Some(network);
        machine.network_lost = Some(lost);
    }
}

/// Resolves when the proxy has ended, if there is one.
pub(super) async fn proxy_end(proxy: &mut Option<Box<dyn NetworkWorker>>) -> String {
    match proxy {
        Some(proxy) => format!("the proxy ended: {}", proxy.wait().await),
        None => std::future::pending().await,
    }
}

/// Resolves when the proxy cannot be asked any more.
pub(super) async fn proxy_lost(lost: &mut Option<oneshot::Receiver<String>>) -> String {
    match lost {
        Some(receiver) => match receiver.await {
            Ok(reason) => reason,
            // Its task has ended without a complaint, which it does only when the driver lets go of it.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// The better of two reasons for a proxy that cannot be asked: its own end, if it comes at once.
pub(super) async fn better(proxy: &mut Option<Box<dyn NetworkWorker>>, reason: String) -> String {
    timeout(BETTER_REASON, proxy_end(proxy)).await.unwrap_or(reason)
}

/// Makes the proxy's directory where there is none, for us alone.
fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
