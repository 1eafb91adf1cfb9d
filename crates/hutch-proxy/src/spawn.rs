//! How the keeper starts the network of a sandbox: the proxy worker and the credential broker beside it.
//!
//! ```text
//!   keeper ── control ──────▶ worker (network, no files)  ◀── port ── VM
//!      └───── credentials ──▶ broker (files, no network)
//!                              worker ◀── link ──▶ broker
//! ```
//!
//! | program | input | 3 | 4 |
//! | --- | --- | --- | --- |
//! | `hutch-proxy worker DIRECTORY CONTROL LINK` | port | control | link |
//! | `hutch-proxy broker SPEC LINK` | credentials | spec, a sealed file | link |

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use hutch_sys::process::Process;
use hutch_sys::spawn::{Launch, LaunchError, Resource};
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

/// What the network of one sandbox is started with.
#[derive(Debug)]
pub struct Spawn {
    /// The worker's end of the stream to the guest's network port.
    pub port: OwnedFd,
    /// The sandbox's network directory; it exists.
    pub directory: PathBuf,
    /// Where both write what they have to say.
    pub log: File,
    /// What the broker reads.
    pub broker: BrokerSpec,
}

/// Where the broker looks for credentials. Holds none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSpec {
    /// Directory of the secret store.
    pub store: PathBuf,
    /// The user's home directory.
    pub home: PathBuf,
    /// The user's login shell; none when the user has none that can be asked.
    pub shell: Option<PathBuf>,
    /// The user's name.
    pub user: String,
    /// The services that it answers for, each with the variables that hold its credential: no others.
    pub services: Vec<(String, Vec<String>)>,
}

/// Why the network was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The sockets or the spec could not be made.
    #[error("the sockets of the proxy could not be made")]
    Sockets(#[source] io::Error),
    /// A program could not be started.
    #[error("the proxy could not be started")]
    Launch(#[from] LaunchError),
    /// It was started and is lost.
    #[error("the proxy could not be followed")]
    Follow(#[source] io::Error),
}

/// The running network of a sandbox. Dropping it kills both processes.
#[derive(Debug)]
pub struct Proxy {
    /// To the worker: [`crate::control`] messages. A [`crate::control::Start`] comes first.
    pub control: UnixStream,
    /// To the broker: [`crate::control::CallerEnvironment`] messages.
    pub credentials: UnixStream,
    worker: Followed,
    broker: Followed,
}

#[derive(Debug)]
struct Followed {
    child: Child,
    process: Process,
}

/// Starts both programs; they die with the caller.
pub fn spawn(program: &Path, spawn: Spawn) -> Result<Proxy, SpawnError> {
    let Spawn { port, directory, log, broker } = spawn;
    let pair = || UnixStream::pair().map_err(SpawnError::Sockets);
    let (control, workers_control) = pair()?;
    let (credentials, brokers_credentials) = pair()?;
    let (workers_link, brokers_link) = pair()?;
    let brokers_log = log.try_clone().map_err(SpawnError::Sockets)?;

    let mut launch = Launch::new(program);
    let spec = launch.inherit(sealed(&broker).map_err(SpawnError::Sockets)?);
    let link = launch.inherit(brokers_link);
    launch.arg("broker").arg(spec.to_string()).arg(link.to_string());
    let broker = Followed::start(launch, brokers_credentials, brokers_log)?;

    let mut launch = Launch::new(program);
    let control_number = launch.inherit(workers_control);
    let link = launch.inherit(workers_link);
    launch.arg("worker").arg(&directory).arg(control_number.to_string()).arg(link.to_string());
    let worker = Followed::start(launch, port, log)?;
    Ok(Proxy { control, credentials, worker, broker })
}

/// The spec as a file without a name: paths do not show in arguments.
fn sealed(spec: &BrokerSpec) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create(c"broker spec", flags)?;
    let mut file = File::from(memory.try_clone()?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0))?;
    drop(file);
    let sealed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(memory.as_fd(), sealed)?;
    Ok(memory)
}

impl Followed {
    fn start(mut launch: Launch, input: impl Into<OwnedFd>, log: File) -> Result<Self, SpawnError> {
        launch.stdin(input.into()).stderr(log).new_session().die_with_parent();
        // No core dump: there are secrets in it.
        launch.limit(Resource::Core, 0);
        let mut child = launch.start()?.child;
        match Process::of_child(&child) {
            Ok(process) => Ok(Self { child, process }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                Err(SpawnError::Follow(error))
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Nothing is left to do about a failure here; the kernel kills it when we end.
        self.process.kill().ok();
        self.child.wait().ok();
    }
}

impl Proxy {
    /// The worker's process number.
    pub fn pid(&self) -> u32 {
        self.worker.child.id()
    }

    /// The broker's process number.
    pub fn broker_pid(&self) -> u32 {
        self.broker.child.id()
    }

    /// The worker's process, for event loops: readable once it has ended. The broker ends with it.
    pub fn process(&self) -> &Process {
        &self.worker.process
    }

    /// Ends both at once.
    pub fn kill(&mut self) -> io::Result<()> {
        let worker = self.worker.process.kill();
        self.broker.process.kill()?;
        worker
    }

    /// Waits until the worker has ended, at most so long; none if it still runs.
    pub fn wait(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        if self.worker.process.wait_ended(at_most)? {
            self.worker.child.wait().map(Some)
        } else {
            Ok(None)
        }
    }
}
