//! Users, capabilities, `no_new_privs`, core dumps. Everything here is async-signal-safe.

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, set_dumpable_behavior, setrlimit,
};
pub use rustix::thread::CapabilitySet as Capabilities;
use rustix::thread::{
    CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// A user and group to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

impl Identity {
    /// `nobody`, whom no file should belong to.
    pub const NOBODY: Self = Self { uid: 65534, gid: 65534 };

    /// Says whether the calling process may change to another user at all.
    pub fn can_be_changed() -> bool {
        rustix::process::geteuid().is_root()
            && capabilities(None).is_ok_and(|sets| {
                sets.effective.contains(Capabilities::SETUID | Capabilities::SETGID)
            })
    }
}

/// Takes everything but `keep` out of the bounding set, where the process may.
pub(super) fn lower_bounding_set(keep: Capabilities) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = Capabilities::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // EPERM: an ordinary user has nothing to gain from the bounding set once `no_new_privs` is on.
            // EINVAL: past the last capability of this kernel.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Becomes this user and group, with no other groups, for ever.
pub(super) fn become_identity(identity: Identity) -> io::Result<()> {
    set_thread_groups(&[])?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Keeps only `keep` of what the process has.
pub(super) fn drop_capabilities(keep: Capabilities) -> io::Result<()> {
    match clear_ambient_capability_set() {
        // EINVAL: a kernel before 4.3 has none.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let has = capabilities(None)?;
    let kept = has.permitted & keep;
    // Inheritable, so that a root process that keeps some has them after `exec`, and no others.
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: kept & has.inheritable },
    )?;
    Ok(())
}

/// Set-id bits and file capabilities mean nothing from here on.
pub(super) fn forbid_new() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// No core dump, no `ptrace` by the same user. Does not survive `exec`, unlike the limit.
pub(super) fn forbid_dumps() -> io::Result<()> {
    forbid_core_files()?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// No core file, for this process and what it becomes.
pub(crate) fn forbid_core_files() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}
