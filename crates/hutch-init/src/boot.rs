//! From the kernel's start of init to the channel: file systems, modules, ports, then [`crate::serve`].

use std::convert::Infallible;
use std::fs;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use hutch_wire::guest::CHANNEL_PORT;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::attach::Hardware;
use crate::devices::{DeviceMissing, Devices};
use crate::modules::Loading;
use crate::port::Port;
use crate::stages::Stages;
use crate::{log, loopback, modules, power_off, reaper, serve};

/// How long the host may take to give us a port; a slow emulated machine needs a second.
const PORT_LIMIT: Duration = Duration::from_secs(30);
/// Open files of init: pipes and streams of thousands of sessions.
const OPEN_FILES: u64 = 65_536;

/// Why the machine cannot become a sandbox.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot mount {kind} on {target}: {source}")]
    Mount { kind: &'static str, target: &'static str, source: io::Error },
    #[error(transparent)]
    Port(#[from] DeviceMissing),
    #[error("cannot open the port {CHANNEL_PORT}: {0}")]
    OpenPort(#[source] io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("the port {CHANNEL_PORT} failed: {0}")]
    Channel(#[source] io::Error),
}

/// Runs as PID 1 until the power goes. Never returns, never panics out: PID 1 must not end.
pub fn run() -> ! {
    panic::set_hook(Box::new(|panicked| log::warn(format!("bug: {panicked}"))));
    match panic::catch_unwind(AssertUnwindSafe(boot)) {
        Ok(Err(error)) => log::fatal(format!("{error}; powering off")),
        Err(_) => log::fatal("init panicked; powering off"),
    }
    power_off::power_off_now()
}

fn boot() -> Result<Infallible, BootError> {
    let mut stages = Stages::start();
    mount_kernel_file_systems()?;
    limits();
    stages.mark("mounts");
    modules::answer_kernel();
    let devices = Devices::listen();
    loopback::up();
    let modules = Loading::start();
    stages.mark("loopback");
    let device = devices.port(CHANNEL_PORT, PORT_LIMIT)?;
    let port = Port::open(&device).map_err(BootError::OpenPort)?;
    stages.mark("port");
    log::info(format!("booted; {stages}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BootError::Runtime)?;
    runtime.block_on(async {
        tokio::spawn(reaper::run());
        let hardware = Hardware { devices, modules, prepared: Mutex::new(None) };
        serve::serve(&port, hardware).await.map_err(BootError::Channel)
    })
}

fn mount_kernel_file_systems() -> Result<(), BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    let plain = quiet | MountFlags::NODEV;
    for (kind, target, flags, options) in [
        ("proc", "/proc", plain, c""),
        ("sysfs", "/sys", plain, c""),
        ("devtmpfs", "/dev", quiet, c"mode=755"),
        ("tmpfs", "/run", plain, c"mode=755"),
        ("cgroup2", "/sys/fs/cgroup", plain, c"nsdelegate"),
    ] {
        let mounted = make_directory(target)
            .and_then(|()| Ok(mount(kind, target, kind, flags, Some(options))?));
        match mounted {
            // A kernel may have mounted devtmpfs itself.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => {
                result.map_err(|source| BootError::Mount { kind, target, source })?;
            }
        }
    }
    Ok(())
}

fn make_directory(path: impl AsRef<Path>) -> io::Result<()> {
    match fs::create_dir(path.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn limits() {
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(1 << 20) };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn(format!("limit of open files unchanged: {error}"));
    }
}
