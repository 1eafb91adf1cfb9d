//! A VM that is a task, an init that is a task, and a worker that is nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hutch_keeper::{WorkspaceHost, WorkspaceStart, WorkspaceWorker};
use hutch_vmm::{BoxFuture, SaveError, Snapshot, StartError, Vm, VmEnd, VmSpec, Vmm};
use hutch_wire::guest::{
    AttachSpec, Bytes, CHANNEL_PORT, ControlReply, ControlRequest, ExecEvent, ExecRequest,
    ExecSpec, Open, Stdio, WORKSPACE_PORT,
};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::network::NETWORK_PORT;
use hutch_wire::{Connection, Incoming, Limits, Role, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The guest's end of a VM.
pub(crate) struct GuestSide {
    pub(crate) channel: UnixStream,
    pub(crate) workspace: UnixStream,
    pub(crate) network: UnixStream,
    pub(crate) power: Power,
    pub(crate) serial_log: PathBuf,
}

/// The switch of a VM: says how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Power(Arc<watch::Sender<Option<VmEnd>>>);

impl Power {
    pub(crate) fn end(&self, end: VmEnd) {
        self.0.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(end);
            }
            first
        });
    }
}

type Play = Arc<dyn Fn(GuestSide) -> BoxFuture<'static, ()> + Send + Sync>;

/// Starts guests that play a part.
pub(crate) struct FakeVmm {
    play: Play,
    /// The switch of the last VM that was started.
    pub(crate) power: Mutex<Option<Power>>,
    pub(crate) refuse: bool,
}

impl FakeVmm {
    pub(crate) fn new<F>(play: impl Fn(GuestSide) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let play: Play = Arc::new(move |side| Box::pin(play(side)));
        Arc::new(Self { play, power: Mutex::new(None), refuse: false })
    }

    pub(crate) fn refusing() -> Arc<Self> {
        let play: Play = Arc::new(|_| Box::pin(async {}));
        Arc::new(Self { play, power: Mutex::new(None), refuse: true })
    }
}

impl fmt::Debug for FakeVmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeVmm")
    }
}

impl Vmm for FakeVmm {
    fn start(&self, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>> {
        Box::pin(async move {
            if self.refuse {
                return Err(StartError::Spec { what: "a shape".to_owned() });
            }
            assert!(spec.scratch.is_dir());
            assert_eq!(spec.disks.len(), 3);
            let power = Power(Arc::new(watch::Sender::new(None)));
            *self.power.lock().unwrap() = Some(power.clone());
            let (channel, guest_channel) = UnixStream::pair().unwrap();
            let (workspace, guest_workspace) = UnixStream::pair().unwrap();
            let (network, guest_network) = UnixStream::pair().unwrap();
            let guest = tokio::spawn((self.play)(GuestSide {
                channel: guest_channel,
                workspace: guest_workspace,
                network: guest_network,
                power: power.clone(),
                serial_log: spec.serial_log,
            }));
            let ports = BTreeMap::from([
                (CHANNEL_PORT.to_owned(), channel),
                (WORKSPACE_PORT.to_owned(), workspace),
                (NETWORK_PORT.to_owned(), network),
            ]);
            Ok(Box::new(FakeVm { ports, ended: power.0.subscribe(), power, guest }) as Box<dyn Vm>)
        })
    }
    fn fingerprint(&self, _spec: &VmSpec) -> Result<Vec<Vec<u8>>, StartError> {
        Ok(Vec::new())
    }
    fn resume(
        &self,
        spec: VmSpec,
        _snapshot: Snapshot,
    ) -> BoxFuture<'_, Result<Box<dyn Vm>, StartError>> {
        self.start(spec)
    }
}

#[derive(Debug)]
struct FakeVm {
    ports: BTreeMap<String, UnixStream>,
    ended: watch::Receiver<Option<VmEnd>>,
    power: Power,
    guest: JoinHandle<()>,
}

impl Vm for FakeVm {
    fn take_ports(&mut self) -> BTreeMap<String, UnixStream> {
        std::mem::take(&mut self.ports)
    }
    fn pid(&self) -> u32 {
        4242
    }
    fn wait(&mut self) -> BoxFuture<'_, VmEnd> {
        Box::pin(async {
            let end = self.ended.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            self.guest.abort();
            end
        })
    }
    fn save(&mut self, _state: OwnedFd) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async { Err(SaveError::Memory) })
    }
    fn kill(&mut self) {
        self.guest.abort();
        self.power.end(VmEnd::VmmFailed { reason: "killed".to_owned() });
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.guest.abort();
    }
}

/// Starts workers that hold their port until it ends.
#[derive(Debug, Clone)]
pub(crate) struct FakeWorkspace {
    pub(crate) end: Arc<watch::Sender<Option<String>>>,
    pub(crate) refuse: bool,
}

impl FakeWorkspace {
    pub(crate) fn new() -> Self {
        Self { end: Arc::new(watch::Sender::new(None)), refuse: false }
    }
}

impl WorkspaceHost for FakeWorkspace {
    fn start(
        &self,
        start: WorkspaceStart,
    ) -> BoxFuture<'_, Result<Box<dyn WorkspaceWorker>, String>> {
        Box::pin(async move {
            if self.refuse {
                return Err("no workers today".to_owned());
            }
            // The worker of an earlier boot has ended by now.
            self.end.send_replace(None);
            let end = Arc::clone(&self.end);
            tokio::spawn(async move {
                let mut port = start.port;
                let _gone = port.read(&mut [0]).await;
                end.send_if_modified(|now| {
                    now.get_or_insert_with(|| "the port ended".to_owned());
                    true
                });
            });
            Ok(Box::new(FakeWorker(self.end.subscribe())) as Box<dyn WorkspaceWorker>)
        })
    }
}

#[derive(Debug)]
struct FakeWorker(watch::Receiver<Option<String>>);

impl WorkspaceWorker for FakeWorker {
    fn pid(&self) -> u32 {
        4343
    }
    fn wait(&mut self) -> BoxFuture<'_, String> {
        Box::pin(async { self.0.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }
    fn kill(&mut self) {}
}

/// What the fake init tells a test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// With the time at which init began.
    Attached(Box<AttachSpec>, SystemTime),
    /// A session's exec stream ended: argv[0], and whether it was a reset.
    ExecEnded(String, bool),
    Signal(u8),
    Pinged,
    /// The certificates, and the variables that changed.
    Trusted(String, Vec<(String, String)>),
    PowerOff,
}

/// How the fake init behaves.
#[derive(Clone)]
pub(crate) struct Init {
    pub(crate) told: mpsc::UnboundedSender<Told>,
    pub(crate) refuse_attach: bool,
    pub(crate) answer_pings: bool,
    pub(crate) answer_trust: bool,
    pub(crate) power_off: bool,
    /// Ends sessions of the program `wait`.
    pub(crate) release: watch::Receiver<bool>,
}

impl Init {
    pub(crate) async fn run(self, side: GuestSide) {
        let _ports = (side.workspace, side.network);
        self.serve(side.channel, side.power).await;
    }

    pub(crate) async fn serve<T>(self, channel: T, power: Power)
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let booted = SystemTime::now();
        let (_connection, mut incoming) =
            Connection::establish(channel, Role::Server, Limits::default()).await.unwrap();
        while let Some(stream) = incoming.next().await {
            let open: Open = postcard_from(stream.payload());
            let number = stream.id();
            let stream = stream.accept();
            match open {
                Open::Control => {
                    tokio::spawn(self.clone().control(stream, power.clone(), booted));
                }
                Open::Log => {
                    tokio::spawn(async move {
                        let mut stream = stream;
                        stream.write_all(b"init says \x1b[31mhello\n").await.unwrap();
                        std::future::pending::<()>().await;
                    });
                }
                Open::Exec => self.exec(stream, number, &mut incoming).await,
                Open::Stdio { .. } => panic!("a stream of no session"),
                Open::Changes => stream.reset("nothing is told here"),
            }
        }
    }

    async fn control(self, mut stream: Stream, power: Power, booted: SystemTime) {
        while let Ok(request) = message::read::<ControlRequest, _>(&mut stream, MESSAGE_MAX).await {
            let reply = match request {
                ControlRequest::Attach(_) if self.refuse_attach => {
                    ControlReply::Failed { reason: "no \x1b[2Jdisk".to_owned() }
                }
                ControlRequest::Attach(spec) => {
                    self.told.send(Told::Attached(spec, booted)).unwrap();
                    ControlReply::Attached
                }
                ControlRequest::Prepare { .. } => ControlReply::Prepared,
                ControlRequest::Trust { ca_pem, environment } => {
                    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
                    let variables =
                        environment.iter().map(|(name, value)| (text(name), text(value))).collect();
                    self.told.send(Told::Trusted(ca_pem, variables)).unwrap();
                    if !self.answer_trust {
                        continue;
                    }
                    ControlReply::Trusted
                }
                ControlRequest::Ping { .. } => {
                    let _test_is_over = self.told.send(Told::Pinged);
                    if !self.answer_pings {
                        continue;
                    }
                    ControlReply::Pong
                }
                ControlRequest::PowerOff => {
                    let _test_is_over = self.told.send(Told::PowerOff);
                    if !self.power_off {
                        continue;
                    }
                    message::write(&mut stream, &ControlReply::PoweringOff).await.unwrap();
                    power.end(VmEnd::PoweredOff);
                    return;
                }
            };
            message::write(&mut stream, &reply).await.unwrap();
        }
    }

    /// Takes the session's streams and runs its program, named by the first argument.
    async fn exec(&self, mut exec: Stream, number: u32, incoming: &mut Incoming) {
        let spec: ExecSpec = message::read(&mut exec, MESSAGE_MAX).await.unwrap();
        let argument = |n: usize| {
            spec.argv.get(n).map(|a| String::from_utf8_lossy(a).into_owned()).unwrap_or_default()
        };
        let program = argument(0);
        let wanted = match program.as_str() {
            "cat" => 2,
            "flood" => 1,
            _ => 0,
        };
        let mut streams = BTreeMap::new();
        while streams.len() < wanted {
            let stream = incoming.next().await.unwrap();
            let Open::Stdio { exec, which } = postcard_from(stream.payload()) else {
                panic!("another stream between")
            };
            assert_eq!(exec, number, "the number must be the guest's");
            let which = match which {
                Stdio::Stdin => 0,
                Stdio::Stdout => 1,
                _ => 2,
            };
            streams.insert(which, stream.accept());
        }
        let (told, mut release) = (self.told.clone(), self.release.clone());
        let code: u8 = argument(1).parse().unwrap_or(0);
        tokio::spawn(async move {
            message::write(&mut exec, &ExecEvent::Started { pid: 7 }).await.unwrap();
            match program.as_str() {
                "cat" => {
                    let (mut input, mut output) =
                        (streams.remove(&0).unwrap(), streams.remove(&1).unwrap());
                    tokio::io::copy(&mut input, &mut output).await.unwrap();
                    output.shutdown().await.unwrap();
                }
                "flood" => {
                    let mut output = streams.remove(&1).unwrap();
                    let block = vec![b'x'; 64 * 1024];
                    while output.write_all(&block).await.is_ok() {}
                    return;
                }
                "wait" => {
                    let end = loop {
                        tokio::select! {
                            request = message::read::<ExecRequest, _>(&mut exec, 64) => match request {
                                Ok(ExecRequest::Signal(signal)) => {
                                    told.send(Told::Signal(signal)).unwrap();
                                }
                                Ok(_) => {}
                                Err(error) => break Some(error),
                            },
                            _ = release.wait_for(|release| *release) => break None,
                        }
                    };
                    if let Some(error) = end {
                        let reset = !matches!(error, message::MessageError::End);
                        told.send(Told::ExecEnded(program, reset)).unwrap();
                        return;
                    }
                }
                _ => {}
            }
            message::write(&mut exec, &ExecEvent::Exited { code }).await.unwrap();
            exec.shutdown().await.unwrap();
        });
    }
}

pub(crate) fn postcard_from<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).unwrap()
}

/// A guest that says something on its console and then ends.
pub(crate) fn crashing(console: &'static str, end: VmEnd) -> Arc<FakeVmm> {
    FakeVmm::new(move |side| {
        let end = end.clone();
        async move {
            let mut serial =
                std::fs::File::options().create(true).append(true).open(&side.serial_log).unwrap();
            serial.write_all(console.as_bytes()).unwrap();
            side.power.end(end);
            std::future::pending::<()>().await;
        }
    })
}
