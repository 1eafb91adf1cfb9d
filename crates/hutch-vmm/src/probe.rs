//! Does hardware virtualisation really run a guest on this machine?
//!
//! A `/dev/kvm` that opens proves nothing: some nested hosts create VMs and virtual CPUs and then hang or abort a kernel in
//! its first instructions. So the probe runs a guest of its own, [`crate::qemu`]'s stub, which does what a kernel does
//! first, within a time limit. The answer is kept in a file until the machine boots again or anything of it changes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Accelerator;
use crate::qemu::{Qemu, StubError};

/// Said to whoever gets an emulated VM without having asked for one.
pub const EMULATING: &str = "no usable hardware virtualisation: emulating, slower";

/// The version of the cache file; another one is as good as none.
const FORMAT_VERSION: u32 = 1;
/// The cache file has about 300 bytes.
const CACHE_MAX: u64 = 16 * 1024;
/// A machine that could not may be able to later, without a boot: another hypervisor has ended, a module was loaded.
const UNUSABLE_FOR: Duration = Duration::from_secs(60 * 60);

const DEVICE: &str = "/dev/kvm";

/// What this machine offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum AcceleratorState {
    /// It ran a guest.
    Usable,
    /// There is none.
    Absent,
    /// There is, but this user may not use it.
    NoPermission,
    /// There is, but it does not run a guest.
    Unusable {
        /// What happened, as a phrase.
        reason: String,
    },
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorRequest {
    /// Hardware where it runs a guest, else emulation.
    #[default]
    Auto,
    /// Hardware or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// One line to say to the user.
    pub notice: Option<&'static str>,
}

/// Why hardware virtualisation, which was asked for, cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// No device.
    #[error("this machine has no hardware virtualisation ({DEVICE} is missing)")]
    Absent,
    /// Not for this user.
    #[error(
        "{DEVICE} may not be used by this user (usually: sudo usermod -aG kvm $USER, then log in again)"
    )]
    NoPermission,
    /// It does not run a guest.
    #[error("hardware virtualisation does not run a guest on this machine: {reason}")]
    Unusable {
        /// What happened.
        reason: String,
    },
}

/// Finds out, from the cache file if it still holds. Takes up to some seconds otherwise, and writes the file.
pub async fn probe(qemu: &Qemu, cache: &Path) -> AcceleratorState {
    // Opened each time: it costs nothing, and permissions change.
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_device) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return AcceleratorState::NoPermission;
        }
        Err(_) => return AcceleratorState::Absent,
    }
    let machine = Machine::of(qemu);
    if let Some(state) =
        Cached::read(cache).and_then(|cached| cached.holds(&machine, SystemTime::now()))
    {
        return state;
    }
    let state = match qemu.run_stub(Accelerator::Kvm).await {
        Ok(()) => AcceleratorState::Usable,
        Err(error @ (StubError::Guest { .. } | StubError::Hung)) => {
            AcceleratorState::Unusable { reason: error.to_string() }
        }
        Err(error) => {
            // Not the machine's fault as far as we know: no lasting verdict.
            return AcceleratorState::Unusable { reason: with_sources(&error) };
        }
    };
    tracing::info!(?state, "hardware virtualisation was probed");
    Cached {
        format_version: FORMAT_VERSION,
        machine,
        at: seconds(SystemTime::now()),
        verdict: state.clone(),
    }
    .write(cache);
    state
}

/// Decides; probes only if the answer matters.
pub async fn choose(
    request: AcceleratorRequest,
    qemu: &Qemu,
    cache: &Path,
) -> Result<Choice, ChooseError> {
    match request {
        AcceleratorRequest::Tcg => Ok(Choice { accelerator: Accelerator::Tcg, notice: None }),
        _ => decide(request, probe(qemu, cache).await),
    }
}

fn decide(request: AcceleratorRequest, state: AcceleratorState) -> Result<Choice, ChooseError> {
    let tcg = |notice| Ok(Choice { accelerator: Accelerator::Tcg, notice });
    match (request, state) {
        (AcceleratorRequest::Tcg, _) => tcg(None),
        (_, AcceleratorState::Usable) => Ok(Choice { accelerator: Accelerator::Kvm, notice: None }),
        (AcceleratorRequest::Auto, _) => tcg(Some(EMULATING)),
        (AcceleratorRequest::Kvm, AcceleratorState::Absent) => Err(ChooseError::Absent),
        (AcceleratorRequest::Kvm, AcceleratorState::NoPermission) => Err(ChooseError::NoPermission),
        (AcceleratorRequest::Kvm, AcceleratorState::Unusable { reason }) => {
            Err(ChooseError::Unusable { reason })
        }
    }
}

/// What the verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    boot_id: String,
    kernel: String,
    program: String,
    version: String,
}

impl Machine {
    fn of(qemu: &Qemu) -> Self {
        // Without them the verdict holds as long as the rest does.
        let kernel_says = |name: &str| {
            let said =
                std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            said.trim().to_owned()
        };
        Self {
            boot_id: kernel_says("random/boot_id"),
            kernel: format!("{} {}", kernel_says("osrelease"), kernel_says("version")),
            program: qemu.program().to_string_lossy().into_owned(),
            version: qemu.version().to_string(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    format_version: u32,
    machine: Machine,
    /// Seconds since 1970.
    at: u64,
    verdict: AcceleratorState,
}

impl Cached {
    /// Whatever is wrong with the file, the machine can be asked again.
    fn read(path: &Path) -> Option<Self> {
        let content = hutch_store::atomic::read(path, CACHE_MAX).ok()?;
        let cached: Self = serde_json::from_slice(&content).ok()?;
        (cached.format_version == FORMAT_VERSION).then_some(cached)
    }

    fn holds(self, machine: &Machine, now: SystemTime) -> Option<AcceleratorState> {
        let age = seconds(now).checked_sub(self.at)?;
        let fresh = match self.verdict {
            AcceleratorState::Usable => true,
            AcceleratorState::Unusable { .. } => age < UNUSABLE_FOR.as_secs(),
            AcceleratorState::Absent | AcceleratorState::NoPermission => false,
        };
        (fresh && self.machine == *machine).then_some(self.verdict)
    }

    fn write(&self, path: &Path) {
        let written = serde_json::to_vec_pretty(self).map_err(|error| error.to_string()).and_then(
            |content| hutch_store::atomic::write(path, &content).map_err(|error| error.to_string()),
        );
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), error, "the verdict on the accelerator is not kept");
        }
    }
}

/// An error and what caused it, in one phrase.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    std::iter::once(error).chain(causes).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
