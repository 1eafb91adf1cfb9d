//! Init's side of the container: starts sessions and hears of their ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hutch_wire::guest::{Bytes, ExecFailure, ExecSpec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::cgroup::{ContainerCgroup, SessionCgroup};
use super::protocol::{self, Enter, Event, Launch, Request};
use super::{ARGUMENT, ContainerError, ContainerSpec, Outcome, SpawnError};
use crate::reaper;

/// A running container. Clones share it. It ends by [`Container::kill`], or with init's end of its socket.
#[derive(Debug, Clone)]
pub struct Container {
    shared: Arc<Shared>,
}

/// The ends of a session's pipes that its process gets; `None` = `/dev/null`.
#[derive(Debug, Default)]
pub struct StdioFds {
    /// Read by the process.
    pub stdin: Option<OwnedFd>,
    /// Written by the process.
    pub stdout: Option<OwnedFd>,
    /// Written by the process.
    pub stderr: Option<OwnedFd>,
}

/// A session's process that runs. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Process {
    /// Its number in the container.
    pub pid: u32,
    /// The terminal's master side, if the session has one; blocking, to be set by the taker.
    pub terminal: Option<OwnedFd>,
    number: u32,
    outcome: oneshot::Receiver<Outcome>,
    container: Container,
    cgroup: Option<SessionCgroup>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixStream,
    spec: ContainerSpec,
    /// Of sessions that begin now; at first the spec's.
    environment: Mutex<Vec<(Bytes, Bytes)>>,
    cgroup: ContainerCgroup,
    state: Mutex<State>,
    /// The Docker engine's listening socket, until somebody takes it.
    engine: Mutex<Option<OwnedFd>>,
    alive: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    starting: HashMap<u32, oneshot::Sender<Result<Started, SpawnError>>>,
    running: HashMap<u32, oneshot::Sender<Outcome>>,
    /// Cgroups of ended sessions in which something still lived when last looked at.
    lingering: Vec<SessionCgroup>,
}

#[derive(Debug)]
struct Started {
    pid: u32,
    terminal: Option<OwnedFd>,
    outcome: oneshot::Receiver<Outcome>,
}

/// A container that nobody has said anything about yet: its namespaces and its own file systems are there. It ends with
/// this end of its socket.
#[derive(Debug)]
pub struct Prepared {
    socket: UnixStream,
    cgroup: ContainerCgroup,
}

impl Prepared {
    /// Starts `program`, which is init itself, and waits until it is prepared.
    pub async fn make(program: &Path, cgroup_root: &Path) -> Result<Self, ContainerError> {
        let cgroup = ContainerCgroup::create(cgroup_root)
            .map_err(|(path, source)| ContainerError::Cgroup { path, source })?;
        let launch = |error: rustix::io::Errno| ContainerError::Launch(error.into());
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(launch)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(launch)?;
        let mut launcher = reaper::spawn(|| {
            let child = command(program)
                .args([ARGUMENT.as_ref(), cgroup.path().as_os_str()])
                .stdin(Stdio::from(theirs))
                .stdout(Stdio::null())
                .spawn()
                .map_err(ContainerError::Launch)?;
            i32::try_from(child.id())
                .ok()
                .and_then(Pid::from_raw)
                .ok_or_else(|| ContainerError::Launch(io::ErrorKind::InvalidData.into()))
        })?;
        tokio::spawn(async move { launcher.wait().await });
        // Tokio has no type for packet sockets; only its readiness is used, the calls are ours.
        let socket = UnixStream::from_std(ours.into()).map_err(ContainerError::Launch)?;
        match receive(&socket).await {
            Ok(Some((Event::Prepared, _))) => Ok(Self { socket, cgroup }),
            answer => Err(not_begun(answer)),
        }
    }

    /// Makes it this container, and waits until it is complete.
    pub async fn enter(self, spec: ContainerSpec) -> Result<Container, ContainerError> {
        let Self { socket, cgroup } = self;
        let root = Bytes::from(spec.root.as_os_str().as_bytes());
        let enter = Enter { root, hostname: spec.hostname.clone(), user: spec.user.clone() };
        socket
            .async_io(Interest::WRITABLE, || protocol::send(&socket, &enter, &[]))
            .await
            .map_err(ContainerError::Launch)?;
        let engine = match receive(&socket).await {
            Ok(Some((Event::Ready, fds))) => fds.into_iter().next(),
            answer => return Err(not_begun(answer)),
        };
        let shared = Arc::new(Shared {
            socket,
            environment: Mutex::new(spec.environment.clone()),
            spec,
            cgroup,
            state: Mutex::default(),
            engine: Mutex::new(engine),
            alive: watch::Sender::new(true),
        });
        tokio::spawn(dispatch(Arc::clone(&shared)));
        Ok(Container { shared })
    }
}

/// Why the supervisor did not say what it was to say.
fn not_begun(answer: io::Result<Option<(Event, Vec<OwnedFd>)>>) -> ContainerError {
    match answer {
        Ok(Some((Event::Broken { reason }, _))) => ContainerError::Supervisor(reason),
        Ok(_) | Err(_) => ContainerError::Ended,
    }
}

impl Container {
    /// Starts it with `program`, which is init itself, and waits until it is complete.
    pub async fn start(program: &Path, spec: ContainerSpec) -> Result<Self, ContainerError> {
        Prepared::make(program, &spec.cgroup_root).await?.enter(spec).await
    }

    /// Takes the listening socket at which clients look for a Docker engine.
    pub fn take_engine_socket(&self) -> Option<OwnedFd> {
        self.shared.engine.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Starts a session's process. `Ok` = its program runs.
    pub async fn spawn(&self, spec: ExecSpec, stdio: StdioFds) -> Result<Process, SpawnError> {
        let refused = |error: &dyn std::fmt::Display| SpawnError {
            kind: ExecFailure::Refused,
            message: format!("the session could not be started: {error}"),
        };
        let number = {
            let mut state = self.state();
            state.sweep();
            state.next = state.next.wrapping_add(1);
            state.next
        };
        let cgroup = self.shared.cgroup.session(number).map_err(|error| refused(&error))?;
        let started = self.request_start(number, &cgroup, spec, stdio).await;
        match started {
            Ok(started) => Ok(Process {
                pid: started.pid,
                terminal: started.terminal,
                number,
                outcome: started.outcome,
                container: self.clone(),
                cgroup: Some(cgroup),
            }),
            Err(error) => {
                self.state().retire(cgroup);
                Err(error)
            }
        }
    }

    async fn request_start(
        &self,
        number: u32,
        cgroup: &SessionCgroup,
        spec: ExecSpec,
        stdio: StdioFds,
    ) -> Result<Started, SpawnError> {
        let refused = |message: String| SpawnError { kind: ExecFailure::Refused, message };
        let shared = &self.shared;
        let launch = memory_file(&Launch {
            spec,
            environment: self.environment().clone(),
            user: shared.spec.user.clone(),
            directory: shared.spec.directory.clone(),
        });
        let launch =
            launch.map_err(|error| refused(format!("cannot pass the request on: {error}")))?;
        let directory = cgroup
            .directory()
            .map_err(|error| refused(format!("cannot use the session's cgroup: {error}")))?;
        let streams = [stdio.stdin, stdio.stdout, stdio.stderr];
        let mut fds: Vec<BorrowedFd<'_>> = vec![launch.as_fd(), directory.as_fd()];
        fds.extend(streams.iter().flatten().map(AsFd::as_fd));
        let (tell, told) = oneshot::channel();
        self.state().starting.insert(number, tell);
        let request = Request::Start {
            session: number,
            stdio: [0, 1, 2].map(|i: usize| streams[i].is_some()),
        };
        if let Err(error) = self.send(&request, &fds).await {
            self.state().starting.remove(&number);
            return Err(refused(format!("the sandbox's container is gone: {error}")));
        }
        drop(streams);
        told.await.unwrap_or_else(|_| Err(refused("the sandbox's container is gone".to_owned())))
    }

    /// Gives variables other values, for sessions that begin later, and returns all. Of several with one name the first
    /// is meant: those that follow are a person's, and win.
    pub fn change_environment(&self, changed: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        let mut environment = self.environment();
        for (name, value) in changed {
            match environment.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => environment.insert(0, (name, value)),
            }
        }
        environment.clone()
    }

    /// The user of sessions that name none.
    pub fn user(&self) -> &str {
        &self.shared.spec.user
    }

    fn environment(&self) -> MutexGuard<'_, Vec<(Bytes, Bytes)>> {
        self.shared.environment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every process in the container to end.
    pub async fn terminate(&self) -> io::Result<()> {
        self.send(&Request::Terminate, &[]).await
    }

    /// Ends every process in the container at once, the supervisor included.
    pub fn kill(&self) -> io::Result<()> {
        self.shared.cgroup.kill()
    }

    /// Resolves when the container has ended.
    pub async fn ended(&self) {
        // An error means that the sender is gone, which is an end too.
        self.shared.alive.subscribe().wait_for(|alive| !alive).await.ok();
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.shared
            .socket
            .async_io(Interest::WRITABLE, || protocol::send(&self.shared.socket, request, fds))
            .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Process {
    /// Sends a Linux signal to the session's process group.
    pub async fn signal(&self, signal: u8) -> io::Result<()> {
        self.container.send(&Request::Signal { session: self.number, signal }, &[]).await
    }

    /// Ends every process of the session at once, whatever it forked and however it detached itself.
    pub fn kill_tree(&self) -> io::Result<()> {
        self.cgroup.as_ref().map_or(Ok(()), SessionCgroup::kill)
    }

    /// Waits for the session's leader. May be cancelled and called again, but not after it gave an outcome.
    pub async fn wait(&mut self) -> Outcome {
        // The container ended without saying: everything in it was killed.
        (&mut self.outcome).await.unwrap_or(Outcome::Signaled(9))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            self.container.state().retire(cgroup);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: Event, fds: Vec<OwnedFd>) {
        let mut state = self.state();
        match event {
            Event::Started { session, pid } => {
                if let Some(waiting) = state.starting.remove(&session) {
                    let (tell, outcome) = oneshot::channel();
                    state.running.insert(session, tell);
                    // A caller that gave up drops the receiver; the session then runs on its own.
                    waiting
                        .send(Ok(Started { pid, terminal: fds.into_iter().next(), outcome }))
                        .ok();
                }
            }
            Event::Failed { session, kind, message } => {
                if let Some(waiting) = state.starting.remove(&session) {
                    waiting.send(Err(SpawnError { kind, message })).ok();
                }
            }
            Event::Ended { session, outcome } => {
                if let Some(waiting) = state.running.remove(&session) {
                    waiting.send(outcome).ok();
                }
                state.sweep();
            }
            // Said once, before anything else.
            Event::Prepared | Event::Ready | Event::Broken { .. } => {}
        }
    }
}

impl State {
    /// Takes back the cgroup of a session that nobody holds any more.
    fn retire(&mut self, cgroup: SessionCgroup) {
        if !cgroup.remove() {
            self.lingering.push(cgroup);
        }
    }

    /// Removes what has become empty since.
    fn sweep(&mut self) {
        self.lingering.retain(|cgroup| !cgroup.remove());
    }
}

/// Hears the supervisor until it ends.
async fn dispatch(shared: Arc<Shared>) {
    while let Ok(Some((event, fds))) = receive(&shared.socket).await {
        shared.hear(event, fds);
    }
    let mut state = shared.state();
    // Dropping the senders tells everyone who waits.
    state.starting.clear();
    state.running.clear();
    drop(state);
    shared.alive.send_replace(false);
}

async fn receive(socket: &UnixStream) -> io::Result<Option<(Event, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, || protocol::receive(socket)).await
}

fn memory_file(launch: &Launch) -> io::Result<OwnedFd> {
    let bytes = postcard::to_stdvec(launch).map_err(io::Error::other)?;
    let file = rustix::fs::memfd_create("launch", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, &bytes)?;
    Ok(file.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "init has no hutch-sys; it clears the environment here"
)]
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}
