//! A worker and init's pump over a socket pair, mounted on a temporary directory.
//!
//! Needs `/dev/fuse` and the right to mount: without them each test says so and passes as skipped.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hutch_init::workspace::{WorkspacePump, start};
use hutch_workspace::{Prepared, ServeError, WorkerSpec, WorkspaceSpec};
use tempfile::TempDir;

/// A mounted workspace file system, unmounted at the end.
pub(crate) struct Mount {
    root: TempDir,
    pump: Option<WorkspacePump>,
    worker: Option<JoinHandle<Result<(), ServeError>>>,
    host_end: UnixStream,
}

/// Says whether this machine can mount at all, loudly if not.
pub(crate) fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

impl Mount {
    /// One writable workspace, whose host directory is `host`.
    pub(crate) fn new() -> Self {
        Self::with(|host| vec![WorkspaceSpec::new(host, false)])
    }

    /// The workspaces that `specs` says of the fresh host directory.
    pub(crate) fn with(specs: impl FnOnce(&Path) -> Vec<WorkspaceSpec>) -> Self {
        Self::limited(specs, |prepared| prepared)
    }

    /// The same with a change to the worker before it serves.
    pub(crate) fn limited(
        specs: impl FnOnce(&Path) -> Vec<WorkspaceSpec>,
        limit: impl FnOnce(Prepared) -> Prepared,
    ) -> Self {
        let root = TempDir::new().expect("a temporary directory");
        let (host, mount) = (root.path().join("host"), root.path().join("mount"));
        fs::create_dir(&host).expect("a directory");
        fs::create_dir(&mount).expect("a directory");
        let specs = specs(&host);
        let (worker_end, guest_end) = UnixStream::pair().expect("a socket pair");
        let host_end = worker_end.try_clone().expect("a descriptor");
        rustix::process::umask(rustix::fs::Mode::empty());
        let prepared = limit(Prepared::open(WorkerSpec::new(specs)).expect("the workspaces"));
        let worker = std::thread::spawn(move || prepared.serve(worker_end.into()));
        // A request without an answer cannot be killed, and the device stays open while it waits: whatever goes wrong,
        // the connection must be gone before the test runner's patience is.
        let abandoned = mount.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(50));
            rustix::mount::unmount(abandoned, rustix::mount::UnmountFlags::FORCE).ok();
        });
        let pump = start(guest_end.into(), &mount).expect("the mount");
        Self { root, pump: Some(pump), worker: Some(worker), host_end }
    }

    /// A path in the first workspace's directory on the host.
    pub(crate) fn host(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.path().join("host").join(path)
    }

    /// A path in the first workspace as the guest sees it.
    pub(crate) fn guest(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.path().join("mount/0").join(path)
    }

    /// A path in another workspace as the guest sees it.
    pub(crate) fn guest_of(&self, workspace: usize, path: impl AsRef<Path>) -> PathBuf {
        self.root.path().join("mount").join(workspace.to_string()).join(path)
    }

    /// Ends the worker's stream, as its death would.
    pub(crate) fn lose_worker(&self) {
        self.host_end.shutdown(std::net::Shutdown::Both).expect("an open socket");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.stop().expect("it is mounted");
        }
        self.host_end.shutdown(std::net::Shutdown::Both).ok();
        let worker = self.worker.take().expect("only here");
        if !std::thread::panicking() {
            worker.join().expect("no panic").expect("a clean end");
        }
    }
}

/// Asks until the answer is there; `limit` is what the project promises, with a margin for a loaded machine.
pub(crate) fn within<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
