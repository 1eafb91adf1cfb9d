//! A worker and init's pump over a socket pair, mounted on a temporary directory.
//!
//! Needs `/dev/fuse` and the right to mount: without them each test says so and passes as skipped.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hutch_init::workspace::{self, WorkspacePump};
use hutch_workspace::{
    Counts, Prepared, ServeError, Worker, WorkerSpec, WorkspaceSpec, bulk, spawn,
};
use tempfile::TempDir;

use crate::relay::{HoldListings, relay};

/// A mounted workspace file system, unmounted at the end.
pub(crate) struct Mount {
    root: TempDir,
    pump: Option<WorkspacePump>,
    worker: Serving,
    host_end: UnixStream,
    counts: Arc<Counts>,
}

/// The host's side.
enum Serving {
    /// Threads of this process, with all its rights.
    Threads(Option<JoinHandle<Result<(), ServeError>>>),
    /// The program, in its jail.
    Program(Worker),
}

/// The ordinary user of the host who owns the workspace of [`Mount::of_a_user`].
pub(crate) const HOST_USER: u32 = 4242;

fn twin(file: &OwnedFd) -> OwnedFd {
    file.try_clone().expect("a descriptor")
}

/// Says whether this machine can mount at all, loudly if not.
pub(crate) fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        writeln!(std::io::stderr(), "skipped: needs root and /dev/fuse").ok();
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
        let (root, host) = Self::places();
        let specs = specs(&host);
        let (worker_end, guest_end) = UnixStream::pair().expect("a socket pair");
        let host_end = worker_end.try_clone().expect("a descriptor");
        rustix::process::umask(rustix::fs::Mode::empty());
        let prepared = Prepared::open(WorkerSpec::new(specs)).expect("the workspaces");
        let bulk = bulk::file().expect("a file in memory");
        let prepared = limit(prepared.with_bulk(Some(twin(&bulk))));
        let counts = prepared.counts();
        let worker = std::thread::spawn(move || prepared.serve(worker_end.into()));
        Self::start(root, Serving::Threads(Some(worker)), (guest_end, bulk), host_end, counts)
    }

    /// The same with listings that arrive late.
    pub(crate) fn with_late_listings(hold: HoldListings) -> Self {
        let (root, host) = Self::places();
        let (worker_end, relay_end) = UnixStream::pair().expect("a socket pair");
        let host_end = worker_end.try_clone().expect("a descriptor");
        let bulk = bulk::file().expect("a file in memory");
        let prepared = Prepared::open(WorkerSpec::new(vec![WorkspaceSpec::new(&host, false)]));
        let prepared = prepared.expect("the workspaces").with_bulk(Some(twin(&bulk)));
        let counts = prepared.counts();
        let worker = std::thread::spawn(move || prepared.serve(worker_end.into()));
        let guest_end = relay(relay_end, hold);
        Self::start(root, Serving::Threads(Some(worker)), (guest_end, bulk), host_end, counts)
    }

    /// The worker program in its jail, started by root, for a workspace of an ordinary user.
    pub(crate) fn of_a_user(specs: impl FnOnce(&Path) -> Vec<WorkspaceSpec>) -> Self {
        let (root, host) = Self::places();
        let specs = specs(&host);
        chown_all(&host, HOST_USER);
        let (worker_end, guest_end) = UnixStream::pair().expect("a socket pair");
        let host_end = worker_end.try_clone().expect("a descriptor");
        let program = Path::new(env!("CARGO_BIN_EXE_hutch-workspace"));
        let log = fs::File::create(root.path().join("log")).expect("a log");
        let spec = WorkerSpec::new(specs);
        let bulk = bulk::file().expect("a file in memory");
        let worker =
            spawn(program, &spec, worker_end.into(), Some(twin(&bulk)), log).expect("a worker");
        Self::start(root, Serving::Program(worker), (guest_end, bulk), host_end, Arc::default())
    }

    fn places() -> (TempDir, PathBuf) {
        let root = TempDir::new().expect("a temporary directory");
        // Users other than root pass, too.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let host = root.path().join("host");
        fs::create_dir(&host).expect("a directory");
        fs::create_dir(root.path().join("mount")).expect("a directory");
        (root, host)
    }

    fn start(
        root: TempDir,
        worker: Serving,
        (guest_end, bulk): (UnixStream, OwnedFd),
        host_end: UnixStream,
        counts: Arc<Counts>,
    ) -> Self {
        let mount = root.path().join("mount");
        // A request without an answer cannot be killed, and the device stays open while it waits: whatever goes wrong,
        // the connection must be gone before the test runner's patience is.
        let abandoned = mount.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(50));
            rustix::mount::unmount(abandoned, rustix::mount::UnmountFlags::FORCE).ok();
        });
        let pump = workspace::start(guest_end.into(), Some(bulk), &mount).expect("the mount");
        Self { root, pump: Some(pump), worker, host_end, counts }
    }

    /// How often the guest has asked so far; not counted of the program in its jail.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
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
        match &mut self.worker {
            Serving::Threads(worker) => {
                let worker = worker.take().expect("only here");
                if !std::thread::panicking() {
                    worker.join().expect("no panic").expect("a clean end");
                }
            }
            Serving::Program(worker) => {
                let ended = worker.wait(Duration::from_secs(10)).expect("a child");
                let log = fs::read_to_string(self.root.path().join("log")).expect("a log");
                if std::thread::panicking() {
                    writeln!(std::io::stderr(), "{ended:?} {log}").ok();
                } else {
                    assert!(ended.expect("it ends with the stream").success(), "{log}");
                }
            }
        }
    }
}

/// Gives a tree to a user.
pub(crate) fn chown_all(path: &Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).expect("root may");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("a directory") {
            chown_all(&entry.expect("an entry").path(), user);
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
