//! What the QEMU process may still do: read its own program and libraries, and use what it inherited.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hutch_sys::jail::{FileAccess, Identity, Jail, SystemCalls, networking, privileged};

use crate::Accelerator;

/// Programs and libraries of the system; the dynamic loader is among them and must be executable.
const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];
/// Firmware, and the list of libraries. Nothing here is anyone's secret.
const DATA: [&str; 5] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/local/share/qemu",
    "/usr/share/AAVMF",
    "/etc/ld.so.cache",
];
const KVM: &str = "/dev/kvm";

/// Who QEMU runs as: not root when we are root, if the accelerator can still be reached.
pub(super) fn identity(accelerator: Accelerator) -> Option<Identity> {
    if !Identity::can_be_changed() {
        return None;
    }
    match accelerator {
        Accelerator::Tcg => Some(Identity::NOBODY),
        Accelerator::Kvm => {
            let device = std::fs::metadata(KVM).ok()?;
            let others = device.mode() & 0o006 == 0o006;
            let group = device.mode() & 0o060 == 0o060;
            (others || group).then_some(Identity { gid: device.gid(), ..Identity::NOBODY })
        }
    }
}

/// A file that QEMU opens again by `/proc/self/fd`.
#[derive(Debug)]
pub(super) struct Reopened {
    pub(super) file: OwnedFd,
    pub(super) access: FileAccess,
}

/// The jail for QEMU, with the open files that it opens again.
pub(super) fn jail(
    program: &Path,
    accelerator: Accelerator,
    identity: Option<Identity>,
    reopened: Vec<Reopened>,
) -> Jail {
    // QEMU's own filter denies spawning, changing user and scheduling; this one adds every network and what only root does.
    let denied = networking().into_iter().chain(privileged()).collect();
    let mut jail = Jail::new()
        .allow_path(program, FileAccess::Execute)
        .system_calls(SystemCalls::AllBut(denied));
    for library in LIBRARIES {
        jail = jail.allow_path_if_present(library, FileAccess::Execute);
    }
    for data in DATA {
        jail = jail.allow_path_if_present(data, FileAccess::Read);
    }
    // QEMU tries its file locks there; without it, it would silently do without them.
    jail = jail.allow_path("/dev/null", FileAccess::Device);
    if accelerator == Accelerator::Kvm {
        jail = jail.allow_path_if_present(KVM, FileAccess::Device);
    }
    for Reopened { file, access } in reopened {
        // A file in memory has no place in the file system: Landlock neither takes a rule for it nor restricts it.
        let has_a_name = file
            .try_clone()
            .map(File::from)
            .and_then(|file| file.metadata())
            .is_ok_and(|of| of.nlink() > 0);
        if has_a_name {
            jail = jail.allow_open(file, access);
        }
    }
    if let Some(identity) = identity {
        jail = jail.run_as(identity);
    }
    jail
}
