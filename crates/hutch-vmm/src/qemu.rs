//! QEMU behind the [`Vmm`] trait.
//!
//! ```text
//!   discover    which program, which version
//!   arguments   specification → command line, pure
//!   clock       what an emulated processor must be told
//!   files       what the VM opens, opened by us
//!   confine     what the process may still do
//!   qmp         the control protocol
//!   fingerprint what a saved VM depends on
//!   process     start, resume, watch, end
//!   save        a running VM into files
//!   stub        the probe's guest
//! ```

mod arguments;
mod clock;
mod confine;
mod discover;
mod files;
mod fingerprint;
#[cfg(test)]
mod guest;
mod process;
mod qmp;
mod save;
mod stub;

use std::path::{Path, PathBuf};

pub use self::discover::{DiscoverError, Version, VersionError};
pub use self::qmp::ControlError;
pub(crate) use self::stub::StubError;
use crate::{Accelerator, BoxFuture, Snapshot, StartError, Vm, VmSpec, Vmm};

/// A QEMU of this machine.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: Version,
}

impl Qemu {
    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }
}

/// From here on translated code is found again at whatever address it runs (`CF_PCREL`, target/i386).
const FINDS_MOVED_CODE: Version = Version { major: 8, minor: 0 };

/// Words for the guest's kernel that depend on this machine.
fn kernel_words(qemu: &Qemu, accelerator: Accelerator) -> Vec<String> {
    let mut words = clock::kernel_words(accelerator);
    if accelerator == Accelerator::Tcg && qemu.version < FINDS_MOVED_CODE {
        // Each program start would translate the loader and all libraries again, at an address of its own.
        words.push("norandmaps".to_owned());
    }
    words
}

impl Vmm for Qemu {
    fn start(&self, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>> {
        Box::pin(async move { Ok(Box::new(process::start(self, spec).await?) as Box<dyn Vm>) })
    }

    fn fingerprint(&self, spec: &VmSpec) -> Result<Vec<Vec<u8>>, StartError> {
        fingerprint::facts(self, spec)
    }

    fn resume(
        &self,
        spec: VmSpec,
        snapshot: Snapshot,
    ) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>> {
        Box::pin(async move {
            Ok(Box::new(process::resume(self, spec, snapshot).await?) as Box<dyn Vm>)
        })
    }
}
