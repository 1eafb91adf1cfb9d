//! Processes: fork, exec, signals. For the container's supervisor, which has one thread.

#![expect(unsafe_code, reason = "fork, execve and signal set-up have no safe wrapper")]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Highest signal number of Linux.
pub(crate) const SIGNAL_MAX: i32 = 64;

/// Forks. `None` in the child.
///
/// Only for a process with one thread: in any other, a lock that another thread held stays locked in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller has one thread (see above), so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Forks into a cgroup, given by its directory. `None` in the child.
///
/// A process that moves itself makes the kernel wait until every CPU has taken note (an RCU grace period, 16 ms where it
/// was measured), and for a moment it runs outside. Only for a process with one thread, as [`fork`].
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    /// `CLONE_INTO_CGROUP`; libc's constant has a type that is too small for it.
    const INTO_CGROUP: u64 = 1 << 33;
    // `struct clone_args` of clone(2): eleven words, of which these three are used.
    let mut arguments = [0_u64; 11];
    let [flags, _, _, _, exit_signal, .., directory] = &mut arguments;
    *flags = INTO_CGROUP;
    *exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    *directory = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM the child has a copy of this memory, which is consistent since there is one thread; the
    // kernel only reads the arguments, whose size is told. What the C library keeps about threads is not used after.
    match unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

/// Gives this process namespaces of its own.
///
/// Only for a process with one thread, and not for its descriptor table.
pub(crate) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: unsafe only for `UnshareFlags::FILES`, which no caller asks for.
    unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?;
    Ok(())
}

/// Sends a signal to every process of this PID namespace but the caller, which is its PID 1.
pub(crate) fn signal_all(signal: i32) -> io::Result<()> {
    // SAFETY: touches no memory of ours.
    if unsafe { libc::kill(-1, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the program. Returns only when that failed.
pub(crate) fn execve(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all three point to NUL-terminated strings, the lists end with a null pointer, and everything they point to
    // is borrowed until the call returns.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default action and blocks none, as a fresh program expects.
pub(crate) fn default_signals() {
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: the default action runs no code of ours. A number that may not be changed gives an error, which
        // changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let empty = signal_set(&[]);
    // SAFETY: the set is initialised; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut()) };
}

/// Blocks `SIGCHLD` and gives a non-blocking descriptor that becomes readable when a child ended.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised; the old one is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the set is initialised, and -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets every descriptor from 3 on end at the next `execve`.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: only sets a flag on descriptors.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process at once, without running anything of the parent's that a fork copied.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was initialised above; an unknown number is an error and changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}
