//! Talking to a sandbox's keeper, and starting one.
//!
//! ```text
//!   keeper lives ──connect──▶ WaitReady ──▶ ready       the session can begin
//!        │                        └──▶ stopping ──▶ wait until its lock is free, then start a new one
//!   nobody holds the lock ──▶ start a keeper, wait for its line `listening`, connect
//!   somebody holds it but does not answer yet ──▶ look again in an instant
//! ```

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hutch_api::{API_VERSION, NetworkRequest, Open, Phase, Request, Response, Status};
use hutch_image::Template;
use hutch_policy::settings::NetworkSettings;
use hutch_store::{LockError, Program, SandboxName, Store};
use hutch_sys::process::Process;
use hutch_sys::spawn::Launch;
use hutch_vmm::qemu::Qemu;
use hutch_wire::message::{self, MessageError};
use hutch_wire::{Connection, ConnectionError, Limits, Role};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::failure::{Blame, Failure};
use crate::plugin::Face;
use crate::printer::guest_sentence;
use crate::settings::UserSettings;
use crate::warm::StartMode;

/// No answer of a keeper is longer.
const RESPONSE_MAX: u32 = 64 * 1024;
/// How long a keeper may take to greet us: it lives, so it is only busy.
const GREETING: Duration = Duration::from_secs(10);
/// How long a keeper may hold its lock without answering, while it begins or ends.
const BETWEEN: Duration = Duration::from_secs(15);
/// How often we look again meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a clean power-off may take.
const POWER_OFF: Duration = Duration::from_secs(20);
/// How long a keeper may take to end after everything of it has ended.
const LAST_STEPS: Duration = Duration::from_secs(10);
/// The line that a keeper says about its start is not longer.
const READY_LINE_MAX: u64 = 8 * 1024;

/// A keeper that we are connected to.
#[derive(Debug)]
pub(crate) struct Keeper {
    connection: Connection,
}

/// What a new keeper is started with.
#[derive(Debug, Clone)]
pub(crate) struct KeeperArguments {
    /// Everything after the program's name except what names descriptors.
    pub(crate) arguments: Vec<std::ffi::OsString>,
    /// What its network is started with, in JSON.
    pub(crate) network: Vec<u8>,
    /// The program.
    pub(crate) program: std::path::PathBuf,
}

/// Why an answer could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The keeper speaks another language.
    #[error("its keeper is of another version of hutch: {0}")]
    Version(String),
    /// It went away.
    #[error("its keeper went away: {0}")]
    Lost(String),
}

/// What connecting to a keeper gives.
enum Connected {
    Yes(Keeper),
    /// Nobody listens there (yet, or any more).
    Nobody,
}

impl Keeper {
    /// Greets the keeper at the other end of a stream.
    pub(crate) async fn greet(stream: UnixStream) -> Result<Self, ConnectionError> {
        // The keeper opens no streams.
        let (connection, _incoming) =
            Connection::establish(stream, Role::Client, Limits::default()).await?;
        Ok(Self { connection })
    }

    /// The connection, to open sessions on.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Asks one thing.
    pub(crate) async fn call(&self, request: &Request) -> Result<Response, CallError> {
        let lost = |error: &dyn std::error::Error| CallError::Lost(error.to_string());
        let open = postcard::to_stdvec(&Open::Call).map_err(|error| lost(&error))?;
        let mut stream = self.connection.open(&open).await.map_err(|error| lost(&error))?;
        message::write(&mut stream, request).await.map_err(|error| lost(&error))?;
        stream.shutdown().await.map_err(|error| lost(&error))?;
        match message::read(&mut stream, RESPONSE_MAX).await {
            Ok(response) => Ok(response),
            Err(error @ MessageError::Malformed(_)) => Err(CallError::Version(error.to_string())),
            Err(error) => Err(match stream.reset_reason() {
                Some(reason) => CallError::Version(guest_sentence(&reason)),
                None => lost(&error),
            }),
        }
    }

    /// What the keeper does.
    pub(crate) async fn status(&self, request: &Request) -> Result<Status, CallError> {
        match self.call(request).await? {
            Response::Status(status) if status.api_version == API_VERSION => Ok(status),
            Response::Status(status) => Err(CallError::Version(format!(
                "it speaks interface {}, this one {API_VERSION}",
                status.api_version
            ))),
            Response::Stopped => Err(CallError::Lost("it has stopped".to_owned())),
            Response::Failed { reason } => Err(CallError::Lost(guest_sentence(&reason))),
            Response::NetworkPolicy(_)
            | Response::NetworkChecked(_)
            | Response::NetworkServices(_)
            | Response::Done => Err(another_question()),
        }
    }

    /// Asks something about the network.
    pub(crate) async fn network(&self, request: NetworkRequest) -> Result<Response, CallError> {
        self.call(&Request::Network(request)).await
    }
}

/// The answer belongs to no question that was asked.
pub(crate) fn another_question() -> CallError {
    CallError::Version("it answered another question".to_owned())
}

/// The sandbox's keeper, started if there is none; returns when sessions can begin. `arguments` is asked for only when a
/// keeper must be started: it may be long work.
pub(crate) async fn ready(
    store: &Store,
    name: &SandboxName,
    face: Face,
    arguments: impl AsyncFnOnce() -> Result<KeeperArguments, Failure>,
) -> Result<Keeper, Failure> {
    let mut arguments = Some(arguments);
    let mut prepared: Option<KeeperArguments> = None;
    let mut patience = Instant::now() + BETWEEN;
    loop {
        if let Connected::Yes(keeper) = connect(store, name, face).await? {
            match keeper.status(&Request::WaitReady).await {
                Ok(status) => match status.phase {
                    Phase::Ready => return Ok(keeper),
                    Phase::Booting => {}
                    Phase::Failed { reason } => {
                        return Err(not_started(store, name, &guest_sentence(&reason)));
                    }
                    Phase::Stopping => {
                        drop(keeper);
                        wait_for_end(store, name, POWER_OFF + LAST_STEPS)?;
                        patience = Instant::now() + BETWEEN;
                        continue;
                    }
                },
                Err(error @ CallError::Version(_)) => {
                    return Err(other_version(name, face, &error));
                }
                // It ended just now; whether it runs is looked at again.
                Err(CallError::Lost(_)) => {}
            }
        } else if !is_running(store, name)? {
            let with = match (prepared.take(), arguments.take()) {
                (Some(with), _) => with,
                (None, Some(ask)) => ask().await?,
                (None, None) => {
                    return Err(Failure::bug("the keeper's arguments were asked for twice"));
                }
            };
            start(store, name, &with)?;
            prepared = Some(with);
            patience = Instant::now() + BETWEEN;
            continue;
        }
        if Instant::now() >= patience {
            return Err(no_answer(name, face));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The keeper of a sandbox that runs already, when sessions can begin in it; nothing where it does not run.
pub(crate) async fn running(
    store: &Store,
    name: &SandboxName,
    face: Face,
) -> Result<Option<Keeper>, Failure> {
    let patience = Instant::now() + BETWEEN;
    loop {
        if let Connected::Yes(keeper) = connect(store, name, face).await? {
            match keeper.status(&Request::WaitReady).await {
                Ok(Status { phase: Phase::Ready, .. }) => return Ok(Some(keeper)),
                Ok(Status { phase: Phase::Failed { .. } | Phase::Stopping, .. }) => {
                    return Ok(None);
                }
                Err(error @ CallError::Version(_)) => {
                    return Err(other_version(name, face, &error));
                }
                Ok(Status { phase: Phase::Booting, .. }) | Err(CallError::Lost(_)) => {}
            }
        } else if !is_running(store, name)? {
            return Ok(None);
        }
        if Instant::now() >= patience {
            return Err(no_answer(name, face));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Ends a running sandbox; one that does not run is left alone. Says whether it ran.
pub(crate) async fn stop(store: &Store, name: &SandboxName, face: Face) -> Result<bool, Failure> {
    // Something else of this name has no keeper.
    if !store.paths(name).directory.is_dir() || !is_running(store, name)? {
        return Ok(false);
    }
    // One that just begins is given the time to listen.
    let patience = Instant::now() + BETWEEN;
    while Instant::now() < patience {
        match connect(store, name, face).await {
            Ok(Connected::Yes(keeper)) => {
                let request = Request::Stop {
                    timeout_ms: u64::try_from(POWER_OFF.as_millis()).unwrap_or(u64::MAX),
                };
                let answer = timeout(POWER_OFF + LAST_STEPS, keeper.call(&request)).await;
                drop(keeper);
                if matches!(answer, Ok(Ok(Response::Stopped)))
                    && has_ended(store, name, LAST_STEPS)?
                {
                    return Ok(true);
                }
                break;
            }
            Ok(Connected::Nobody) if !is_running(store, name)? => return Ok(true),
            Ok(Connected::Nobody) => sleep(LOOK_AGAIN).await,
            // It cannot be talked to, but every version understands a signal.
            Err(_) => break,
        }
    }
    by_force(store, name)?;
    Ok(true)
}

/// Ends a keeper that does not answer: asks by a signal first.
fn by_force(store: &Store, name: &SandboxName) -> Result<(), Failure> {
    let process =
        || -> Option<Process> { store.keeper(name).ok().flatten()?.process().open().ok() };
    // One that has ended meanwhile is what we want.
    if let Some(process) = process() {
        let _ended = process.terminate();
    }
    if has_ended(store, name, POWER_OFF + LAST_STEPS)? {
        return Ok(());
    }
    if let Some(process) = process() {
        let _ended = process.kill();
    }
    if has_ended(store, name, LAST_STEPS)? {
        return Ok(());
    }
    Err(Failure::host(format!("the sandbox `{name}` does not stop"))
        .hint(format!("see who holds it: fuser -v {}", store.paths(name).lock().display())))
}

/// Says whether somebody runs the sandbox.
pub(crate) fn is_running(store: &Store, name: &SandboxName) -> Result<bool, Failure> {
    store.is_running(name).map_err(|error| Failure::from_error(Blame::Host, &error))
}

/// Waits until nobody holds the sandbox's lock; says whether that came.
pub(crate) fn has_ended(
    store: &Store,
    name: &SandboxName,
    at_most: Duration,
) -> Result<bool, Failure> {
    match store.lock(name, at_most) {
        Ok(_) | Err(LockError::Gone { .. }) => Ok(true),
        Err(LockError::Held { .. }) => Ok(false),
        Err(error) => Err(Failure::from_error(Blame::Host, &error)),
    }
}

fn wait_for_end(store: &Store, name: &SandboxName, at_most: Duration) -> Result<(), Failure> {
    if has_ended(store, name, at_most)? {
        return Ok(());
    }
    Err(Failure::host(format!("the sandbox `{name}` is stopping and does not come to an end")))
}

async fn connect(store: &Store, name: &SandboxName, face: Face) -> Result<Connected, Failure> {
    // One that cannot be read is of no keeper that lives: it writes the file before it listens.
    let Some(keeper) = store.keeper(name).ok().flatten() else {
        return Ok(Connected::Nobody);
    };
    let stream = match UnixStream::connect(keeper.socket.as_path()).await {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(Connected::Nobody),
        Err(error) => {
            let path = keeper.socket.as_path().display();
            return Err(Failure::host(format!(
                "the sandbox `{name}` cannot be reached at {path}: {error}"
            )));
        }
    };
    match timeout(GREETING, Keeper::greet(stream)).await {
        Ok(Ok(keeper)) => Ok(Connected::Yes(keeper)),
        Ok(Err(error @ ConnectionError::Version { .. })) => {
            Err(other_version(name, face, &CallError::Version(error.to_string())))
        }
        Ok(Err(_)) => Ok(Connected::Nobody),
        Err(_) => Err(no_answer(name, face)),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

fn no_answer(name: &SandboxName, face: Face) -> Failure {
    Failure::host(format!("the keeper of the sandbox `{name}` does not answer"))
        .hint(format!("end it by force: {} stop {name}", face.program()))
}

/// The keeper cannot be talked to because it is of another version.
pub(crate) fn other_version(name: &SandboxName, face: Face, error: &CallError) -> Failure {
    Failure::user(format!("the sandbox `{name}` cannot be used: {error}"))
        .hint(format!("stop it, then try again: {} stop {name}", face.program()))
}

fn not_started(store: &Store, name: &SandboxName, reason: &str) -> Failure {
    let logs = store.paths(name).logs();
    // Somebody may have removed the sandbox meanwhile, with its logs.
    let hint = logs.exists().then(|| format!("its logs are in {}", logs.display()));
    Failure::host(format!("the sandbox `{name}` did not start: {reason}")).hint_if(hint)
}

/// Starts a keeper and returns when it listens, or another one does.
fn start(store: &Store, name: &SandboxName, with: &KeeperArguments) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::host(format!("the keeper could not be started: {error}"));
    let (said, ready) = io::pipe().map_err(failed)?;
    let mut launch = Launch::new(&with.program);
    launch.args(&with.arguments).new_session();
    let number = launch.inherit(ready);
    launch.args(["--ready-fd".to_owned(), number.to_string()]);
    let number = launch.inherit(sealed(&with.network).map_err(failed)?);
    launch.args(["--network-fd".to_owned(), number.to_string()]);
    let mut launched = launch.start().map_err(|error| Failure::from_error(Blame::Host, &error))?;
    let line = first_line(File::from(OwnedFd::from(said))).map_err(failed)?;
    match line.trim_end().split_once(": ") {
        None if matches!(line.trim_end(), "listening" | "running") => Ok(()),
        Some(("failed", reason)) => Err(not_started(store, name, reason)),
        _ => {
            // The pipe is closed, so it ends now if it has not yet.
            let status = launched
                .child
                .wait()
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(not_started(store, name, &format!("its keeper ended at once ({status})")))
        }
    }
}

/// A file without a name that nobody can change any more: it may hold more than a pipe, and a keeper reads it when it
/// likes.
fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("network", flags)?);
    file.write_all(content)?;
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

fn first_line(pipe: File) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(pipe.take(READY_LINE_MAX)).read_line(&mut line)?;
    Ok(line)
}

/// The arguments of a keeper.
#[derive(Debug)]
pub(crate) struct KeeperPlan<'a> {
    pub(crate) store: &'a Store,
    pub(crate) name: &'a SandboxName,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) template: &'a Template,
    pub(crate) accelerator: hutch_vmm::Accelerator,
    pub(crate) qemu: &'a Qemu,
    pub(crate) idle_timeout_s: u64,
    pub(crate) boot_timeout_s: Option<u64>,
    pub(crate) network: &'a NetworkSettings,
    /// The policy file that a sandbox without one begins with.
    pub(crate) default_policy: Option<&'a Path>,
    pub(crate) user: &'a UserSettings,
    pub(crate) start: StartMode,
    pub(crate) debug: bool,
}

impl KeeperPlan<'_> {
    /// The plan as a command line.
    pub(crate) fn arguments(&self, program: std::path::PathBuf) -> KeeperArguments {
        let layout = self.store.layout();
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        let mut add = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            arguments.extend([flag.into(), value.as_ref().to_owned()]);
        };
        add("--state", &layout.state);
        add("--runtime", &layout.runtime);
        add("--images", &layout.images);
        add("--sandbox", &self.name.as_str());
        add("--kernel", &self.kernel);
        add("--initramfs", &self.initramfs);
        for layer in &self.template.layers {
            add("--template-layer", layer);
        }
        add("--accelerator", &accelerator_word(self.accelerator));
        add("--qemu", &self.qemu.program());
        add("--qemu-version", &self.qemu.version().to_string());
        add("--idle-timeout", &self.idle_timeout_s.to_string());
        add("--config", &layout.config);
        if let Some(path) = self.default_policy {
            add("--default-policy", &path);
        }
        for (flag, value) in self.user.flags() {
            add(flag, &value);
        }
        if let Some(seconds) = self.boot_timeout_s {
            add("--boot-timeout", &seconds.to_string());
        }
        if self.start == StartMode::Cold {
            arguments.push("--cold".into());
        }
        if self.debug {
            arguments.push("--debug".into());
        }
        // Text, numbers and lists only: nothing in it can fail to be JSON.
        let network = serde_json::to_vec(self.network).unwrap_or_default();
        KeeperArguments { arguments, network, program }
    }
}

/// The accelerator as the keeper's arguments name it.
pub(crate) fn accelerator_word(accelerator: hutch_vmm::Accelerator) -> &'static str {
    match accelerator {
        hutch_vmm::Accelerator::Kvm => "kvm",
        hutch_vmm::Accelerator::Tcg => "tcg",
    }
}

/// The keeper's program.
pub(crate) fn program(programs: &hutch_store::Programs) -> Result<std::path::PathBuf, Failure> {
    programs.find(Program::Keeper).map_err(|error| {
        Failure::from_error(Blame::Host, &error).hint("install hutch again with all its programs")
    })
}

#[cfg(test)]
mod tests;
