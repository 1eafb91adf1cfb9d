//! From a resolved [`VmSpec`] to a running virtual machine, and its certain end.
//!
//! Nothing outside this crate knows that the VMM is QEMU.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;

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

/// The serial log stops growing here.
pub const SERIAL_LOG_MAX: u64 = 16 * 1024 * 1024;

/// One block device.
#[derive(Debug)]
pub struct DiskSpec {
    /// The open image file (raw format, always: a guest-written header is never interpreted).
    pub file: OwnedFd,
    /// Not writable by the guest.
    pub read_only: bool,
    /// Serial number by which the guest finds it.
    pub serial: String,
}

/// Starts VMs.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Starts one and returns when its guest runs its first instruction. On an error nothing is left behind.
    fn start(&self, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>>;
}

/// A running VM. Dropping it kills it.
pub trait Vm: fmt::Debug + Send {
    /// The byte streams of the VM's ports by name; each can be taken once.
    fn take_ports(&mut self) -> BTreeMap<String, tokio::net::UnixStream>;
    /// Process number of the VMM.
    fn pid(&self) -> u32;
    /// Waits until the VM has ended, and says how. May be called again afterwards. Cancel safe.
    fn wait(&mut self) -> BoxFuture<'_, VmEnd>;
    /// Ends it at once.
    fn kill(&mut self);
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

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// To be split into one variant a step.
    #[error("the virtual machine could not be started: {0}")]
    Other(String),
}
