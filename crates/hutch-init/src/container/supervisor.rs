//! PID 1 of the container: starts sessions and reaps everything, in one thread.
//!
//! ```text
//!   launcher: joins the cgroup ─ unshare ─ fork ─ ends
//!   supervisor:                            └─ Event::Prepared ─ Enter ─ Event::Ready ─ loop { … }
//! ```
//!
//! The loop takes a request, a child's end, or a child's report. A VM may be saved while the supervisor waits for
//! [`Enter`]: until then it knows nothing of a sandbox.
//!
//! A forked session reports over a pipe that closes at its exec: nothing came = it runs; a message came = it could not
//! be started. Reports are awaited in the loop, so that one slow exec does not hold up the others.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use hutch_wire::guest::{ExecFailure, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::UnshareFlags;

use super::protocol::{self, Enter, Event, Launch, Request};
use super::users::Database;
use super::{Outcome, SpawnError, cgroup, child, isolate};
use crate::engine;
use crate::sys::process;

/// Longest report of a session that could not be started.
const REPORT_MAX: u64 = 8 * 1024;
/// Longest launch: the kernel's own bound on arguments and environment is below it.
const LAUNCH_MAX: u64 = 8 * 1024 * 1024;

/// Runs as launcher, then as supervisor. Descriptor 0 is the socket to init.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let [cgroup] = arguments else { return ExitCode::from(2) };
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::from(2);
    };
    let started =
        launch(Path::new(cgroup)).map_err(|error| format!("cannot make namespaces: {error}"));
    match started {
        // The launcher's work is done; the supervisor is now a child of init.
        Ok(Some(_)) => return ExitCode::SUCCESS,
        Ok(None) => {}
        Err(reason) => return broken(&socket, reason),
    }
    let user = match enter(&socket) {
        Ok(Some(user)) => user,
        // Init is gone before the container was wanted.
        Ok(None) => return ExitCode::SUCCESS,
        Err(reason) => return broken(&socket, reason),
    };
    let engine = engine_socket(&user).ok();
    match Supervisor::new(socket, engine.as_ref()).and_then(Supervisor::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Makes what every container has, waits until it is known what this one is, and becomes that. Gives its user.
fn enter(socket: &OwnedFd) -> Result<Option<String>, isolate::Broken> {
    let lost = |error: io::Error| format!("the container cannot be asked for: {error}");
    // Outside, /proc belongs to init; the cgroup file system is reached through it before the root changes.
    let parts = isolate::Parts::make()?;
    cgroup::hand_on_controllers(&parts.cgroup());
    protocol::send(socket, &Event::Prepared, &[]).map_err(lost)?;
    let Some((Enter { root, hostname, user }, _)) = protocol::receive(socket).map_err(lost)? else {
        return Ok(None);
    };
    process::unshare(UnshareFlags::NEWNS)
        .map_err(|error| format!("cannot make a mount namespace: {error}"))?;
    parts.enter(Path::new(OsStr::from_bytes(root.as_slice())), &hostname)?;
    Ok(Some(user))
}

/// Listens where clients look for a Docker engine. It is the sandbox's user's, and the group's of that name if there is one.
fn engine_socket(user: &str) -> io::Result<OwnedFd> {
    let listener = UnixListener::bind(engine::SOCKET)?;
    let users = Database::read(Path::new("/"));
    let uid = users.find(user).map_or(0, |user| user.uid);
    std::os::unix::fs::chown(engine::SOCKET, Some(uid), users.group(engine::GROUP))?;
    fs::set_permissions(engine::SOCKET, Permissions::from_mode(0o660))?;
    Ok(listener.into())
}

fn broken(socket: &OwnedFd, reason: String) -> ExitCode {
    // Nobody left to tell is no reason to do anything else.
    protocol::send(socket, &Event::Broken { reason }, &[]).ok();
    ExitCode::FAILURE
}

/// Joins the container's cgroup so that it becomes the root of the new cgroup namespace, then moves to the leaf.
fn launch(cgroup: &Path) -> io::Result<Option<Pid>> {
    // The kernel must not choose PID 1 of the container when memory is short.
    write("/proc/self/oom_score_adj".as_ref(), b"-1000").ok();
    write(&cgroup.join("cgroup.procs"), b"0")?;
    process::unshare(isolate::NAMESPACES)?;
    write(&cgroup.join(cgroup::SUPERVISOR).join("cgroup.procs"), b"0")?;
    process::fork()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}

/// A session that was forked.
struct Session {
    pid: Pid,
    /// Open until the session's exec, or its failure.
    report: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

struct Supervisor {
    socket: OwnedFd,
    ended: OwnedFd,
    sessions: HashMap<u32, Session>,
}

impl Supervisor {
    fn new(socket: OwnedFd, engine: Option<&OwnedFd>) -> io::Result<Self> {
        let ended = process::child_signals()?;
        let fds: Vec<_> = engine.iter().map(|engine| engine.as_fd()).collect();
        protocol::send(&socket, &Event::Ready, &fds)?;
        Ok(Self { socket, ended, sessions: HashMap::new() })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let (request, ended, reports) = self.wait()?;
            for session in reports {
                self.report(session)?;
            }
            if ended {
                self.reap()?;
            }
            if request {
                match protocol::receive::<Request>(&self.socket)? {
                    Some((request, fds)) => self.serve(request, fds)?,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Waits for anything; says whether a request came, whether a child ended, and which reports are there.
    fn wait(&self) -> io::Result<(bool, bool, Vec<u32>)> {
        let reporting: Vec<(u32, BorrowedFd<'_>)> = self
            .sessions
            .iter()
            .filter_map(|(number, session)| Some((*number, session.report.as_ref()?.as_fd())))
            .collect();
        let mut fds =
            vec![PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.ended, PollFlags::IN)];
        fds.extend(reporting.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let reports = reporting
            .iter()
            .zip(&ready[2..])
            .filter_map(|((number, _), ready)| ready.then_some(*number))
            .collect();
        Ok((ready[0], ready[1], reports))
    }

    fn serve(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Start { session, stdio } => match start(fds, stdio) {
                Ok(started) => {
                    self.sessions.insert(session, started);
                }
                Err(SpawnError { kind, message }) => {
                    protocol::send(&self.socket, &Event::Failed { session, kind, message }, &[])?;
                }
            },
            Request::Signal { session, signal } => {
                if let Some(session) = self.sessions.get(&session)
                    && let Some(signal) = Signal::from_named_raw(i32::from(signal))
                {
                    // The group may be empty by now.
                    rustix::process::kill_process_group(session.pid, signal).ok();
                }
            }
            Request::Terminate => {
                // -1: everything but PID 1 itself. Nothing there to signal is fine.
                process::signal_all(libc::SIGTERM).ok();
            }
        }
        Ok(())
    }

    /// A report pipe is readable: the session runs, or it says why not.
    fn report(&mut self, number: u32) -> io::Result<()> {
        let Some(session) = self.sessions.get_mut(&number) else { return Ok(()) };
        let Some(report) = session.report.take() else { return Ok(()) };
        let mut bytes = Vec::new();
        File::from(report).take(REPORT_MAX).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            let pid = session.pid.as_raw_pid().unsigned_abs();
            let terminal = session.terminal.take();
            let fds: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
            return protocol::send(&self.socket, &Event::Started { session: number, pid }, &fds);
        }
        self.sessions.remove(&number);
        let (kind, message) = postcard::from_bytes(&bytes).unwrap_or_else(|_| {
            (ExecFailure::Refused, "the session could not be started".to_owned())
        });
        protocol::send(&self.socket, &Event::Failed { session: number, kind, message }, &[])
    }

    /// Takes every process that has ended, ours and orphans.
    fn reap(&mut self) -> io::Result<()> {
        // One read empties the descriptor: it holds at most one pending SIGCHLD.
        rustix::io::read(&self.ended, &mut [0_u8; 128]).ok();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(number) = self
                .sessions
                .iter()
                .find(|(_, session)| session.pid == pid)
                .map(|(number, _)| *number)
            else {
                continue;
            };
            // It may have ended before its report was looked at; the pipe is closed then.
            self.report(number)?;
            if self.sessions.remove(&number).is_some() {
                let outcome = outcome(status);
                protocol::send(&self.socket, &Event::Ended { session: number, outcome }, &[])?;
            }
        }
        Ok(())
    }
}

fn outcome(status: WaitStatus) -> Outcome {
    let small = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => Outcome::Signaled(small(signal)),
        None => Outcome::Exited(small(status.exit_status().unwrap_or_default())),
    }
}

/// Forks a session from a start request's descriptors.
fn start(fds: Vec<OwnedFd>, stdio: [bool; 3]) -> Result<Session, SpawnError> {
    let refused = |error: &dyn std::fmt::Display| SpawnError {
        kind: ExecFailure::Refused,
        message: format!("the session could not be started: {error}"),
    };
    let mut fds = fds.into_iter();
    let (Some(launch), Some(cgroup)) = (fds.next(), fds.next()) else {
        return Err(refused(&"descriptors are missing"));
    };
    let launch: Launch = read_launch(launch).map_err(|error| refused(&error))?;
    let stdio = stdio.map(|there| if there { fds.next() } else { None });
    let size = launch.spec.tty;
    let mut prepared = child::prepare(launch, stdio)?;
    let mut terminal = None;
    if let Some(size) = size {
        let (master, slave) =
            open_terminal(size, prepared.user.uid).map_err(|error| refused(&error))?;
        terminal = Some(master);
        prepared.terminal = Some(slave);
    }
    let (report, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| refused(&error))?;
    // So that nothing the session starts can be outside of its cgroup.
    match process::fork_into(cgroup.as_fd()).map_err(|error| refused(&error))? {
        Some(pid) => Ok(Session { pid, report: Some(report), terminal }),
        None => {
            let SpawnError { kind, message } = child::run(&prepared);
            // The parent reads at most this much; what is lost is the end of a very long name.
            let message: String = message.chars().take(1000).collect();
            if let Ok(bytes) = postcard::to_stdvec(&(kind, message)) {
                rustix::io::write(&tell, &bytes).ok();
            }
            process::exit_now(127)
        }
    }
}

fn read_launch(file: OwnedFd) -> io::Result<Launch> {
    let mut bytes = Vec::new();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    File::from(file).take(LAUNCH_MAX).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Opens a terminal in the container's own devpts; the slave belongs to the user.
fn open_terminal(size: WindowSize, uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::fs::open(
        "/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size)?;
    Ok((master, slave))
}
