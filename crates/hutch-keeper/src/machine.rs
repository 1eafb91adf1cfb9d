//! What runs for one sandbox: the VM, its workspace worker, the channel to its init.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hutch_store::{Layout, SandboxRecord, SnapshotKey};
use hutch_vmm::{DiskSpec, DiskUse, Memory, Vm, VmSpec};
use hutch_wire::guest::{BULK_DISK, CHANNEL_PORT, DATA_DISK, TemplateDisk, WORKSPACE_PORT};
use hutch_wire::network::NETWORK_PORT;

use crate::Settings;
use crate::guest::Guest;
use crate::network::{Network, NetworkWorker};
use crate::workspace::WorkspaceWorker;

/// The ports of every VM.
pub(crate) const PORTS: [&str; 3] = [CHANNEL_PORT, WORKSPACE_PORT, NETWORK_PORT];

/// Everything that must end; filled step by step while the sandbox boots. Dropping it kills it.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) guest: Option<Guest>,
    pub(crate) vm: Option<Box<dyn Vm>>,
    pub(crate) worker: Option<Box<dyn WorkspaceWorker>>,
    pub(crate) proxy: Option<Box<dyn NetworkWorker>>,
    /// Keeps the streams to the proxy open for as long as the sandbox runs.
    pub(crate) network: Option<Network>,
    /// Told when the proxy cannot be asked any more.
    pub(crate) network_lost: Option<tokio::sync::oneshot::Receiver<String>>,
    pub(crate) scratch: Option<Scratch>,
    /// Where this run begins in the log of the console.
    pub(crate) console_from: u64,
    /// The snapshot that the VM was resumed from.
    pub(crate) resumed: Option<SnapshotKey>,
}

/// The VM's directory for things that must have a name; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, empty: a dead keeper may have left one.
    pub(crate) fn make(path: PathBuf) -> Result<Self, String> {
        let failed =
            |error: io::Error| format!("the directory {} cannot be made: {error}", path.display());
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a directory was left behind");
        }
    }
}

/// The VM of a sandbox. An error is one sentence.
pub(crate) fn vm_spec(
    layout: &Layout,
    settings: &Settings,
    record: &SandboxRecord,
    bulk: &OwnedFd,
) -> Result<VmSpec, String> {
    let paths = layout.sandbox(&record.name);
    let logs = paths.logs();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&logs)
        .map_err(|error| format!("the directory {} cannot be made: {error}", logs.display()))?;
    let mut disks = template_disks(&settings.template_layers, |path, serial| {
        disk("template layer", path, DiskUse::Image, serial)
    })?;
    disks.push(disk("data disk", &paths.data(), DiskUse::Data, DATA_DISK)?);
    disks.push(bulk_disk(bulk).map_err(|error| format!("a file cannot be shared: {error}"))?);
    Ok(VmSpec {
        accelerator: settings.accelerator,
        cpus: record.cpus,
        memory_mib: record.memory_mib,
        memory: Memory::Anonymous,
        kernel: settings.kernel.clone(),
        initramfs: settings.initramfs.clone(),
        kernel_arguments: Vec::new(),
        disks,
        ports: PORTS.map(str::to_owned).to_vec(),
        serial_log: paths.log("serial"),
        vmm_log: paths.log("vmm"),
        scratch: layout.scratch(&record.id),
    })
}

/// The disk of large contents of workspaces: the same open file as the worker's.
pub(crate) fn bulk_disk(file: &OwnedFd) -> io::Result<DiskSpec> {
    Ok(DiskSpec { file: file.try_clone()?, usage: DiskUse::Exchange, serial: BULK_DISK.to_owned() })
}

/// The template's disks in the order of its layers.
pub(crate) fn template_disks<E>(
    layers: &[PathBuf],
    mut open: impl FnMut(&Path, &str) -> Result<DiskSpec, E>,
) -> Result<Vec<DiskSpec>, E> {
    // More than a VM has room for are refused by the VMM.
    let count = u8::try_from(layers.len()).unwrap_or(u8::MAX);
    let disks = TemplateDisk::all(count).zip(layers);
    disks.map(|(disk, layer)| open(layer, &disk.serial())).collect()
}

fn disk(what: &str, path: &Path, usage: DiskUse, serial: &str) -> Result<DiskSpec, String> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(usage != DiskUse::Image)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .and_then(|file| match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("not a regular file")),
        })
        .map_err(|error| format!("the {what} {} cannot be opened: {error}", path.display()))?;
    // A blocking descriptor from here on, as for any file.
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())
        .map_err(|error| format!("the {what} {} cannot be used: {error}", path.display()))?;
    Ok(DiskSpec { file: file.into(), usage, serial: serial.to_owned() })
}
