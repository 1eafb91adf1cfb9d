//! Makes the prepared machine one particular sandbox.
//!
//! Entropy first: nothing that could draw random numbers for this sandbox may run before the machine has bytes of its
//! own, because many machines are resumed from one saved state. Then clock and names, disks, workspaces, container.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hutch_wire::guest::{AttachSpec, Bytes, WORKSPACE_PORT};

use crate::container::{Container, ContainerError, ContainerSpec};
use crate::devices::Devices;
use crate::disks::{self, DiskError, Places};
use crate::identity::{self, IdentityError};
use crate::modules::Loading;
use crate::port::Port;
use crate::root::Root;
use crate::stages::Stages;
use crate::sys::entropy;
use crate::workspaces::{self, WorkspaceError};
use crate::{clock, log, workspace};

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
    /// What was mounted already for any sandbox of the template.
    pub(crate) prepared: Mutex<Option<Places>>,
}

/// Does what is the same for each sandbox of the template: its disk is mounted, and some of its files are in memory.
pub(crate) async fn prepare(hardware: Arc<Hardware>, files: Vec<Bytes>) -> Result<(), AttachError> {
    blocking(move || {
        let mut stages = Stages::start();
        let places = template(&hardware, &mut stages)?;
        let root = Root::open(&places.template).map_err(AttachError::Root)?;
        let read: u64 = files.iter().map(|file| read_ahead(&root, file)).sum();
        stages.mark("files");
        *hardware.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(places);
        log::info(format!("prepared, {} MiB read; {stages}", read >> 20));
        Ok(())
    })
    .await
}

/// Has a file of the template in the page cache; gives its bytes.
fn read_ahead(root: &Root, file: &[u8]) -> u64 {
    let path = Path::new(OsStr::from_bytes(file));
    match root.read(path).and_then(|mut file| io::copy(&mut file, &mut io::sink())) {
        Ok(bytes) => bytes,
        Err(error) => {
            log::info(format!("{} not read ahead: {error}", path.display()));
            0
        }
    }
}

/// The template's disk, mounted now or before.
fn template(hardware: &Hardware, stages: &mut Stages) -> Result<Places, AttachError> {
    if let Some(places) = hardware.prepared.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Ok(places);
    }
    hardware.modules.finish();
    stages.mark("modules");
    let places = Places::make(Path::new(BASE)).map_err(DiskError::Places)?;
    disks::mount_template(&hardware.devices, &places.template)?;
    stages.mark("template");
    Ok(places)
}

/// Does every step in order; the sandbox runs when it returns.
pub(crate) async fn attach(
    hardware: Arc<Hardware>,
    spec: AttachSpec,
) -> Result<Container, AttachError> {
    let mut stages = Stages::start();
    entropy::credit(&spec.entropy).map_err(AttachError::Entropy)?;
    clock::set(spec.realtime_ns).map_err(|error| AttachError::Clock(error.into()))?;
    identity::check(&spec.hostname, &spec.machine_id)?;
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|error| AttachError::Hostname(error.into()))?;
    stages.mark("identity");

    let spec = Arc::new(spec);
    let (for_root, for_hardware) = (Arc::clone(&spec), Arc::clone(&hardware));
    let (places, root, mut stages) =
        blocking(move || make_root(&for_hardware, &for_root, stages)).await?;

    if !spec.workspaces.is_empty() {
        start_workspaces(&hardware, &places.workspaces).await?;
        stages.mark("workspace channel");
        let (source, for_binds) = (places.workspaces.clone(), Arc::clone(&spec));
        // Blocks on requests that the runtime's own thread may have to carry.
        blocking(move || Ok(workspaces::bind(&root, &source, &for_binds.workspaces)?)).await?;
        stages.mark("workspaces");
    }

    let container =
        Container::start(Path::new(PROGRAM), container_spec(&spec, places.root)).await?;
    stages.mark("container");
    log::info(format!("attached; {stages}"));
    Ok(container)
}

fn make_root(
    hardware: &Hardware,
    spec: &AttachSpec,
    mut stages: Stages,
) -> Result<(Places, Root, Stages), AttachError> {
    let places = template(hardware, &mut stages)?;
    disks::mount_data(&hardware.devices, &places.data)?;
    stages.mark("data");
    disks::mount_root(&places)?;
    let root = Root::open(&places.root).map_err(AttachError::Root)?;
    disks::mount_plain_directories(&places, &root);
    stages.mark("overlay");
    identity::write(&root, &spec.hostname, &spec.machine_id, spec.time_zone.as_deref());
    stages.mark("files");
    Ok((places, root, stages))
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

/// Mounts the workspaces' file system; the pump lives as long as the machine.
async fn start_workspaces(hardware: &Arc<Hardware>, target: &Path) -> Result<(), AttachError> {
    let (hardware, target) = (Arc::clone(hardware), target.to_owned());
    blocking(move || {
        let failed =
            |error: &dyn std::error::Error| AttachError::WorkspaceChannel(with_sources(error));
        let device =
            hardware.devices.port(WORKSPACE_PORT, PORT_LIMIT).map_err(|error| failed(&error))?;
        let port = Port::open(&device).map_err(|error| failed(&error))?;
        // Unmounted with everything else before the power goes.
        workspace::start(port.into_fd(), &target).map_err(|error| failed(&error))?;
        Ok(())
    })
    .await
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
