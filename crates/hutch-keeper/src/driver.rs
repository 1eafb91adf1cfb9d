//! The life of one sandbox: `Booting → Ready → Stopping → Gone`, or `Failed`.
//!
//! ```text
//!            ┌────────┐  init answered   ┌───────┐
//!   start ──▶│Booting │─────────────────▶│ Ready │
//!            └───┬────┘                  └───┬───┘
//!                │ stop, failure, time       │ stop, signal, idle, failure of any part
//!                ▼                           ▼
//!            ┌───────────────────────────────────┐        ┌──────────────┐
//!            │ Stopping: the only place that     │───────▶│ Gone, Failed │
//!            │ ends the VM, the worker, the rest │        └──────────────┘
//!            └───────────────────────────────────┘
//! ```
//!
//! One task; the only one that changes the published [`State`] and the only owner of the [`Machine`].

mod network;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hutch_store::{FindError, LastEnd, SandboxRecord, Snapshots, Store};
use hutch_vmm::{Snapshot, Vm, VmEnd};
use hutch_wire::guest::{CHANNEL_PORT, WORKSPACE_PORT};
use hutch_wire::network::NETWORK_PORT;
use jiff::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::control::ControlEvent;
use crate::guest::{self, Guest};
use crate::log::Console;
use crate::machine::{Machine, Scratch, vm_spec};
use crate::snapshot::{ANSWERS_WITHIN, Shape};
use crate::state::{Sessions, Stage, State};
use crate::workspace::{WorkspaceStart, WorkspaceWorker};
use crate::{Parts, Settings, Start, attach};

/// What others ask of the driver.
#[derive(Debug, Clone)]
pub enum Command {
    /// End the sandbox.
    Stop {
        /// How long the guest may take to power off.
        at_most: Duration,
        /// Why, as a sentence for `status.json`.
        reason: &'static str,
    },
}

/// How long the guest may take to power off when nobody said.
pub(crate) const POWER_OFF: Duration = Duration::from_secs(20);
/// The same when a part of the sandbox has failed: the data disk is still worth a sync.
const POWER_OFF_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(10);
/// After the channel was lost, how long the VM's own end may take to be the better reason.
const BETTER_REASON: Duration = Duration::from_secs(1);
/// Lines of the console that are kept with a failure.
const CONSOLE_LINES: usize = 16;

type Worker = Option<Box<dyn WorkspaceWorker>>;

pub(crate) struct Driver<'a> {
    pub(crate) store: &'a Store,
    pub(crate) settings: &'a Settings,
    pub(crate) parts: &'a Parts,
    pub(crate) record: &'a SandboxRecord,
    pub(crate) state: watch::Sender<State>,
    pub(crate) sessions: Sessions,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) started: Instant,
}

/// Why the sandbox ends.
#[derive(Debug)]
struct Ending {
    reason: String,
    how: How,
}

/// Which part did not come up, and why.
enum Lost {
    Guest(String),
    Network(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Somebody wants it so.
    Wanted { at_most: Duration },
    /// A part failed, but the guest may still be able to power off.
    Broken,
    /// The guest has ended, or is not to be trusted with another word.
    Over,
    /// The guest powered off by itself.
    PoweredOff,
    /// The guest's kernel has crashed; its console says why.
    Crashed,
}

impl Ending {
    fn over(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), how: How::Over }
    }

    fn of_vm(end: VmEnd) -> Self {
        match end {
            VmEnd::PoweredOff => {
                Self { reason: "the guest powered off".to_owned(), how: How::PoweredOff }
            }
            VmEnd::GuestCrashed => {
                Self { reason: "the guest's kernel crashed".to_owned(), how: How::Crashed }
            }
            VmEnd::VmmFailed { reason } => {
                Self::over(format!("the virtual machine ended: {reason}"))
            }
        }
    }

    fn of_command(command: Option<&Command>) -> Self {
        match command {
            Some(&Command::Stop { at_most, reason }) => {
                Self { reason: reason.to_owned(), how: How::Wanted { at_most } }
            }
            // `keep` holds a sender for as long as it runs.
            None => Self { reason: "stopped".to_owned(), how: How::Wanted { at_most: POWER_OFF } },
        }
    }
}

impl Driver<'_> {
    /// From the start to the end.
    pub(crate) async fn run(mut self) -> LastEnd {
        let mut machine = Machine::default();
        let mut booted = self.boot(&mut machine, self.settings.start).await;
        if let (Err(Ending { reason, how }), Some(key)) = (&booted, machine.resumed.clone())
            && !matches!(how, How::Wanted { .. })
        {
            tracing::warn!(%reason, "the snapshot does not work here; starting without one");
            Snapshots::new(&self.store.layout().images).discard(&key);
            end_parts(&mut machine).await;
            machine = Machine::default();
            booted = self.boot(&mut machine, Start::Cold).await;
        }
        if let Err(Ending { how: How::Crashed, reason }) = &booted {
            // QEMU before 8.1 can crash an emulated kernel with several processors while it patches its own code
            // (docs/design/002): rare, so that a second boot is as good as certain. Nothing of the sandbox ran yet.
            tracing::warn!(%reason, "the guest did not come up; starting it once more");
            end_parts(&mut machine).await;
            machine = Machine::default();
            booted = self.boot(&mut machine, Start::Cold).await;
        }
        let ending = match booted {
            Ok(()) => self.serve(&mut machine).await,
            Err(ending) => ending,
        };
        self.stop(machine, ending).await
    }

    /// Starts everything, until init says that sessions can start.
    async fn boot(&mut self, machine: &mut Machine, start: Start) -> Result<(), Ending> {
        let layout = self.store.layout();
        let policy = self.policy()?;
        let attach =
            attach::attach_spec(self.record).map_err(|error| Ending::over(error.to_string()))?;
        let bulk = hutch_workspace::bulk::file()
            .map_err(|error| Ending::over(format!("no file in memory can be made: {error}")))?;
        let spec = vm_spec(layout, self.settings, self.record, &bulk).map_err(Ending::over)?;
        machine.console_from =
            std::fs::metadata(&spec.serial_log).map_or(0, |metadata| metadata.len());
        machine.scratch = Some(Scratch::make(spec.scratch.clone()).map_err(Ending::over)?);
        let mut vm = match self.resume(start, &bulk, machine).await? {
            Some(vm) => vm,
            None => {
                self.parts.vmm.start(spec).await.map_err(|error| Ending::over(chain(&error)))?
            }
        };
        self.state.send_modify(|state| {
            state.vmm_pid = Some(vm.pid());
            state.resumed = machine.resumed.is_some();
        });
        tracing::info!(pid = vm.pid(), weaknesses = ?vm.weaknesses(), "the VM runs");
        let deadline = Instant::now()
            + match machine.resumed {
                Some(_) => ANSWERS_WITHIN.min(self.settings.boot_timeout),
                None => self.settings.boot_timeout,
            };
        let mut ports = vm.take_ports();
        machine.vm = Some(vm);
        let no_port = |name: &str| Ending::over(format!("the virtual machine has no port {name}"));
        let channel = ports.remove(CHANNEL_PORT).ok_or_else(|| no_port(CHANNEL_PORT))?;
        let workspace = ports.remove(WORKSPACE_PORT).ok_or_else(|| no_port(WORKSPACE_PORT))?;
        let port = ports.remove(NETWORK_PORT).ok_or_else(|| no_port(NETWORK_PORT))?;

        let paths = self.store.paths(&self.record.name);
        machine.worker = self.start_worker(workspace, bulk, paths.log("workspace")).await?;
        let opening = self.start_proxy(machine, policy, port).await?;

        // The proxy makes itself ready while the guest boots.
        let (tell, told) = oneshot::channel();
        let attach = network::attached(attach, told);
        let booted = async {
            tokio::try_join!(
                async { network::serve(opening, tell).await.map_err(Lost::Network) },
                async {
                    guest::connect(channel, attach, paths.log("init")).await.map_err(Lost::Guest)
                },
            )
        };
        let Machine { vm, worker, proxy, .. } = machine;
        let Some(vm) = vm else { return Err(Ending::over("the sandbox is incomplete")) };
        let connected = tokio::select! {
            end = vm.wait() => return Err(Ending::of_vm(end)),
            said = worker_end(worker) => return Err(of_worker(vm, &said).await),
            said = network::proxy_end(proxy) => return Err(why(vm, said).await),
            command = self.commands.recv() => return Err(Ending::of_command(command.as_ref())),
            connected = timeout_at(deadline, booted) => connected,
        };
        let (serving, guest) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(Lost::Guest(reason))) => return Err(why(vm, reason).await),
            Ok(Err(Lost::Network(reason))) => {
                return Err(Ending::over(network::better(proxy, reason).await));
            }
            Err(_) => {
                let limit = self.settings.boot_timeout.as_secs();
                return Err(Ending::over(format!("the guest was not ready within {limit} s")));
            }
        };
        (self.parts.give_up)().map_err(|error| Ending::over(chain(&error)))?;
        if let Some(serving) = serving {
            serving.answer(machine, guest.control.asker());
        }
        let ready_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state.send_modify(|state| {
            state.stage = Stage::Ready;
            state.ready_ms = Some(ready_ms);
            state.guest = Some(guest.connection.clone());
            state.network = machine.network.clone();
        });
        tracing::info!(ready_ms, "ready");
        machine.guest = Some(guest);
        Ok(())
    }

    /// Resumes the VM from the snapshot of its shape. None if it is to be booted: whatever is wrong with a snapshot costs
    /// a line in the log and the time of a boot, never the sandbox.
    async fn resume(
        &self,
        start: Start,
        bulk: &OwnedFd,
        machine: &mut Machine,
    ) -> Result<Option<Box<dyn Vm>>, Ending> {
        let layout = self.store.layout();
        if start == Start::Cold {
            return Ok(None);
        }
        let key = match shape(self.settings, self.record).key(self.parts.vmm.as_ref()) {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(error = chain(&error), "no snapshot can be looked for");
                return Ok(None);
            }
        };
        let snapshots = Snapshots::new(&layout.images);
        let files = match snapshots.find(&key) {
            Ok(files) => files,
            Err(FindError::Missing) => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, "starting without a snapshot");
                return Ok(None);
            }
        };
        let spec = vm_spec(layout, self.settings, self.record, bulk).map_err(Ending::over)?;
        let snapshot = Snapshot { memory: files.memory.into(), state: files.state.into() };
        match self.parts.vmm.resume(spec, snapshot).await {
            Ok(vm) => {
                machine.resumed = Some(key);
                Ok(Some(vm))
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the snapshot cannot be resumed");
                snapshots.discard(&key);
                Ok(None)
            }
        }
    }

    /// Starts the worker of a sandbox that has workspaces.
    async fn start_worker(
        &self,
        port: UnixStream,
        bulk: OwnedFd,
        log: PathBuf,
    ) -> Result<Worker, Ending> {
        let workspaces = self.record.workspaces.clone();
        if workspaces.is_empty() {
            return Ok(None);
        }
        let start = WorkspaceStart { workspaces, port, bulk: Some(bulk), log };
        let worker =
            self.parts.workspace.start(start).await.map_err(|error| {
                Ending::over(format!("the workspaces cannot be served: {error}"))
            })?;
        self.state.send_modify(|state| state.workspace_pid = Some(worker.pid()));
        tracing::info!(pid = worker.pid(), "the workspace worker runs");
        Ok(Some(worker))
    }

    /// Watches everything, until something ends or is to end.
    async fn serve(&mut self, machine: &mut Machine) -> Ending {
        let (Some(vm), Some(Guest { connection, control })) = (&mut machine.vm, &mut machine.guest)
        else {
            return Ending::over("the sandbox is incomplete");
        };
        let (worker, proxy, network_lost) =
            (&mut machine.worker, &mut machine.proxy, &mut machine.network_lost);
        let idle = async {
            match self.settings.idle_timeout {
                Some(timeout) => self.sessions.idle_for(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(idle);
        loop {
            let lost = tokio::select! {
                end = vm.wait() => return Ending::of_vm(end),
                said = worker_end(worker) => return of_worker(vm, &said).await,
                said = network::proxy_end(proxy) => return of_part(vm, said).await,
                said = network::proxy_lost(network_lost) => {
                    return of_part(vm, network::better(proxy, said).await).await;
                }
                command = self.commands.recv() => return Ending::of_command(command.as_ref()),
                () = &mut idle => {
                    return Ending {
                        reason: "idle for too long".to_owned(),
                        how: How::Wanted { at_most: POWER_OFF },
                    };
                }
                error = connection.closed() => guest::lost(&error),
                event = control.event() => match event {
                    ControlEvent::Failed(reason) => reason,
                    ControlEvent::Unanswered(count) => {
                        if count > 0 {
                            tracing::warn!(count, "the guest does not answer pings");
                        }
                        self.state.send_modify(|state| state.unanswered_pings = count);
                        continue;
                    }
                },
            };
            return why(vm, lost).await;
        }
    }

    /// Ends everything, in order, and writes down how it was. The only clean-up there is.
    async fn stop(&mut self, mut machine: Machine, ending: Ending) -> LastEnd {
        tracing::info!(reason = ending.reason, how = ?ending.how, "stopping");
        self.state.send_modify(|state| {
            state.stage = Stage::Stopping;
            state.guest = None;
            state.network = None;
        });
        let mut clean = ending.how == How::PoweredOff;
        if let (Some(vm), Some(guest)) = (&mut machine.vm, &mut machine.guest) {
            let at_most = match ending.how {
                How::Wanted { at_most } => Some(at_most),
                How::Broken => Some(POWER_OFF_AFTER_FAILURE),
                How::Over | How::PoweredOff | How::Crashed => None,
            };
            if let Some(at_most) = at_most {
                clean = power_off(vm.as_mut(), guest, &mut self.commands, at_most).await;
            }
        }
        end_parts(&mut machine).await;
        let paths = self.store.paths(&self.record.name);
        let console_from = machine.console_from;
        drop(machine);
        let console = Console::read(&paths.log("serial"), console_from);
        self.record_end(ending, clean, &console)
    }

    fn record_end(&self, ending: Ending, clean: bool, console: &Console) -> LastEnd {
        let Ending { mut reason, how } = ending;
        if how == How::Crashed
            && let Some(panic) = console.panic()
        {
            reason = format!("{reason}: {}", panic.trim());
        }
        let name = &self.record.name;
        let wanted = matches!(how, How::Wanted { .. } | How::PoweredOff);
        let lines = if wanted && clean { 0 } else { CONSOLE_LINES };
        let end = LastEnd {
            format_version: hutch_store::record::FORMAT_VERSION,
            at: Timestamp::now(),
            clean,
            reason: reason.clone(),
            console: console.last(lines),
        };
        if let Err(error) = self.store.write_last_end(name, &end) {
            tracing::error!(%error, "the end cannot be written down");
        }
        tracing::info!(clean, "gone");
        self.state.send_modify(|state| {
            state.vmm_pid = None;
            state.workspace_pid = None;
            state.proxy_pid = None;
            state.stage = if wanted { Stage::Gone } else { Stage::Failed(reason) };
        });
        end
    }
}

/// What the sandbox's VM has in common with others.
fn shape(settings: &Settings, record: &SandboxRecord) -> Shape {
    Shape {
        accelerator: settings.accelerator,
        cpus: record.cpus,
        memory_mib: record.memory_mib,
        disk_bytes: record.disk_bytes,
        kernel: settings.kernel.clone(),
        initramfs: settings.initramfs.clone(),
        template_layers: settings.template_layers.clone(),
    }
}

/// Ends the VM, the connection to it, the worker and the proxy, in this order.
async fn end_parts(machine: &mut Machine) {
    if let Some(vm) = &mut machine.vm {
        vm.kill();
        if timeout(KILLED, vm.wait()).await.is_err() {
            tracing::error!(pid = vm.pid(), "the VM does not end");
        }
    }
    if let Some(guest) = machine.guest.take() {
        // Sessions still hold streams of it.
        guest.connection.close();
    }
    // After the VM, so that everything the guest wrote has been served.
    if let Some(worker) = &mut machine.worker {
        // The end of its port lets it finish what it is at.
        if timeout(BETTER_REASON, worker.wait()).await.is_err() {
            worker.kill();
            if timeout(KILLED, worker.wait()).await.is_err() {
                tracing::error!(pid = worker.pid(), "the workspace worker does not end");
            }
        }
    }
    // Its log may still get the ends of connections.
    machine.network = None;
    if let Some(proxy) = &mut machine.proxy
        && timeout(BETTER_REASON, proxy.wait()).await.is_err()
    {
        proxy.kill();
        if timeout(KILLED, proxy.wait()).await.is_err() {
            tracing::error!(pid = proxy.pid(), "the proxy does not end");
        }
    }
}

/// The better of two reasons for the end of the channel: the VM's own end, if it comes at once.
async fn why(vm: &mut Box<dyn Vm>, lost: String) -> Ending {
    match timeout(BETTER_REASON, vm.wait()).await {
        Ok(end) => Ending::of_vm(end),
        Err(_) => Ending::over(lost),
    }
}

/// Resolves when the worker has ended, if there is one.
async fn worker_end(worker: &mut Worker) -> String {
    match worker {
        Some(worker) => worker.wait().await,
        None => std::future::pending().await,
    }
}

/// The same for the end of the workspace worker.
async fn of_worker(vm: &mut Box<dyn Vm>, said: &str) -> Ending {
    of_part(vm, format!("the workspace worker ended: {said}")).await
}

/// The same for the end of a part: a VM that ends closes its ports, which ends the processes behind them.
async fn of_part(vm: &mut Box<dyn Vm>, reason: String) -> Ending {
    match timeout(BETTER_REASON, vm.wait()).await {
        Ok(end) => Ending::of_vm(end),
        Err(_) => Ending { reason, how: How::Broken },
    }
}

/// Asks the guest to power off and waits for the VM's end. Says whether the guest had everything on disk.
async fn power_off(
    vm: &mut dyn Vm,
    guest: &mut Guest,
    commands: &mut mpsc::Receiver<Command>,
    at_most: Duration,
) -> bool {
    let mut deadline = Instant::now() + at_most;
    let mut synced = false;
    let asked = guest.control.power_off();
    tokio::pin!(asked);
    let mut answered = false;
    loop {
        tokio::select! {
            end = vm.wait() => return synced || end == VmEnd::PoweredOff,
            result = &mut asked, if !answered => {
                answered = true;
                match result {
                    Ok(()) => synced = true,
                    Err(reason) => {
                        tracing::warn!(reason, "the guest does not power off");
                        // It may be on its way without having said so.
                        deadline = deadline.min(Instant::now() + BETTER_REASON);
                    }
                }
            }
            Some(Command::Stop { at_most, .. }) = commands.recv() => {
                deadline = deadline.min(Instant::now() + at_most);
            }
            () = sleep_until(deadline) => {
                tracing::warn!("the guest took too long to power off");
                return synced;
            }
        }
    }
}

/// An error with all its sources in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
