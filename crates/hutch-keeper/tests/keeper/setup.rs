//! A keeper in this process, and a command line to talk to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hutch_api::{Open, Phase, Request, Response, Status};
use hutch_keeper::{Command, KeeperError, Parts, Settings, Start};
use hutch_store::{
    Draft, HostPath, LastEnd, Layout, SandboxName, SandboxRecord, Store, TemplateReference,
    Workspace,
};
use hutch_vmm::Accelerator;
use hutch_wire::guest::{Bytes, ExecEvent, ExecSpec};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::{Connection, Limits, Role, Stream};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::fake::{FakeVmm, FakeWorkspace, GuestSide, Init, Told};
use crate::fake_proxy::FakeNetwork;

/// A sandbox on disk.
pub(crate) struct Sandbox {
    _base: TempDir,
    pub(crate) store: Store,
    pub(crate) record: SandboxRecord,
    pub(crate) settings: Settings,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let at = |text: &str| base.path().join(text);
        let layout = Layout {
            state: at("state"),
            runtime: at("run"),
            config: at("config"),
            images: at("images"),
        };
        let store = Store::open(layout).unwrap();
        std::fs::create_dir(at("work")).unwrap();
        let draft = Draft {
            agent: "shell".to_owned(),
            template: TemplateReference { name: "shell".to_owned(), digest: String::new() },
            workspaces: vec![Workspace {
                path: HostPath::new(at("work")).unwrap(),
                read_only: false,
            }],
            cpus: 1,
            memory_mib: 512,
            disk_bytes: 64 << 20,
            idle_timeout_s: 0,
            docker: hutch_store::DockerStart::default(),
            labels: std::collections::BTreeMap::new(),
            environment: [("MINE".to_owned(), "yes".to_owned())].into(),
        };
        let name = SandboxName::parse("My_Box.1").unwrap();
        let record = store.create(&draft, [name.clone()]).unwrap();
        std::fs::File::create(at("template")).unwrap();
        let settings = Settings {
            sandbox: name,
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            template_layers: vec![at("template")],
            accelerator: Accelerator::Tcg,
            network: None,
            idle_timeout: None,
            start: Start::Warm,
            boot_timeout: Duration::from_secs(60),
        };
        Self { _base: base, store, record, settings }
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.record.workspaces[0].path.as_path().to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.store.layout().socket(&self.record.id)
    }

    /// Starts a keeper and waits until it listens.
    pub(crate) async fn keep(&self, vmm: Arc<FakeVmm>, workspace: FakeWorkspace) -> Keeper {
        self.keep_networked(vmm, workspace, FakeNetwork::none()).await
    }

    /// The same with a network, if the settings have one.
    pub(crate) async fn keep_networked(
        &self,
        vmm: Arc<FakeVmm>,
        workspace: FakeWorkspace,
        network: FakeNetwork,
    ) -> Keeper {
        let (commands, received) = mpsc::channel(8);
        let (listening, heard) = oneshot::channel();
        let parts = Parts {
            vmm,
            workspace: Arc::new(workspace),
            network: Arc::new(network),
            give_up: || Ok(()),
        };
        let kept = tokio::spawn(hutch_keeper::keep(
            self.store.clone(),
            self.settings.clone(),
            parts,
            move || listening.send(()).unwrap(),
            (commands.clone(), received),
        ));
        heard.await.unwrap();
        Keeper { commands, kept, socket: self.socket() }
    }
}

/// A keeper that runs.
pub(crate) struct Keeper {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) kept: JoinHandle<Result<LastEnd, KeeperError>>,
    socket: PathBuf,
}

impl Keeper {
    pub(crate) async fn end(self) -> LastEnd {
        self.kept.await.unwrap().unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (connection, _) =
            Connection::establish(stream, Role::Client, Limits::default()).await.unwrap();
        Client(connection)
    }

    /// A client of a sandbox that is ready.
    pub(crate) async fn ready(&self) -> Client {
        let client = self.client().await;
        let status = client.wait_ready().await;
        assert_eq!(status.phase, Phase::Ready);
        client
    }
}

/// A command line.
pub(crate) struct Client(pub(crate) Connection);

impl Client {
    pub(crate) async fn open(&self, open: Open) -> Stream {
        self.0.open(&postcard::to_stdvec(&open).unwrap()).await.unwrap()
    }

    pub(crate) async fn request(&self, request: Request) -> Response {
        let mut stream = self.open(Open::Call).await;
        message::write(&mut stream, &request).await.unwrap();
        message::read(&mut stream, MESSAGE_MAX).await.unwrap()
    }

    pub(crate) async fn status(&self) -> Status {
        match self.request(Request::Status).await {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn wait_ready(&self) -> Status {
        match self.request(Request::WaitReady).await {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn stop(&self, timeout: Duration) {
        let timeout_ms = timeout.as_millis().try_into().unwrap();
        assert_eq!(self.request(Request::Stop { timeout_ms }).await, Response::Stopped);
    }

    /// Starts a session without streams.
    pub(crate) async fn exec(&self, spec: &ExecSpec) -> Stream {
        let mut exec = self.open(Open::Exec).await;
        message::write(&mut exec, spec).await.unwrap();
        exec
    }

    pub(crate) async fn stdio(&self, exec: &Stream, which: u8) -> Stream {
        self.open(Open::Stdio { exec: exec.id(), which }).await
    }

    /// Starts a session and waits until it runs.
    pub(crate) async fn start(&self, spec: &ExecSpec) -> Stream {
        let mut exec = self.exec(spec).await;
        assert_eq!(event(&mut exec).await, ExecEvent::Started { pid: 7 });
        exec
    }
}

pub(crate) async fn event(exec: &mut Stream) -> ExecEvent {
    message::read(exec, MESSAGE_MAX).await.unwrap()
}

pub(crate) fn spec(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|argument| Bytes::from(argument.as_bytes())).collect(),
        environment: Vec::new(),
        directory: None,
        user: None,
        tty: None,
        stdin: false,
        privileged: false,
        detached: false,
        seeds: Vec::new(),
    }
}

/// A well-behaved init and what it tells.
pub(crate) struct Guest {
    pub(crate) init: Init,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    pub(crate) release: watch::Sender<bool>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (release, released) = watch::channel(false);
        let init = Init {
            told: tell,
            refuse_attach: false,
            answer_pings: true,
            answer_trust: true,
            power_off: true,
            release: released,
        };
        Self { init, told, release }
    }

    pub(crate) fn vmm(&self) -> Arc<FakeVmm> {
        let init = self.init.clone();
        FakeVmm::new(move |side: GuestSide| init.clone().run(side))
    }

    /// The next thing of the kind that is asked for.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&Told) -> bool) -> Told {
        loop {
            let told = self.told.recv().await.unwrap();
            if wanted(&told) {
                return told;
            }
        }
    }
}
