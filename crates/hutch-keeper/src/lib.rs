//! The keeper: one process a running sandbox, the only owner of its life.
//!
//! ```text
//!   command lines ──unix socket──▶ server ─▶ client ─┬─ calls ────▶ driver ──▶ VMM, workspace worker, proxy
//!                                                    ├─ network ──▶ network ─▶ proxy worker, credential broker
//!                                                    └─ exec ─────▶ guest channel (relayed as it is)
//! ```
//!
//! [`driver`] is one task and the only one that starts, judges and ends anything; everybody else sends it a
//! [`driver::Command`] or looks at the [`state::State`] that it publishes. Invariants: a sandbox is ready only after its
//! init answered over the channel; nothing that a guest sends makes the keeper hold more memory than the limits of
//! [`hutch_wire`], stop serving other sandboxes, or write without bound.

mod attach;
mod client;
mod control;
mod driver;
mod exec;
mod guest;
mod log;
mod machine;
mod network;
mod privileges;
mod process;
mod server;
pub mod snapshot;
mod state;
mod workspace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hutch_policy::settings::NetworkSettings;
use hutch_store::{FileError, KeeperRecord, LastEnd, LoadError, LockError, SandboxName, Store};
use hutch_sys::jail::JailError;
use hutch_sys::process::{ProcessError, ProcessIdentity};
use hutch_vmm::{Accelerator, Vmm};
use tokio::sync::mpsc;

pub use self::driver::Command;
pub use self::log::start_log;
pub use self::network::{HutchProxy, NetworkHost, NetworkStart, NetworkStarted, NetworkWorker};
pub use self::privileges::{give_up_at_start, give_up_when_running};
pub use self::server::ServerError;
pub use self::workspace::{HutchWorkspace, WorkspaceHost, WorkspaceStart, WorkspaceWorker};

/// What a keeper is told by the command that starts it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which sandbox.
    pub sandbox: SandboxName,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Disk images of the template's layers, the lowest first.
    pub template_layers: Vec<PathBuf>,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Whether the VM may be resumed from a snapshot.
    pub start: Start,
    /// What the network is started with; none = there is no network.
    pub network: Option<NetworkSpec>,
    /// How long the sandbox may be without activity; `None` = for ever.
    pub idle_timeout: Option<Duration>,
    /// How long it may take from the VM's start until init is ready.
    pub boot_timeout: Duration,
}

/// What the network of a sandbox is started with.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    /// What the command line resolved.
    pub settings: NetworkSettings,
    /// The policy file that a sandbox without one begins with; without it, or where there is none, the built-in policy.
    pub default_policy: Option<PathBuf>,
}

/// How a VM starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Resumed from a snapshot where there is one.
    Warm,
    /// Always from its kernel.
    Cold,
}

/// What a keeper runs a sandbox with; tests have their own.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Starts the VM.
    pub vmm: Arc<dyn Vmm>,
    /// Starts the workspace worker.
    pub workspace: Arc<dyn WorkspaceHost>,
    /// Starts the proxy.
    pub network: Arc<dyn NetworkHost>,
    /// Gives up what the process needs no more, once everything runs: [`give_up_when_running`] in the program.
    pub give_up: fn() -> Result<(), JailError>,
}

/// Why a keeper could not begin.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another one has the sandbox, or it is being removed.
    #[error("the sandbox `{sandbox}` is running already")]
    Running {
        /// Its name.
        sandbox: SandboxName,
    },
    /// The lock cannot be used.
    #[error(transparent)]
    Lock(LockError),
    /// The record cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `/proc` does not say who we are.
    #[error("the keeper cannot identify itself")]
    Identity(#[from] ProcessError),
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// How long a keeper waits for the lock: a command that looks whether a sandbox runs holds it for an instant, and a
/// keeper that has answered its last request holds it until its process is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long clients may take to read their last answer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Keeps a sandbox from its start to its end. Calls `listening` when clients can connect. `commands` may also come from
/// signals.
pub async fn keep(
    store: Store,
    settings: Settings,
    parts: Parts,
    listening: impl FnOnce(),
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
) -> Result<LastEnd, KeeperError> {
    let started = tokio::time::Instant::now();
    let name = settings.sandbox.clone();
    // Held until the end of this function, on every way out.
    let _lock = lock(&store, &name)?;
    let record = store.load(&name)?;
    let socket = store.layout().socket(&record.id);
    let listener = server::Listener::bind(&socket)?;
    let own = ProcessIdentity::own()?;
    let keeper = KeeperRecord {
        format_version: hutch_store::record::FORMAT_VERSION,
        pid: own.pid,
        start_time: own.start_time,
        socket: hutch_store::HostPath::new(socket)
            .map_err(|error| ServerError::Path { path: error.path })?,
    };
    // What stays if nobody gets to write how it ended.
    store.expect_end(
        &name,
        &LastEnd {
            format_version: hutch_store::record::FORMAT_VERSION,
            at: jiff::Timestamp::now(),
            clean: false,
            reason: "it was killed, or the machine stopped, while it ran".to_owned(),
            console: Vec::new(),
        },
    )?;
    store.write_keeper(&name, &keeper)?;

    let (sender, receiver) = commands;
    let (state, watched) = state::State::new(settings.accelerator);
    let sessions = state::Sessions::new();
    let server = server::Server::start(listener, watched, sender, sessions.clone());
    listening();
    tracing::info!(sandbox = %name, pid = own.pid, "listening");

    let driver = driver::Driver {
        store: &store,
        settings: &settings,
        parts: &parts,
        record: &record,
        state,
        sessions,
        commands: receiver,
        started,
    };
    let end = driver.run().await;
    // What the driver published last must still reach whoever waits for it.
    server.finish(LAST_WORDS).await;
    Ok(end)
}

/// Takes the lock. Whoever holds it for an instant is waited for; a keeper that lives is not.
fn lock(store: &Store, name: &SandboxName) -> Result<hutch_store::Lock, KeeperError> {
    const LOOK_AGAIN: Duration = Duration::from_millis(100);
    let started = std::time::Instant::now();
    loop {
        match store.lock(name, LOOK_AGAIN) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) => {}
            Err(LockError::Gone { .. }) => {
                return Err(LoadError::NotFound { name: name.clone() }.into());
            }
            Err(error) => return Err(KeeperError::Lock(error)),
        }
        // One that is about to end has removed its socket.
        let keeper = store.keeper(name).ok().flatten();
        let lives = keeper.is_some_and(|keeper| keeper.socket.as_path().exists());
        if lives || started.elapsed() >= LOCK_PATIENCE {
            return Err(KeeperError::Running { sandbox: name.clone() });
        }
    }
}
