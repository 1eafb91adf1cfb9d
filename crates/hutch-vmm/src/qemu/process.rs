//! The QEMU process of one VM: started, watched, and certainly ended.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use hutch_sys::jail::FileAccess;
use hutch_sys::process::Process;
use hutch_sys::spawn::{Launch, Resource};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::arguments::{self, Descriptors, Mapping, MemoryFile};
use super::confine::Reopened;
use super::qmp::{Client, ControlError, Observed, ShutdownReason};
use super::{Qemu, confine, files, save};
use crate::logs::{BoundedLog, Tail, VMM_LOG_MAX, Watch};
use crate::{
    BoxFuture, Memory, SERIAL_LOG_MAX, SaveError, Snapshot, StartError, Vm, VmEnd, VmSpec, arch,
};

/// From `exec` to a running guest. QEMU needs 0.1 s, and ten times that when it is itself emulated.
const RUNNING_WITHIN: Duration = Duration::from_secs(30);
/// How long the end of the process may be ahead of the ends of its streams.
const STREAMS_END_WITHIN: Duration = Duration::from_secs(2);

/// Starts QEMU and the guest in it.
pub(super) async fn start(qemu: &Qemu, spec: VmSpec) -> Result<QemuVm, StartError> {
    begin(qemu, spec, None).await
}

/// Starts QEMU, and the guest where the saved one stopped.
pub(super) async fn resume(
    qemu: &Qemu,
    spec: VmSpec,
    snapshot: Snapshot,
) -> Result<QemuVm, StartError> {
    if !matches!(spec.memory, Memory::Anonymous) {
        return Err(StartError::Spec { what: "memory beside that of its snapshot".to_owned() });
    }
    begin(qemu, spec, Some(snapshot)).await
}

async fn begin(
    qemu: &Qemu,
    spec: VmSpec,
    snapshot: Option<Snapshot>,
) -> Result<QemuVm, StartError> {
    arguments::check(&spec)?;
    let saveable = matches!(spec.memory, Memory::File(_));
    let qemu = qemu.clone();
    let launched = tokio::task::spawn_blocking(move || launch(&qemu, spec, snapshot)).await;
    let Launched { process, control, ports, tail, weaknesses, state } =
        launched.map_err(|error| StartError::Resources { source: error.into() })??;
    for weakness in &weaknesses {
        tracing::warn!(
            pid = process.pid,
            weakness,
            "the virtual machine monitor is less confined than it could be"
        );
    }
    let resumes = state.is_some();
    let mut starting = Starting { process, tail };
    let ready = async {
        let mut control = Client::connect(control).await?;
        if let Some(state) = state {
            save::load(&mut control, state).await?;
        }
        control.execute("cont", json!({})).await?;
        Ok(control)
    };
    let control = match tokio::time::timeout(RUNNING_WITHIN, ready).await {
        Ok(Ok(control)) => control,
        Ok(Err(error)) => return Err(starting.failed(error).await),
        Err(_) => {
            return Err(StartError::TimedOut {
                after: RUNNING_WITHIN,
                said: starting.tail.last_lines(),
            });
        }
    };
    let Starting { process, tail } = starting;
    tracing::info!(pid = process.pid, resumes, "virtual machine started");
    Ok(QemuVm { process, control, ports, tail, weaknesses, saveable, killed: false, end: None })
}

/// What [`launch`] gives: a process that holds the other ends.
struct Launched {
    process: Guard,
    control: UnixStream,
    ports: BTreeMap<String, UnixStream>,
    tail: Tail,
    weaknesses: Vec<String>,
    /// Number that the descriptor of a saved VM's state has in the process.
    state: Option<i32>,
}

/// Opens everything and starts the process. Blocks for some milliseconds.
fn launch(
    qemu: &Qemu,
    mut spec: VmSpec,
    snapshot: Option<Snapshot>,
) -> Result<Launched, StartError> {
    let resources = |source: io::Error| StartError::Resources { source };
    let identity = confine::identity(spec.accelerator);
    let kernel = files::open_for_reading("kernel", &spec.kernel, identity.is_some())?;
    let initramfs = files::open_for_reading("initramfs", &spec.initramfs, identity.is_some())?;
    let serial_log = BoundedLog::open(&spec.serial_log, SERIAL_LOG_MAX).map_err(|source| {
        StartError::File { what: "serial log", path: spec.serial_log.clone(), source }
    })?;
    let vmm_log = BoundedLog::open(&spec.vmm_log, VMM_LOG_MAX)
        .map_err(|source| StartError::File { what: "log", path: spec.vmm_log.clone(), source })?;
    let again = |file: OwnedFd, access| Reopened { file, access };
    let mut reopened = Vec::new();
    for file in [&kernel, &initramfs] {
        reopened.push(again(file.try_clone().map_err(resources)?.into(), FileAccess::Read));
    }
    let (memory, state) = match snapshot {
        Some(Snapshot { memory, state }) => {
            hutch_store::lock::mark_used(&memory).map_err(resources)?;
            (Some((memory, Mapping::of_snapshot(qemu.version))), Some(state))
        }
        None => match std::mem::replace(&mut spec.memory, Memory::Anonymous) {
            Memory::Anonymous => (None, None),
            Memory::File(file) => {
                save::prepare(&file, spec.memory_mib, identity).map_err(resources)?;
                (Some((file, Mapping::Shared)), None)
            }
        },
    };
    if let Some((file, mapping)) = &memory {
        reopened.push(again(file.try_clone().map_err(resources)?, mapping.access()));
    }

    let mut launch = Launch::new(&qemu.program);
    let (control, control_theirs) = BlockingStream::pair().map_err(resources)?;
    let (serial, serial_theirs) = BlockingStream::pair().map_err(resources)?;
    let mut descriptors = Descriptors {
        control: launch.inherit(control_theirs),
        serial: launch.inherit(serial_theirs),
        kernel: launch.inherit(kernel),
        initramfs: launch.inherit(initramfs),
        disks: Vec::new(),
        ports: Vec::new(),
        memory: memory
            .map(|(file, mapping)| MemoryFile { descriptor: launch.inherit(file), mapping }),
        state: state.map(|state| launch.inherit(state)),
    };
    let mut ports = BTreeMap::new();
    for name in &spec.ports {
        let (ours, theirs) = BlockingStream::pair().map_err(resources)?;
        descriptors.ports.push(launch.inherit(theirs));
        ports.insert(name.clone(), to_async(ours).map_err(resources)?);
    }
    let disks = std::mem::take(&mut spec.disks);
    for disk in disks {
        let (usage, serial) = (disk.usage, disk.serial.clone());
        let file = files::disk(disk)?;
        let kept = file.try_clone().map_err(resources)?;
        descriptors.disks.push(launch.inherit(file));
        spec.disks.push(crate::DiskSpec { file: kept, usage, serial });
    }
    let (errors, errors_theirs) = io::pipe().map_err(resources)?;
    launch
        .args(arguments::build(
            &spec,
            arch::native(),
            qemu.version,
            &super::kernel_words(qemu, spec.accelerator),
            &descriptors,
        ))
        .stderr(errors_theirs)
        .limit(Resource::Core, 0)
        .new_session()
        .die_with_parent()
        .jail(confine::jail(&qemu.program, spec.accelerator, identity, reopened));

    let state = descriptors.state;
    let tail = Tail::default();
    let control = to_async(control).map_err(resources)?;
    let started = launch.start().map_err(|source| StartError::Launch { source })?;
    let mut guard = Guard::new(started.child);
    let process = guard.open().map_err(resources)?;
    let watch = Watch { serial, serial_log, errors, vmm_log, tail: tail.clone(), process };
    guard.ended = Some(watch.start().map_err(resources)?);
    let weaknesses = started.report.weaknesses();
    Ok(Launched { process: guard, control, ports, tail, weaknesses, state })
}

pub(super) fn to_async(stream: BlockingStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Owns the process: whoever drops it ends the process.
#[derive(Debug)]
pub(super) struct Guard {
    child: Option<Child>,
    pid: u32,
    /// Its sender is gone once the process has ended and its last words are written.
    ended: Option<watch::Receiver<()>>,
}

impl Guard {
    pub(super) fn new(child: Child) -> Self {
        Self { pid: child.id(), child: Some(child), ended: None }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Takes hold of the process. Its number cannot be reused: it is not reaped yet.
    pub(super) fn open(&self) -> io::Result<Process> {
        Process::of_child(self.child.as_ref().ok_or_else(reaped)?)
    }

    /// Waits for the end of the process. Cancel safe.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        if let Some(ended) = &mut self.ended {
            // Nothing is ever sent: the channel tells its end.
            while ended.changed().await.is_ok() {}
        }
        // The process is a zombie, so that this does not block.
        self.reap()
    }

    /// Waits for the end of the process and takes its status. Blocks.
    pub(super) fn reap(&mut self) -> io::Result<ExitStatus> {
        self.child.as_mut().ok_or_else(reaped)?.wait()
    }

    pub(super) fn kill(&mut self) {
        if let Some(child) = &mut self.child
            && let Err(error) = child.kill()
        {
            tracing::error!(pid = self.pid, %error, "the virtual machine monitor cannot be killed");
        }
    }
}

fn reaped() -> io::Error {
    io::Error::other("already reaped")
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Freeing a VM's memory takes a while, and a virtual CPU stuck in the kernel more; nobody waits for it here.
        let reap = move || child.wait();
        if let Err(error) = std::thread::Builder::new().name("reaper".to_owned()).spawn(reap) {
            tracing::warn!(pid = self.pid, %error, "a killed process is not reaped");
        }
    }
}

/// A process whose guest does not run yet.
struct Starting {
    process: Guard,
    tail: Tail,
}

impl Starting {
    /// Turns a failure of the control connection into the better error if the process has ended.
    async fn failed(&mut self, error: ControlError) -> StartError {
        let over = matches!(error, ControlError::Closed | ControlError::Connection(_));
        if over
            && let Ok(Ok(status)) =
                tokio::time::timeout(STREAMS_END_WITHIN, self.process.ended()).await
        {
            return StartError::Ended { status: describe(status), said: self.tail.last_lines() };
        }
        StartError::Control { source: error, said: self.tail.last_lines() }
    }
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct QemuVm {
    process: Guard,
    control: Client,
    ports: BTreeMap<String, UnixStream>,
    tail: Tail,
    weaknesses: Vec<String>,
    saveable: bool,
    killed: bool,
    end: Option<VmEnd>,
}

impl QemuVm {
    async fn ended(&mut self) -> VmEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let status = self.process.ended().await;
        let observed = tokio::time::timeout(STREAMS_END_WITHIN, self.control.observed())
            .await
            .unwrap_or_default();
        let end = match status {
            Ok(status) => classify(status, &observed, self.killed, &self.tail.last_lines()),
            Err(error) => {
                VmEnd::VmmFailed { reason: format!("its process cannot be waited for: {error}") }
            }
        };
        tracing::info!(pid = self.process.pid, ?end, "virtual machine ended");
        self.end = Some(end.clone());
        end
    }
}

impl Vm for QemuVm {
    fn take_ports(&mut self) -> BTreeMap<String, UnixStream> {
        std::mem::take(&mut self.ports)
    }

    fn pid(&self) -> u32 {
        self.process.pid
    }

    fn wait(&mut self) -> BoxFuture<'_, VmEnd> {
        Box::pin(self.ended())
    }

    fn save(&mut self, state: OwnedFd) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async move {
            // Once only: what was stopped for a save does not run on.
            if !std::mem::take(&mut self.saveable) {
                return Err(SaveError::Memory);
            }
            save::save(&mut self.control, state).await
        })
    }

    fn kill(&mut self) {
        self.killed = true;
        self.process.kill();
    }

    fn weaknesses(&self) -> &[String] {
        &self.weaknesses
    }
}

/// Decides how the VM ended.
fn classify(status: ExitStatus, observed: &Observed, killed: bool, said: &str) -> VmEnd {
    match observed.shutdown {
        _ if observed.panicked => VmEnd::GuestCrashed,
        Some(ShutdownReason::GuestReset | ShutdownReason::GuestPanic) if status.success() => {
            VmEnd::GuestCrashed
        }
        Some(ShutdownReason::GuestShutdown) if status.success() => VmEnd::PoweredOff,
        _ if killed => VmEnd::VmmFailed { reason: "it was ended on request".to_owned() },
        _ => {
            let status = describe(status);
            let reason = if said.is_empty() { status } else { format!("{status}: {said}") };
            VmEnd::VmmFailed { reason }
        }
    }
}

/// Says in words how a process ended.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was ended by signal {signal}"),
        (None, Some(code)) => format!("it ended with status {code}"),
        (None, None) => "it ended".to_owned(),
    }
}

#[cfg(test)]
mod tests;
