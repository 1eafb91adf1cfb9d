//! Makes the prepared machine one particular sandbox.
//!
//! Entropy first: nothing that could draw random numbers for this sandbox may run before the machine has bytes of its
//! own, because many machines are resumed from one saved state. Then clock and names, disks, workspaces, container.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hutch_wire::guest::{AttachSpec, BULK_DISK, Bytes, EngineStart, WORKSPACE_PORT};
use hutch_wire::network::NETWORK_PORT;
use rustix::fs::{Mode, OFlags};

use crate::changes::Changes;
use crate::container::{self, Container, ContainerError, ContainerSpec};
use crate::devices::Devices;
use crate::disks::{self, DiskError, Places};
use crate::engine::Engine;
use crate::identity::{self, Identity, IdentityError};
use crate::modules::Loading;
use crate::network::{self, Uplink};
use crate::port::Port;
use crate::root::Root;
use crate::stages::Stages;
use crate::sys::entropy;
use crate::trust::TrustError;
use crate::workspaces::{self, WorkspaceError};
use crate::{clock, log, tools, trust, workspace};

/// Everything of the sandbox is mounted below this directory of the initramfs.
pub(crate) const BASE: &str = "/hutch";
/// Init's own program, for the container's supervisor.
const PROGRAM: &str = "/proc/self/exe";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// How long the workspaces' port may take to appear; the channel's is there already.
const PORT_LIMIT: Duration = Duration::from_secs(10);

/// Why the machine cannot become this sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the kernel took no entropy: {0}")]
    Entropy(#[source] io::Error),
    #[error("cannot set the clock: {0}")]
    Clock(#[source] io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot set the host name: {0}")]
    Hostname(#[source] io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("cannot open the root file system: {0}")]
    Root(#[source] io::Error),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error("the workspace channel failed: {0}")]
    WorkspaceChannel(String),
    #[error("the proxy's certificates are not trusted: {0}")]
    Trust(#[from] TrustError),
    #[error("{}", with_sources(.0))]
    Container(#[from] ContainerError),
    #[error("a step of the start ended early")]
    Interrupted,
}

/// What was found and started at boot.
#[derive(Debug)]
pub(crate) struct Hardware {
    /// Finds disks and ports.
    pub(crate) devices: Devices,
    /// Drivers and file systems on their way.
    pub(crate) modules: Loading,
    /// What was made already for any sandbox of the template.
    pub(crate) prepared: Mutex<Option<Prepared>>,
}

/// What is the same for each sandbox of the template.
#[derive(Debug)]
pub(crate) struct Prepared {
    places: Places,
    container: container::Prepared,
}

/// Does what is the same for each sandbox of the template: its disk is mounted, and some of its files are in memory.
pub(crate) async fn prepare(hardware: Arc<Hardware>, files: Vec<Bytes>) -> Result<(), AttachError> {
    let for_template = Arc::clone(&hardware);
    let places = blocking(move || {
        let hardware = for_template;
        let mut stages = Stages::start();
        let places = template(&hardware, &mut stages)?;
        let layers =
            places.layers().map(|layer| Root::open(&layer)).collect::<io::Result<Vec<_>>>();
        let layers = layers.map_err(AttachError::Root)?;
        let read: u64 = files.iter().map(|file| read_ahead(&layers, file)).sum();
        stages.mark("files");
        hardware.modules.finish_network();
        stages.mark("network");
        log::info(format!("prepared, {} MiB read; {stages}", read >> 20));
        Ok(places)
    });
    let (places, container) = tokio::try_join!(places, prepare_container())?;
    *hardware.prepared.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Prepared { places, container });
    Ok(())
}

async fn prepare_container() -> Result<container::Prepared, AttachError> {
    Ok(container::Prepared::make(Path::new(PROGRAM), Path::new(CGROUP_ROOT)).await?)
}

/// Has a file of the template in the page cache; gives its bytes.
fn read_ahead(layers: &[Root], file: &[u8]) -> u64 {
    let path = Path::new(OsStr::from_bytes(file));
    let mut result = Err(io::ErrorKind::NotFound.into());
    // The uppermost layer that has it: the others' is not what anybody will read.
    for root in layers {
        result = root.read(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        if result.is_ok() {
            break;
        }
    }
    result.unwrap_or_else(|error| {
        log::info(format!("{} not read ahead: {error}", path.display()));
        0
    })
}

/// Mounts the template's disk.
fn template(hardware: &Hardware, stages: &mut Stages) -> Result<Places, AttachError> {
    hardware.modules.finish();
    stages.mark("modules");
    let mut places = Places::make(Path::new(BASE)).map_err(DiskError::Places)?;
    disks::mount_template(&hardware.devices, &mut places)?;
    stages.mark("template");
    Ok(places)
}

/// What the machine is after that.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) container: Container,
    /// Its root file system, seen from outside.
    pub(crate) root: Arc<Root>,
    /// What it has changed of its template.
    pub(crate) changes: Arc<Changes>,
    /// Its Docker engine, for as long as it is to be served.
    pub(crate) engine: Option<Engine>,
}

/// Does every step in order; the sandbox runs when it returns.
pub(crate) async fn attach(
    hardware: Arc<Hardware>,
    spec: AttachSpec,
) -> Result<Attached, AttachError> {
    let mut stages = Stages::start();
    entropy::credit(&spec.entropy).map_err(AttachError::Entropy)?;
    clock::set(spec.realtime_ns).map_err(|error| AttachError::Clock(error.into()))?;
    identity::check(&spec.hostname, &spec.machine_id)?;
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|error| AttachError::Hostname(error.into()))?;
    stages.mark("identity");

    let spec = Arc::new(spec);
    let prepared = hardware.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (places, container) = match prepared {
        Some(Prepared { places, container }) => (places, container),
        None => {
            let for_template = Arc::clone(&hardware);
            let places = blocking(move || template(&for_template, &mut Stages::start()));
            let made = tokio::try_join!(places, prepare_container())?;
            stages.mark("preparing");
            made
        }
    };
    // Things that do not need each other, on as many processors as there are.
    let mounted = {
        let (hardware, places) = (Arc::clone(&hardware), places.clone());
        blocking(move || mount_root(&hardware, &places))
    };
    let network = start_network(&hardware, &spec);
    let workspaces = async {
        match spec.workspaces.is_empty() {
            true => Ok(()),
            false => start_workspaces(&hardware, &places.workspaces).await,
        }
    };
    let (root, (), ()) = tokio::try_join!(mounted, network, workspaces)?;
    let root = Arc::new(root);
    stages.mark("mounts");
    let files = {
        let (root, spec) = (Arc::clone(&root), Arc::clone(&spec));
        blocking(move || {
            write_files(&root, &spec);
            Ok(())
        })
    };
    let trusted = {
        let (root, spec) = (Arc::clone(&root), Arc::clone(&spec));
        blocking(move || match has_network(&spec) {
            true => Ok(trust::install(&root, &spec.ca_pem)?),
            false => Ok(()),
        })
    };
    let changes = Changes::new(&places.upper(), Arc::clone(&root), &spec.workspaces)
        .map_err(AttachError::Root)?;
    let container = enter(container, Arc::clone(&root), Arc::clone(&spec), places);
    let (container, (), ()) = tokio::try_join!(container, files, trusted)?;
    stages.mark("container, files");
    let engine = serve_engine(&container, &root, spec.engine);
    log::info(format!("attached; {stages}"));
    Ok(Attached { container, root, changes: Arc::new(changes), engine })
}

fn serve_engine(container: &Container, root: &Arc<Root>, start: EngineStart) -> Option<Engine> {
    let socket = container.take_engine_socket();
    let served = socket
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .and_then(|socket| Engine::serve(container.clone(), socket, Arc::clone(root), start));
    served.map_err(|error| log::warn(format!("no Docker socket: {error}"))).ok()
}

/// Completes the container: its mounts are those that are there now.
async fn enter(
    container: container::Prepared,
    root: Arc<Root>,
    spec: Arc<AttachSpec>,
    places: Places,
) -> Result<Container, AttachError> {
    let mut stages = Stages::start();
    let inside = container_spec(&spec, places.root);
    if !spec.workspaces.is_empty() {
        let source = places.workspaces;
        // Blocks on requests that the runtime's own thread may have to carry.
        blocking(move || Ok(workspaces::bind(&root, &source, &spec.workspaces)?)).await?;
        stages.mark("workspaces");
    }
    let container = container.enter(inside).await?;
    stages.mark("container");
    log::info(format!("entered; {stages}"));
    Ok(container)
}

fn mount_root(hardware: &Hardware, places: &Places) -> Result<Root, AttachError> {
    let mut stages = Stages::start();
    disks::mount_data(&hardware.devices, &places.data)?;
    stages.mark("data");
    disks::mount_root(places)?;
    let root = Root::open(&places.root).map_err(AttachError::Root)?;
    disks::mount_plain_directories(places, &root);
    stages.mark("overlay");
    log::info(format!("root; {stages}"));
    Ok(root)
}

fn write_files(root: &Root, spec: &AttachSpec) {
    let mut stages = Stages::start();
    let network = has_network(spec).then_some(network::ADDRESS);
    identity::write(
        root,
        Identity {
            hostname: &spec.hostname,
            machine_id: &spec.machine_id,
            time_zone: spec.time_zone.as_deref(),
            network,
        },
    );
    if network.is_some() {
        tools::write(root, &spec.environment, &spec.user);
    }
    stages.mark("files");
    log::info(format!("files; {stages}"));
}

fn container_spec(spec: &AttachSpec, root: PathBuf) -> ContainerSpec {
    let first = spec.workspaces.first();
    let directory = first.filter(|first| first.directory).map(|first| first.path.clone());
    ContainerSpec {
        root,
        hostname: spec.hostname.clone(),
        cgroup_root: PathBuf::from(CGROUP_ROOT),
        environment: spec.environment.clone(),
        user: spec.user.clone(),
        directory,
    }
}

fn has_network(spec: &AttachSpec) -> bool {
    !spec.ca_pem.is_empty()
}

/// Serves what was prepared at boot; its tasks live as long as the machine. Without a network nobody listens any more,
/// and the kernel refuses every connection by itself.
async fn start_network(hardware: &Arc<Hardware>, spec: &AttachSpec) -> Result<(), AttachError> {
    let wanted = has_network(spec);
    let hardware = Arc::clone(hardware);
    let (prepared, port) = blocking(move || {
        let prepared = hardware.modules.network();
        let port = wanted.then(|| open_network_port(&hardware.devices)).flatten();
        Ok((prepared, port))
    })
    .await?;
    let (Some(prepared), Some(port)) = (prepared, port) else { return Ok(()) };
    let (uplink, driver) = Uplink::new();
    if let Err(error) = network::start(prepared, &uplink) {
        log::warn(format!("no network: {error}"));
        return Ok(());
    }
    tokio::spawn(async move { driver.run(&port).await });
    Ok(())
}

fn open_network_port(devices: &Devices) -> Option<Port> {
    let port = devices.port(NETWORK_PORT, PORT_LIMIT).map_err(|error| error.to_string());
    let port = port.and_then(|device| Port::open(&device).map_err(|error| error.to_string()));
    port.map_err(|error| log::warn(format!("no network: {error}"))).ok()
}

/// Mounts the workspaces' file system; the pump lives as long as the machine.
async fn start_workspaces(hardware: &Arc<Hardware>, target: &Path) -> Result<(), AttachError> {
    let (hardware, target) = (Arc::clone(hardware), target.to_owned());
    blocking(move || {
        let failed =
            |error: &dyn std::error::Error| AttachError::WorkspaceChannel(with_sources(error));
        let device =
            hardware.devices.port(WORKSPACE_PORT, PORT_LIMIT).map_err(|error| failed(&error))?;
        let port = Port::open(&device).map_err(|error| failed(&error))?;
        let bulk = open_bulk_disk(&hardware.devices);
        // Unmounted with everything else before the power goes.
        workspace::start(port.into_fd(), bulk, &target).map_err(|error| failed(&error))?;
        Ok(())
    })
    .await
}

/// Opens the disk of large contents, around the kernel's cache: the host writes to it, too. Slower without, never wrong.
fn open_bulk_disk(devices: &Devices) -> Option<OwnedFd> {
    let opened = devices.disk(BULK_DISK, PORT_LIMIT).map_err(|error| error.to_string());
    let opened = opened.and_then(|device| {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        rustix::fs::open(&device, flags, Mode::empty())
            .map_err(|error| format!("cannot open {}: {error}", device.display()))
    });
    opened.map_err(|error| log::warn(format!("large contents go by the port: {error}"))).ok()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttachError> + Send + 'static,
) -> Result<T, AttachError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(AttachError::Interrupted))
}

/// An error and everything below it in one sentence: the host has no more than this.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
