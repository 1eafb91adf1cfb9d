//! The worker's life: prepare, jail, then serve the guest's port and the keeper's control stream until either ends.
//!
//! ```text
//!   descriptors, limits, trust store, runtime → jail → Start → Ready → Configure, Check, … and connections
//! ```
//!
//! Invariant: no byte of the guest is read before the jail is entered and the policy is in place.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hutch_policy::host::{Authority, Host, Port};
use hutch_policy::services::ServiceTable;
use hutch_sys::inherited::inherited;
use hutch_wire::message::{self, MessageError};
use hutch_wire::{Connection, Limits, Role};
use rustix::process::{Resource, Rlimit};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::confine::{ConfineError, confine};
use crate::control::{Checked, Reply, Request, Start};
use crate::credential::{Broker, Injector};
use crate::gate::{Gate, Parts, Treatment};
use crate::log_writer::LogWriter;
use crate::{accept, upstream};

/// What the guest may hold open, and what it may send on one connection before anything of it went on.
const LIMITS: Limits = Limits {
    frame_payload: 64 * 1024,
    stream_window: 128 * 1024,
    streams: 4096,
    open_payload: 1024,
};
/// How often connections that wait too long are looked for.
const PRUNE: Duration = Duration::from_secs(30);

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// An argument is no descriptor.
    #[error("{argument:?} is not the number of a descriptor")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// A descriptor cannot be used.
    #[error("the {what} cannot be used")]
    Descriptor {
        /// Which.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The jail could not be entered.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The runtime could not be started.
    #[error("the proxy worker could not start its threads")]
    Runtime(#[source] io::Error),
    /// The keeper cannot be understood.
    #[error("the keeper's messages cannot be read")]
    Control(#[from] MessageError),
    /// Requests would go without their credentials, and nobody would know why.
    #[error("the credential broker has ended")]
    BrokerEnded,
    /// The keeper was told why.
    #[error("the proxy worker could not start: {reason}")]
    Start {
        /// Why.
        reason: String,
    },
}

/// The streams of the worker.
#[derive(Debug)]
struct Streams {
    port: StdUnixStream,
    control: StdUnixStream,
    link: StdUnixStream,
}

/// Runs the worker: `directory` is its own, the others are numbers of descriptors; the port is the standard input.
pub fn main(directory: &Path, control: &str, link: &str) -> Result<(), WorkerError> {
    let port = io::stdin().as_fd().try_clone_to_owned();
    let port = port.map_err(|source| WorkerError::Descriptor { what: "port", source })?;
    let streams = Streams {
        port: nonblocking(port.into(), "port")?,
        control: nonblocking(descriptor(control, "control stream")?, "control stream")?,
        link: nonblocking(descriptor(link, "link to the broker")?, "link to the broker")?,
    };
    raise_descriptors();
    let roots = Arc::new(upstream::native_roots());
    let (directory, report) = confine(directory)?;
    for weakness in report.weaknesses() {
        tracing::warn!("{weakness}");
    }
    // Another user's process has lost what the keeper asked for. One that ended before is seen by its closed streams.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| WorkerError::Runtime(error.into()))?;
    // One thread: all connections share the guest's port, which one task serves, and waking another thread for every few
    // kilobytes costs more than moving them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(WorkerError::Runtime)?;
    let outcome = runtime.block_on(run(directory, roots, streams));
    // Whoever still resolves a name is not waited for.
    runtime.shutdown_background();
    outcome
}

fn descriptor(number: &str, what: &'static str) -> Result<StdUnixStream, WorkerError> {
    let number: i32 =
        number.parse().map_err(|_| WorkerError::Argument { argument: number.to_owned() })?;
    let descriptor =
        inherited(number).map_err(|source| WorkerError::Descriptor { what, source })?;
    Ok(descriptor.into())
}

fn nonblocking(stream: StdUnixStream, what: &'static str) -> Result<StdUnixStream, WorkerError> {
    stream.set_nonblocking(true).map_err(|source| WorkerError::Descriptor { what, source })?;
    Ok(stream)
}

/// Thousands of connections need as many descriptors as the system lets us have.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open descriptors could not be raised");
    }
}

async fn run(
    directory: PathBuf,
    roots: Arc<rustls::RootCertStore>,
    streams: Streams,
) -> Result<(), WorkerError> {
    let stream = |stream, what| {
        UnixStream::from_std(stream).map_err(|source| WorkerError::Descriptor { what, source })
    };
    let port = stream(streams.port, "port")?;
    let link = stream(streams.link, "link to the broker")?;
    let (mut reader, mut writer) = stream(streams.control, "control stream")?.into_split();
    let start: Start = match message::read(&mut reader, message::MESSAGE_MAX).await {
        Ok(start) => start,
        Err(MessageError::End) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (gate, broker) = match begin(start, &directory, roots, link) {
        Ok((gate, broker)) => (Arc::new(gate), broker),
        Err(reason) => {
            message::write(&mut writer, &Reply::Failed { reason: reason.clone() }).await?;
            return Err(WorkerError::Start { reason });
        }
    };
    let ca_pem = gate.state().ca.pem().to_owned();
    message::write(&mut writer, &Reply::Ready { ca_pem }).await?;
    tracing::info!(sandbox = gate.sandbox, "serving");
    tokio::select! {
        outcome = obey(&gate, &mut reader, &mut writer) => outcome,
        () = serve(&gate, port) => {
            tracing::info!("the port was closed");
            Ok(())
        }
        () = tidy(&gate) => Ok(()),
        () = broker.lost() => Err(WorkerError::BrokerEnded),
    }
}

fn begin(
    start: Start,
    directory: &Path,
    roots: Arc<rustls::RootCertStore>,
    link: UnixStream,
) -> Result<(Gate, Broker), String> {
    let (credentials, recorder) = plug(&start, directory, link)?;
    let broker = credentials.broker().clone();
    let parts = Parts {
        sandbox: start.sandbox,
        settings: start.settings,
        policy: &start.policy,
        directory,
        credentials,
        recorder,
        roots,
    };
    let gate = Gate::new(parts).map_err(|error| in_one_sentence(&error))?;
    Ok((gate, broker))
}

/// What the engine is given.
type Plugged = (Arc<Injector>, Arc<LogWriter>);

/// Where credentials and the log are plugged in.
fn plug(start: &Start, directory: &Path, link: UnixStream) -> Result<Plugged, String> {
    let services = ServiceTable::new(start.settings.services.clone())
        .map_err(|error| in_one_sentence(&error))?;
    let log = File::open(directory)
        .and_then(|directory| LogWriter::start(directory.into(), &start.sandbox))
        .map_err(|error| format!("the network's log cannot be written: {error}"))?;
    Ok((Arc::new(Injector::new(services, link)), Arc::new(log)))
}

/// Serves the port until it ends.
pub(crate) async fn serve(gate: &Arc<Gate>, port: UnixStream) {
    let (connection, mut incoming) = match Connection::establish(port, Role::Client, LIMITS).await {
        Ok(established) => established,
        Err(error) => {
            tracing::warn!(%error, "the guest's end of the port cannot be used");
            return;
        }
    };
    while let Some(stream) = incoming.next().await {
        accept::accept(gate, stream);
    }
    let reason = connection.closed().await;
    tracing::debug!(%reason, "the port has ended");
}

async fn tidy(gate: &Gate) {
    let mut interval = tokio::time::interval(PRUNE);
    loop {
        interval.tick().await;
        gate.upstreams.pool.prune();
    }
}

/// Answers the keeper until it closes its end.
async fn obey(
    gate: &Arc<Gate>,
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> Result<(), WorkerError> {
    loop {
        let request: Request = match message::read(reader, message::MESSAGE_MAX).await {
            Ok(request) => request,
            Err(MessageError::End) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let reply = match request {
            Request::Configure(policy) => match gate.configure(&policy) {
                Ok((ca_pem, cut)) => {
                    tracing::info!(cut, "another policy");
                    Reply::Configured { ca_pem, cut }
                }
                Err(error) => Reply::Failed { reason: in_one_sentence(&error) },
            },
            Request::Check { host, port } => match check(gate, &host, port).await {
                Ok(checked) => Reply::Checked(checked),
                Err(reason) => Reply::Failed { reason },
            },
            Request::Services => Reply::Services(gate.credentials.sources().await),
        };
        message::write(writer, &reply).await?;
    }
}

/// What would happen to a connection.
async fn check(gate: &Gate, host: &str, port: u16) -> Result<Checked, String> {
    let host = Host::parse(host).map_err(|error| error.to_string())?;
    let port = Port::new(port).ok_or_else(|| "0 is not a port".to_owned())?;
    let place = Authority { host, port }.rewritten();
    let state = gate.state();
    let judged = state.policy.judge_host(&place.host, place.port);
    let mut verdict = judged.verdict().clone();
    let mut addresses = Vec::new();
    // A host that is refused is not asked for: the question alone tells somebody something.
    if verdict.is_allowed()
        && let Ok(found) = upstream::addresses(&place).await
    {
        addresses = found.iter().map(std::net::SocketAddr::ip).collect();
        if !gate.upstreams.is_configured(&place.host) {
            let refused = addresses.iter().find_map(|address| {
                gate.judge_address(&state, &judged, &place, Some(*address)).err()
            });
            verdict = refused.unwrap_or(verdict);
        }
    }
    let treatment = gate.treatment(&state, &place, addresses.first().copied());
    let inspected = verdict.is_allowed() && treatment == Treatment::Terminate;
    let mut credential = None;
    if inspected {
        let services = gate.services.matching(&place.host, place.port);
        let sources = gate.credentials.sources().await;
        let found = services.iter().find(|service| {
            sources.iter().any(|(name, source)| *name == service.name && source.is_some())
        });
        credential = found.map(|service| service.name.clone());
    }
    Ok(Checked {
        allowed: verdict.is_allowed(),
        rule: verdict.rule,
        reason: verdict.reason,
        inspected,
        credential,
        addresses: addresses.iter().map(ToString::to_string).collect(),
    })
}

fn in_one_sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
