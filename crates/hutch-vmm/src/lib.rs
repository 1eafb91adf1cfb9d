//! From a resolved [`VmSpec`] to a running virtual machine, and its certain end.
//!
//! Nothing outside this crate knows that the VMM is QEMU.
//!
//! ```text
//!   Vmm, Vm          the traits that everyone else uses
//!   qemu             the one implementation: discover → arguments → jail → QMP → end
//!   probe            does hardware virtualisation really run a guest here?
//!   arch             every fact that depends on the architecture
//! ```
//!
//! Invariants: a VM never outlives its [`Vm`], nor the process that holds it; the guest decides nothing about files,
//! names or lengths on the host; what the guest or the VMM says is bounded.

mod arch;
mod logs;
pub mod probe;
pub mod qemu;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use hutch_sys::spawn::LaunchError;

pub use self::qemu::{ControlError, Qemu};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Linux hardware virtualisation.
    Kvm,
    /// Pure emulation: works everywhere, several times slower, a weaker boundary.
    Tcg,
}

/// Everything a VMM needs to start one VM; nothing in it is optional configuration.
#[derive(Debug)]
pub struct VmSpec {
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Virtual CPUs, at least 1.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// What the guest's memory is made of.
    pub memory: Memory,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Further words for the kernel command line.
    pub kernel_arguments: Vec<String>,
    /// Block devices in order.
    pub disks: Vec<DiskSpec>,
    /// Names of the virtio-serial ports; the running VM gives a stream for each.
    pub ports: Vec<String>,
    /// Receives the serial console, appended, at most [`SERIAL_LOG_MAX`] bytes.
    pub serial_log: PathBuf,
    /// Receives what the VMM itself says on its standard error.
    pub vmm_log: PathBuf,
    /// Directory of this VM alone for what the VMM must name (0700, ours).
    pub scratch: PathBuf,
}

/// What a guest's memory is made of.
#[derive(Debug)]
pub enum Memory {
    /// Memory of the VMM alone.
    Anonymous,
    /// This empty file, open for reading and writing and ours alone: the VM can be saved ([`Vm::save`]), and the file is
    /// then the saved memory.
    File(OwnedFd),
}

/// A saved VM.
#[derive(Debug)]
pub struct Snapshot {
    /// The file that its memory was made of. The resumed VM maps it privately: it never changes.
    pub memory: OwnedFd,
    /// What [`Vm::save`] wrote, positioned at its start.
    pub state: OwnedFd,
}

/// The serial log stops growing here.
pub const SERIAL_LOG_MAX: u64 = 16 * 1024 * 1024;

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// An image: the guest cannot write.
    Image,
    /// The guest's own data: what it flushed stays, and what it frees is free on the host.
    Data,
    /// A way for large contents between the guest and a process of the host: nothing has to last.
    Exchange,
}

/// One block device.
#[derive(Debug)]
pub struct DiskSpec {
    /// The open image file (raw format, always: a guest-written header is never interpreted).
    pub file: OwnedFd,
    /// What it is for.
    pub usage: DiskUse,
    /// Serial number by which the guest finds it.
    pub serial: String,
}

/// Starts VMs.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Starts one and returns when its guest runs its first instruction. On an error nothing is left behind.
    fn start(&self, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>>;
    /// Everything but the content of files that a saved VM of this specification depends on, a fact each: a VM can be
    /// resumed only where all of them are the same. An error says why VMs cannot be saved here.
    fn fingerprint(&self, spec: &VmSpec) -> Result<Vec<Vec<u8>>, StartError>;
    /// Starts one where a saved one stopped, and returns when its guest runs again. The specification must be that of
    /// the saved VM but for the content of its disks, its logs, and its memory, which is the snapshot's. On an error
    /// nothing is left behind.
    fn resume(
        &self,
        spec: VmSpec,
        snapshot: Snapshot,
    ) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>>;
}

/// A running VM. Dropping it kills it.
pub trait Vm: fmt::Debug + Send {
    /// The byte streams of the VM's ports by name; each can be taken once.
    fn take_ports(&mut self) -> BTreeMap<String, tokio::net::UnixStream>;
    /// Process number of the VMM.
    fn pid(&self) -> u32;
    /// Waits until the VM has ended, and says how. May be called again afterwards. Cancel safe.
    fn wait(&mut self) -> BoxFuture<'_, VmEnd>;
    /// Stops the guest for good and writes everything of the VM but its memory to `state`. Only a VM whose memory is a
    /// file can be saved. Afterwards it can only be ended.
    fn save(&mut self, state: OwnedFd) -> BoxFuture<'_, Result<(), SaveError>>;
    /// Ends it at once.
    fn kill(&mut self);
    /// What the VMM's jail does not hold on this machine, a phrase each.
    fn weaknesses(&self) -> &[String] {
        &[]
    }
}

/// A boxed future, as trait objects need.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEnd {
    /// The guest powered off.
    PoweredOff,
    /// The guest's kernel panicked or reset.
    GuestCrashed,
    /// The VMM itself ended: a signal, or an error with the last line that it said.
    VmmFailed {
        /// One sentence.
        reason: String,
    },
}

/// Why a VM could not be started: one variant a step. `said` is what the VMM last said, empty if nothing.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The specification asks for something that no VM can have.
    #[error("the virtual machine cannot have {what}")]
    Spec {
        /// What is asked for and why it cannot be, as a phrase.
        what: String,
    },
    /// A file of the VM cannot be opened.
    #[error("the {what} {} cannot be opened", path.display())]
    File {
        /// Which file it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Descriptors, memory or threads ran out.
    #[error("no resources for the virtual machine")]
    Resources {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The VMM's process could not be started or jailed.
    #[error("the virtual machine monitor cannot be started")]
    Launch {
        /// At which step and why.
        #[source]
        source: LaunchError,
    },
    /// The VMM ended before the guest ran.
    #[error("the virtual machine monitor ended at once ({status}){}", Said(said))]
    Ended {
        /// How it ended.
        status: String,
        /// Its last words.
        said: String,
    },
    /// The VMM refused a command or did not keep to its protocol.
    #[error("the virtual machine monitor cannot be controlled{}", Said(said))]
    Control {
        /// What went wrong.
        #[source]
        source: ControlError,
        /// Its last words.
        said: String,
    },
    /// The VMM did not get the guest running in time.
    #[error("the virtual machine monitor was not ready within {} s{}", after.as_secs(), Said(said))]
    TimedOut {
        /// The limit.
        after: Duration,
        /// Its last words.
        said: String,
    },
}

/// Why a VM could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Its memory is not a file.
    #[error("the virtual machine's memory is not in a file")]
    Memory,
    /// The VMM refused a command or did not keep to its protocol.
    #[error("the virtual machine monitor cannot be controlled")]
    Control(#[from] ControlError),
    /// The VMM could not write the state.
    #[error("the state of the virtual machine cannot be written: {reason}")]
    Write {
        /// What the VMM said.
        reason: String,
    },
    /// It did not get done.
    #[error("the virtual machine was not saved within {} s", after.as_secs())]
    TimedOut {
        /// The limit.
        after: Duration,
    },
}

/// Adds the VMM's last words to a message, if there are any.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}
