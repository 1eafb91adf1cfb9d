//! The saved VM that sandboxes of one shape start from: which one it is, and how it is made.
//!
//! ```text
//!   boot ─▶ init answers ─▶ Prepare ─▶ hang up ─▶ save ─▶ resume once and ask ─▶ publish
//! ```
//!
//! It is made before anything of a sandbox exists: its data disk is an empty placeholder that init does not touch, and
//! nothing but the shape ([`Shape`]) is known. What a resumed VM still shares with others, the kernel's random numbers
//! above all, init replaces when it is attached. Invariant: only a snapshot that was resumed and answered is published.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_store::{FileError, HostPath, MakeError, SnapshotKey, Snapshots};
use hutch_vmm::{
    Accelerator, DiskSpec, DiskUse, Memory, SaveError, Snapshot, StartError, Vm, VmSpec, Vmm,
};
use hutch_wire::guest::{
    BULK_DISK, Bytes, CHANNEL_PORT, ControlReply, ControlRequest, DATA_DISK, Open,
};
use hutch_wire::{Connection, Limits, Role, Stream, message};
use tokio::time::timeout;

use crate::attach::realtime_ns;
use crate::guest;
use crate::log::guest_text;
use crate::machine::{PORTS, Scratch, bulk_disk, template_disks};

/// Changes whenever a snapshot of an older Hutch must not be resumed although nothing else in the key tells.
const FORMAT: &str = "hutch snapshot 1";
/// How long the guest is left alone after the host hung up: the loss must be behind it when it is saved.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a resumed guest may take to answer. An emulated one takes 0.1 s on a machine with nothing else to do.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// So many digits of a key tell it from the others in a name.
const SHORT: usize = 12;
/// No reply of init is longer.
const REPLY_MAX: u32 = 8 * 1024;

/// Everything that a snapshot depends on and that is chosen: sandboxes of the same shape share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the data disk in bytes.
    pub disk_bytes: u64,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Disk images of the template's layers, the lowest first.
    pub template_layers: Vec<PathBuf>,
}

/// What is needed to make a snapshot.
#[derive(Debug, Clone)]
pub struct Making<'a> {
    /// Starts the VMs.
    pub vmm: &'a dyn Vmm,
    /// Where snapshots are kept.
    pub snapshots: &'a Snapshots,
    /// What is made.
    pub shape: &'a Shape,
    /// Files of the template that should be in the guest's memory.
    pub files: Vec<PathBuf>,
    /// Where a directory is made, for as long as it takes, for logs and what the VMM must name.
    pub runtime: &'a Path,
    /// How long the guest may take to boot.
    pub boot_timeout: Duration,
}

/// Why no snapshot was made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store has it, or somebody makes it, or cannot take it.
    #[error(transparent)]
    Store(#[from] MakeError),
    /// A file of it.
    #[error(transparent)]
    File(#[from] FileError),
    /// An image of the guest.
    #[error("{} cannot be used: {source}", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VM did not start.
    #[error("the virtual machine to be saved did not start: {0}")]
    Start(String),
    /// The guest did not get ready.
    #[error("the guest to be saved did not get ready: {0}")]
    Guest(String),
    /// Saving failed.
    #[error("the virtual machine cannot be saved")]
    Save(#[from] SaveError),
    /// Any of these, with what the guest said last.
    #[error("{}; the console's last line: {line}", crate::driver::chain(what.as_ref()))]
    Said {
        /// What went wrong.
        what: Box<Self>,
        /// The line.
        line: String,
    },
    /// What was saved does not work.
    #[error("the saved virtual machine does not resume: {0}")]
    Resume(String),
}

impl SnapshotError {
    /// Whether the guest did not come up, or not again: another one may.
    pub fn is_of_guest(&self) -> bool {
        match self {
            Self::Guest(_) | Self::Resume(_) => true,
            Self::Said { what, .. } => what.is_of_guest(),
            Self::Store(_)
            | Self::File(_)
            | Self::Image { .. }
            | Self::Start(_)
            | Self::Save(_) => false,
        }
    }
}

impl Shape {
    /// The key of its snapshot: the shape, the content of its images as far as the file system tells, the VMM, and the
    /// version of what we speak with init.
    pub fn key(&self, vmm: &dyn Vmm) -> Result<SnapshotKey, SnapshotError> {
        let mut facts = vec![
            FORMAT.as_bytes().to_vec(),
            hutch_wire::VERSION_MAX.to_string().into_bytes(),
            self.disk_bytes.to_string().into_bytes(),
        ];
        for image in self.images() {
            facts.push(identity(image)?.into_bytes());
        }
        let nothing = || File::open("/dev/null").map_err(image_error(Path::new("/dev/null")));
        let mut disks = template_disks(&self.template_layers, |_, serial| {
            Ok::<_, SnapshotError>(DiskSpec {
                file: nothing()?.into(),
                usage: DiskUse::Image,
                serial: serial.to_owned(),
            })
        })?;
        disks.push(DiskSpec {
            file: nothing()?.into(),
            usage: DiskUse::Data,
            serial: DATA_DISK.to_owned(),
        });
        disks.push(DiskSpec {
            file: nothing()?.into(),
            usage: DiskUse::Exchange,
            serial: BULK_DISK.to_owned(),
        });
        let spec = self.spec(disks, Path::new("/"));
        let start_error = |error: StartError| SnapshotError::Start(crate::driver::chain(&error));
        facts.extend(vmm.fingerprint(&spec).map_err(start_error)?);
        Ok(SnapshotKey::of(facts.iter().map(Vec::as_slice)))
    }

    /// The files that every VM of this shape stands on.
    fn images(&self) -> impl Iterator<Item = &Path> {
        let guest = [&self.kernel, &self.initramfs].into_iter();
        guest.chain(&self.template_layers).map(PathBuf::as_path)
    }

    /// The same as paths that can be written down.
    fn stands_on(&self) -> Result<Vec<HostPath>, SnapshotError> {
        let written = |path: &Path| {
            std::path::absolute(path)
                .and_then(|path| HostPath::new(path).map_err(io::Error::other))
                .map_err(image_error(path))
        };
        self.images().map(written).collect()
    }

    fn spec(&self, disks: Vec<DiskSpec>, scratch: &Path) -> VmSpec {
        VmSpec {
            accelerator: self.accelerator,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            memory: Memory::Anonymous,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            kernel_arguments: Vec::new(),
            disks,
            ports: PORTS.map(str::to_owned).to_vec(),
            serial_log: scratch.join("serial.log"),
            vmm_log: scratch.join("vmm.log"),
            scratch: scratch.join("vm"),
        }
    }
}

/// What tells one state of an image from every other.
fn identity(image: &Path) -> Result<String, SnapshotError> {
    let metadata = std::fs::metadata(image).map_err(image_error(image))?;
    Ok(format!(
        "{} {} {} {} {}",
        image.display(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    ))
}

fn image_error(path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Image { path: path.clone(), source }
}

/// Makes the snapshot of a shape. [`MakeError::Exists`] and [`MakeError::Busy`] are errors of [`SnapshotError::Store`].
/// On any error nothing is left behind.
pub async fn make(making: &Making<'_>) -> Result<SnapshotKey, SnapshotError> {
    let key = making.shape.key(making.vmm)?;
    let files = making.snapshots.make(&key)?;
    // Named by the key, whose lock we hold: what a maker that was killed left there is ours to clear.
    let name = format!("snapshot-{}", key.as_str().get(..SHORT).unwrap_or_default());
    let place = making.runtime.join(name);
    let scratch = Scratch::make(place.clone()).map_err(SnapshotError::Start)?;
    let work = Work { making, scratch: &place };
    let made = work.make(&files).await.map_err(|error| match console(&place) {
        Some(line) => SnapshotError::Said { what: Box::new(error), line },
        None => error,
    });
    // Before the lock, which goes with the files.
    drop(scratch);
    made?;
    files.publish(making.shape.stands_on()?)?;
    tracing::info!(key = key.as_str(), "published");
    Ok(key)
}

/// The last line of the guest's console: the directory with it goes.
fn console(scratch: &Path) -> Option<String> {
    let console = std::fs::read(scratch.join("serial.log")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let last = console.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(last.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// A snapshot on its way.
struct Work<'a> {
    making: &'a Making<'a>,
    scratch: &'a Path,
}

impl Work<'_> {
    async fn make(&self, files: &hutch_store::Making) -> Result<(), SnapshotError> {
        let making = self.making;
        let started = tokio::time::Instant::now();
        let mut spec = self.spec()?;
        spec.memory = Memory::File(files.memory()?.into());
        let mut vm = self.start(spec).await?;
        let paths =
            making.files.iter().map(|file| Bytes::from(file.as_os_str().as_encoded_bytes()));
        timeout(making.boot_timeout, prepare(vm.as_mut(), paths.collect()))
            .await
            .unwrap_or_else(|_| Err("it was not ready in time".to_owned()))
            .map_err(SnapshotError::Guest)?;
        tokio::time::sleep(SETTLE).await;
        vm.save(files.state()?.into()).await?;
        vm.kill();
        vm.wait().await;
        drop(vm);
        tracing::info!(ms = started.elapsed().as_millis(), "saved");

        let tried = files.files()?;
        let snapshot = Snapshot { memory: tried.memory.into(), state: tried.state.into() };
        let mut vm = making
            .vmm
            .resume(self.spec()?, snapshot)
            .await
            .map_err(|error| SnapshotError::Resume(crate::driver::chain(&error)))?;
        timeout(ANSWERS_WITHIN, answers(vm.as_mut()))
            .await
            .unwrap_or_else(|_| Err("it does not answer".to_owned()))
            .map_err(SnapshotError::Resume)?;
        vm.kill();
        vm.wait().await;
        Ok(())
    }

    fn spec(&self) -> Result<VmSpec, SnapshotError> {
        let shape = self.making.shape;
        let mut disks = template_disks(&shape.template_layers, |image, serial| {
            let file = File::open(image).map_err(image_error(image))?;
            Ok::<_, SnapshotError>(DiskSpec {
                file: file.into(),
                usage: DiskUse::Image,
                serial: serial.to_owned(),
            })
        })?;
        disks.push(DiskSpec {
            file: self.placeholder().map_err(image_error(self.scratch))?,
            usage: DiskUse::Data,
            serial: DATA_DISK.to_owned(),
        });
        let bulk = hutch_workspace::bulk::file().and_then(|file| bulk_disk(&file));
        disks.push(bulk.map_err(image_error(Path::new(BULK_DISK)))?);
        Ok(shape.spec(disks, self.scratch))
    }

    /// A data disk of the right size with nothing on it, and without a name.
    fn placeholder(&self) -> io::Result<OwnedFd> {
        let path = self.scratch.join("placeholder");
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        file.set_len(self.making.shape.disk_bytes)?;
        Ok(file.into())
    }

    async fn start(&self, spec: VmSpec) -> Result<Box<dyn Vm>, SnapshotError> {
        self.making
            .vmm
            .start(spec)
            .await
            .map_err(|error| SnapshotError::Start(crate::driver::chain(&error)))
    }
}

/// Has init do what every sandbox needs, and hangs up. An error is one sentence.
async fn prepare(vm: &mut dyn Vm, files: Vec<Bytes>) -> Result<(), String> {
    let (connection, mut control) = connect(vm).await?;
    match ask(&mut control, &ControlRequest::Prepare { files }).await? {
        ControlReply::Prepared => {
            // Init's last word on this connection; then the port is free for the next.
            connection.closed().await;
            Ok(())
        }
        ControlReply::Failed { reason } => Err(guest_text(&reason)),
        _ => Err("it answered something else than was asked".to_owned()),
    }
}

/// Whether a resumed guest is one that can be talked to.
async fn answers(vm: &mut dyn Vm) -> Result<(), String> {
    let (_connection, mut control) = connect(vm).await?;
    match ask(&mut control, &ControlRequest::Ping { realtime_ns: realtime_ns() }).await? {
        ControlReply::Pong => Ok(()),
        _ => Err("it answered something else than was asked".to_owned()),
    }
}

async fn connect(vm: &mut dyn Vm) -> Result<(Connection, Stream), String> {
    // The other ports are let go with the map: the guest opens them when it is attached.
    let port =
        vm.take_ports().remove(CHANNEL_PORT).ok_or_else(|| "it has no channel".to_owned())?;
    let (connection, _incoming) = tokio::select! {
        end = vm.wait() => return Err(format!("it ended: {end:?}")),
        connected = Connection::establish(port, Role::Client, Limits::default()) =>
            connected.map_err(|error| guest::lost(&error))?,
    };
    let payload = postcard::to_stdvec(&Open::Control).map_err(|error| error.to_string())?;
    let control =
        connection.open(&payload).await.map_err(|error| guest_text(&error.to_string()))?;
    Ok((connection, control))
}

async fn ask(control: &mut Stream, request: &ControlRequest) -> Result<ControlReply, String> {
    message::write(control, request).await.map_err(|error| error.to_string())?;
    message::read(control, REPLY_MAX).await.map_err(|error| guest_text(&error.to_string()))
}
