//! The engine's launcher: runs in the sandbox as root, starts containerd, and becomes dockerd.
//!
//! Descriptor 0 is the listening socket. Descriptor 1 is a pipe to init for one sentence: why there is no engine.
//! It closes when dockerd begins.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use super::{LOG, PROGRAMS, settings};

/// Where the engine's programs are looked for; nothing that the agent may write to without being root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a person writes.
const WRITTEN: &str = "/etc/docker/daemon.json";
/// What the engine reads.
const SETTINGS: &str = "/run/hutch/daemon.json";
const CONTAINERD_SETTINGS: &str = "/run/hutch/containerd.toml";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// The number at which dockerd looks for a socket that it is given (sd_listen_fds(3)).
const GIVEN: i32 = 3;

/// The engine uses containerd for nothing but running containers: images and layers are its own.
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = -500
disabled_plugins = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "/run/containerd/containerd.sock"
"#;

/// Why the engine cannot be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(
        "this sandbox has no Docker engine: its template does not carry one; install one in it, or make a sandbox from a template that has one"
    )]
    NoEngine,
    #[error("the sandbox's Docker engine cannot be started: {what}: {source}")]
    Step { what: String, source: io::Error },
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.into();
    |source| LaunchError::Step { what, source }
}

pub(super) fn main() -> ExitCode {
    let Ok(init) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 10) else {
        return ExitCode::FAILURE;
    };
    let Err(error) = launch();
    // Init may be gone; then nobody waits for the reason.
    File::from(init).write_all(error.to_string().as_bytes()).ok();
    ExitCode::FAILURE
}

fn launch() -> Result<std::convert::Infallible, LaunchError> {
    // First, while the number is free; containerd is not to have it.
    let given = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), GIVEN)
        .map_err(|error| step("the socket")(error.into()))?;
    if given.as_raw_fd() != GIVEN {
        return Err(step("the socket")(io::ErrorKind::InvalidInput.into()));
    }
    let dockerd = find("dockerd").ok_or(LaunchError::NoEngine)?;
    let log = open_log().map_err(step(LOG))?;
    let written = read(WRITTEN).map_err(step(WRITTEN))?;
    let mut arguments: Vec<OsString> = Vec::new();
    let containerd = if settings::names_containerd(&written) { None } else { find("containerd") };
    let socket = containerd.is_some().then_some(CONTAINERD_SOCKET);
    match settings::merged(&written, socket) {
        Some(text) => {
            write(SETTINGS, &text).map_err(step(SETTINGS))?;
            arguments.extend(["--config-file".into(), SETTINGS.into()]);
            if let Some(containerd) = containerd {
                start_containerd(&containerd, &log).map_err(step("containerd"))?;
            }
        }
        None => arguments.extend(["-H".into(), "fd://".into()]),
    }
    rustix::io::fcntl_setfd(&given, rustix::io::FdFlags::empty())
        .map_err(|error| step("the socket")(error.into()))?;
    streams(&log).map_err(step("standard streams"))?;
    let mut command = command(&dockerd);
    command
        .args(arguments)
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", "1");
    Err(step(dockerd.display().to_string())(command.exec()))
}

/// A program of the engine's with the sandbox's environment, in which the proxy's settings are.
#[expect(clippy::disallowed_methods, reason = "the session's environment is the sandbox's own")]
fn command(program: &Path) -> Command {
    let mut path = OsString::from(PROGRAMS);
    path.push(":");
    path.push(PATH);
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

fn start_containerd(program: &Path, log: &File) -> io::Result<()> {
    write(CONTAINERD_SETTINGS, CONTAINERD)?;
    // One that an engine before this one left behind answers nobody.
    fs::remove_file(CONTAINERD_SOCKET).ok();
    command(program)
        .args(["--config", CONTAINERD_SETTINGS, "--log-level", "warn"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()?;
    Ok(())
}

fn streams(log: &File) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

fn open_log() -> io::Result<File> {
    let path = Path::new(LOG);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // A new one, so that the last lines are of this engine.
    fs::remove_file(path).ok();
    File::options().append(true).create(true).open(path)
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

#[expect(clippy::disallowed_methods, reason = "a file of this start, in memory")]
fn write(path: &str, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

/// The engine's program of this name.
fn find(program: &str) -> Option<PathBuf> {
    find_in(PATH.as_ref(), program)
}

fn find_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    env::split_paths(path).map(|directory| directory.join(program)).find(|file| {
        fs::metadata(file)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}
