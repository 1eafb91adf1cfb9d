//! What a session's process does between fork and exec, in the container.

use std::ffi::{CStr, CString, OsStr};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use hutch_wire::guest::{Bytes, ExecFailure};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::process::{Resource, Rlimit};

use super::capabilities;
use super::protocol::Launch;
use super::users::{Database, User};
use crate::container::SpawnError;
use crate::sys::process;

/// Where programs are looked for when nothing says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of a session, soft and hard: the soft one is small because some programs close them one by one.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// A session ready to be forked: nothing in it can fail for want of data.
pub(super) struct Prepared {
    pub(super) user: User,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    search: Vec<u8>,
    /// Where the program starts; `None` = the user's home, or `/` where there is none.
    directory: Option<Vec<u8>>,
    privileged: bool,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) stdio: [Option<OwnedFd>; 3],
}

/// Resolves a launch in the container: user, environment, program's name.
pub(super) fn prepare(launch: Launch, stdio: [Option<OwnedFd>; 3]) -> Result<Prepared, SpawnError> {
    let invalid = |message: String| SpawnError { kind: ExecFailure::Invalid, message };
    let user = Database::read(Path::new("/"))
        .find(launch.spec.user.as_deref().unwrap_or(&launch.user))
        .map_err(invalid)?;
    if launch.spec.argv.first().is_none_or(|program| program.is_empty()) {
        return Err(invalid("no program was named".to_owned()));
    }
    let mut environment = Environment::default();
    for (name, value) in [
        ("PATH", PATH),
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("SHELL", user.shell.as_str()),
    ] {
        environment.set(name.as_bytes(), value.as_bytes()).map_err(invalid)?;
    }
    if launch.spec.tty.is_some() {
        // The least that every terminal can do; the host names its own where it knows it.
        environment.set(b"TERM", b"xterm").map_err(invalid)?;
    }
    for (name, value) in launch.environment.iter().chain(&launch.spec.environment) {
        environment.set(name, value).map_err(invalid)?;
    }
    let directory = launch.spec.directory.or(launch.directory).map(Bytes::into_vec);
    let arguments = launch
        .spec
        .argv
        .into_iter()
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("an argument contains a NUL byte".to_owned()))?;
    Ok(Prepared {
        search: environment.value(b"PATH").unwrap_or(PATH.as_bytes()).to_vec(),
        environment: environment.strings().map_err(invalid)?,
        user,
        arguments,
        directory,
        privileged: launch.spec.privileged,
        terminal: None,
        stdio,
    })
}

/// Variables in the order they were first set; a later value replaces an earlier one.
#[derive(Default)]
struct Environment(Vec<(Vec<u8>, Vec<u8>)>);

impl Environment {
    fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if name.is_empty() || name.contains(&b'=') {
            let name = String::from_utf8_lossy(name);
            return Err(format!("`{}` is no name of a variable", name.escape_debug()));
        }
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
        Ok(())
    }

    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    fn strings(&self) -> Result<Vec<CString>, String> {
        self.0
            .iter()
            .map(|(name, value)| CString::new([name, b"=".as_slice(), value].concat()))
            .collect::<Result<_, _>>()
            .map_err(|_| "a variable contains a NUL byte".to_owned())
    }
}

/// Runs in the forked child. Returns only when the program could not be started.
pub(super) fn run(prepared: &Prepared) -> SpawnError {
    match set_up(prepared) {
        Ok(()) => execute(prepared),
        Err(error) => error,
    }
}

fn step<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, SpawnError> {
    result.map_err(|error| SpawnError {
        kind: ExecFailure::Invalid,
        message: format!("cannot {what}: {error}"),
    })
}

fn set_up(prepared: &Prepared) -> Result<(), SpawnError> {
    step("start a session", rustix::process::setsid())?;
    standard_streams(prepared)?;
    step("close descriptors", process::close_on_exec_from_3())?;
    process::default_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let (soft, hard) = OPEN_FILES;
    for (resource, soft, hard) in
        [(Resource::Nofile, Some(soft), Some(hard)), (Resource::Core, Some(0), None)]
    {
        // A limit of the kernel below ours is no reason to refuse.
        rustix::process::setrlimit(resource, Rlimit { current: soft, maximum: hard }).ok();
    }
    // The supervisor is protected from the out-of-memory killer, sessions are not.
    step("leave the supervisor's protection", write_file("/proc/self/oom_score_adj", b"0"))?;
    become_user(&prepared.user, prepared.privileged)?;
    let Some(directory) = &prepared.directory else {
        let home = rustix::process::chdir(prepared.user.home.as_str());
        return step("use any directory", home.or_else(|_| rustix::process::chdir("/")));
    };
    rustix::process::chdir(directory.as_slice()).map_err(|error| SpawnError {
        kind: ExecFailure::Invalid,
        message: format!(
            "cannot use the working directory `{}`: {error}",
            String::from_utf8_lossy(directory).escape_debug()
        ),
    })
}

fn standard_streams(prepared: &Prepared) -> Result<(), SpawnError> {
    let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = step("open /dev/null", null)?;
    let stream = |number: usize| match &prepared.terminal {
        Some(terminal) => terminal.as_fd(),
        None => prepared.stdio[number].as_ref().map_or_else(|| null.as_fd(), AsFd::as_fd),
    };
    if let Some(terminal) = &prepared.terminal {
        step("take the terminal", rustix::process::ioctl_tiocsctty(terminal))?;
    }
    step("set standard input", rustix::stdio::dup2_stdin(stream(0)))?;
    step("set standard output", rustix::stdio::dup2_stdout(stream(1)))?;
    step("set standard error", rustix::stdio::dup2_stderr(stream(2)))
}

fn become_user(user: &User, privileged: bool) -> Result<(), SpawnError> {
    if !privileged {
        for capability in rustix::thread::CapabilitySet::all().iter() {
            if !capabilities::USUAL.contains(capability) {
                // One that this kernel does not know cannot be had anyway.
                rustix::thread::remove_capability_from_bounding_set(capability).ok();
            }
        }
    }
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    step("set groups", rustix::thread::set_thread_groups(&groups))?;
    step("set the group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    step("set the user", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    // Root keeps what it had until exec, which gives it the bounding set; nothing is inherited past it.
    Ok(())
}

fn execute(prepared: &Prepared) -> SpawnError {
    let Some(program) = prepared.arguments.first() else {
        return SpawnError {
            kind: ExecFailure::Invalid,
            message: "no program was named".to_owned(),
        };
    };
    let name = program.to_bytes();
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    let mut missing_interpreter = None;
    if name.contains(&b'/') {
        error = process::execve(program, &prepared.arguments, &prepared.environment);
        missing_interpreter = is_there(program, &error).then(|| program.clone());
    } else {
        for directory in prepared.search.split(|byte| *byte == b':') {
            let directory = if directory.is_empty() { b"." } else { directory };
            let Ok(path) = CString::new([directory, b"/", name].concat()) else { continue };
            let failed = process::execve(&path, &prepared.arguments, &prepared.environment);
            if is_there(&path, &failed) {
                missing_interpreter = Some(path);
                break;
            }
            // As shells do: a program that is there but may not be run is told before one that is missing.
            if failed.kind() != io::ErrorKind::NotFound
                && failed.raw_os_error() != Some(libc::ENOTDIR)
            {
                error = failed;
                if error.kind() != io::ErrorKind::PermissionDenied {
                    break;
                }
            }
        }
    }
    let shown = OsStr::from_bytes(name).to_string_lossy();
    let shown = shown.escape_debug();
    if let Some(file) = missing_interpreter {
        return SpawnError {
            kind: ExecFailure::NotExecutable,
            message: format!(
                "`{}` cannot be run: the interpreter that it names is not in the sandbox",
                file.to_string_lossy().escape_debug()
            ),
        };
    }
    if error.kind() == io::ErrorKind::NotFound {
        return SpawnError {
            kind: ExecFailure::NotFound,
            message: format!("`{shown}`: no such program in the sandbox"),
        };
    }
    SpawnError {
        kind: ExecFailure::NotExecutable,
        message: format!("`{shown}` cannot be run: {error}"),
    }
}

/// Says whether a program that was "not found" is there: then its interpreter or loader is what is missing.
fn is_there(program: &CStr, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        && rustix::fs::stat(program)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file())
}

fn write_file(path: &str, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}
