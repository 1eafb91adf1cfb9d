//! The system-call filter (seccomp, through `seccompiler`): one refuse list or one allow list.
//!
//! A call of another architecture's table kills the process, whatever the list says.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::JailError;
use super::report::{JailReport, Outcome, Stage};

/// Which system calls a jailed process may make. Numbers are `libc::SYS_…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemCalls {
    /// All but these, which fail with `EPERM`.
    AllBut(Vec<i64>),
    /// Only these; any other kills the process.
    Only(Vec<i64>),
}

/// Making sockets of any kind and giving them a peer: the network, whatever the protocol.
pub fn networking() -> Vec<i64> {
    vec![
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
    ]
}

/// Calls that change the machine or other processes and that no worker of ours has a use for.
pub fn privileged() -> Vec<i64> {
    vec![
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_chroot,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kcmp,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_personality,
        libc::SYS_pidfd_getfd,
        libc::SYS_pivot_root,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_setdomainname,
        libc::SYS_sethostname,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
        libc::SYS_vhangup,
    ]
}

impl SystemCalls {
    /// Compiles the list; none on an architecture that the filter does not know, which the report says.
    pub(super) fn compile(self, report: &mut JailReport) -> Result<Option<BpfProgram>, JailError> {
        let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
            let reason = format!("no filter for the architecture {}", std::env::consts::ARCH);
            report.add(Stage::SystemCalls, Outcome::Unavailable { reason });
            return Ok(None);
        };
        let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let (calls, others, listed) = match self {
            Self::AllBut(calls) => (calls, SeccompAction::Allow, refuse),
            Self::Only(calls) => (calls, SeccompAction::KillProcess, SeccompAction::Allow),
        };
        let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
        let filter = SeccompFilter::new(rules, others, listed, architecture)
            .and_then(BpfProgram::try_from)
            .map_err(|source| JailError::Filter { source })?;
        report.add(Stage::SystemCalls, Outcome::Applied);
        Ok(Some(filter))
    }
}

/// Has these system calls fail with `EPERM` in every thread of the calling process, those that run already included: for
/// a process that gives something up long after its start. Takes new privileges away with it.
///
/// Only a filter can do so: Landlock reaches the threads that run already from ABI 8 on alone.
pub fn refuse_in_every_thread(calls: Vec<i64>) -> Result<JailReport, JailError> {
    let mut report = JailReport::default();
    if let Some(filter) = SystemCalls::AllBut(calls).compile(&mut report)? {
        outcome(seccompiler::apply_filter_all_threads(&filter))
            .map_err(|source| JailError::Enter { stage: Stage::SystemCalls, source })?;
    }
    Ok(report)
}

/// Puts the filter on the calling thread. Async-signal-safe.
pub(super) fn apply(filter: &BpfProgram) -> io::Result<()> {
    outcome(seccompiler::apply_filter(filter))
}

fn outcome(applied: Result<(), seccompiler::Error>) -> io::Result<()> {
    match applied {
        Ok(()) => Ok(()),
        Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}
