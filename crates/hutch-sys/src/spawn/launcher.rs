//! What happens around `fork`: the steps in the child, and the one thread that forks.
#![expect(
    unsafe_code,
    reason = "code between fork and exec, and the system call that marks descriptors"
)]

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, getppid, setrlimit, setsid};

use super::Stage;
use crate::jail::Prepared;

/// Registers the steps that come before the chosen descriptors are put in place.
pub(super) fn before_exec_first(
    command: &mut Command,
    session: bool,
    limits: Vec<(Resource, u64)>,
) {
    let steps = move || -> io::Result<()> {
        if session {
            setsid()?;
        }
        for &(resource, value) in &limits {
            setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?;
        }
        close_on_exec_all()
    };
    // SAFETY: the closure makes system calls on values made before the fork and neither allocates nor takes a lock.
    unsafe { command.pre_exec(steps) };
}

/// Registers the steps that come after. `told` receives the number of the jail's stage that failed.
pub(super) fn before_exec_last(
    command: &mut Command,
    jail: Option<Prepared>,
    dies_with_us: bool,
    told: PipeWriter,
) {
    let parent = getpid();
    let steps = move || -> io::Result<()> {
        if let Some(jail) = &jail {
            let mut stage = Stage::Identity;
            jail.enter(&mut stage).inspect_err(|_| {
                // If the pipe is broken, the failure is told without its stage.
                let _unsaid: io::Result<usize> = (&told).write(&[stage.number()]);
            })?;
        }
        if dies_with_us { die_with(parent) } else { Ok(()) }
    };
    // SAFETY: the closure makes system calls on values made before the fork and neither allocates nor takes a lock.
    unsafe { command.pre_exec(steps) };
}

/// The stage that a failed child told, if any. Call only once the child and the command are gone.
pub(super) fn stage(mut failed_stage: PipeReader) -> Option<Stage> {
    let mut number = [0];
    match failed_stage.read(&mut number) {
        Ok(1) => Stage::from_number(number[0]),
        _ => None,
    }
}

/// Asks for `SIGKILL` when the parent ends, and ends at once if it has ended before we asked.
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::CHILD.into()) }
}

/// Marks every descriptor but the standard ones to be closed by `exec`, whoever opened it and however.
fn close_on_exec_all() -> io::Result<()> {
    let first = 3;
    // SAFETY: the call takes three numbers and reads no memory; marking descriptors closes none of them now.
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if marked == 0 {
        return Ok(());
    }
    // Before Linux 5.11. A descriptor above the limit can exist only if the limit was lowered later.
    let limit =
        rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).min(1 << 20);
    for descriptor in i64::from(first)..i64::try_from(limit).unwrap_or(1 << 20) {
        // SAFETY: setting a flag of a descriptor number reads no memory; a number that is not open gives EBADF.
        let _not_open: i64 =
            unsafe { libc::syscall(libc::SYS_fcntl, descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts the command from a thread that lives as long as the process.
///
/// The death signal of a child comes when the *thread* that forked it ends (prctl(2)). Threads of a pool end when they
/// are idle, which would kill a VM at random; this one never does.
pub(super) fn spawn(mut command: Command) -> io::Result<Child> {
    static LAUNCHER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let gone = || io::Error::other("the launching thread has ended");
    let launcher = LAUNCHER.get_or_init(|| {
        let (jobs, received) = mpsc::channel::<Job>();
        let run = move || received.into_iter().for_each(|job| job());
        // Without a thread the receiver is dropped here, and each request to launch says so.
        let _thread = std::thread::Builder::new().name("launcher".to_owned()).spawn(run);
        jobs
    });
    let (answer, answered) = mpsc::sync_channel(1);
    let job = move || {
        let child = command.spawn();
        // The command holds the write end of the stage pipe, whose reader waits for the end.
        drop(command);
        // Nobody waits for an answer any more: impossible, the caller blocks on it.
        let _unheard = answer.send(child);
    };
    launcher.send(Box::new(job)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
