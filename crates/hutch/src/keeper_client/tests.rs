//! A store with a sandbox, and keepers that are played by the test or by small programs.

use std::process::Child;

use hutch_store::record::FORMAT_VERSION;
use hutch_store::{Draft, HostPath, KeeperRecord, Layout, Lock, TemplateReference};
use hutch_sys::process::ProcessIdentity;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::*;

struct World {
    _root: tempfile::TempDir,
    store: Store,
    name: SandboxName,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let base = root.path();
        let state = base.join("state");
        let layout = Layout {
            runtime: base.join("run"),
            config: base.join("config"),
            images: state.join("images"),
            state,
        };
        let store = Store::open(layout).unwrap();
        let draft = Draft {
            agent: "shell".to_owned(),
            template: TemplateReference { name: "shell".to_owned(), digest: String::new() },
            workspaces: Vec::new(),
            cpus: 1,
            memory_mib: 256,
            disk_bytes: 64 << 20,
            idle_timeout_s: 0,
            docker: hutch_store::DockerStart::default(),
            labels: std::collections::BTreeMap::new(),
            environment: std::collections::BTreeMap::new(),
        };
        let name = SandboxName::parse("box").unwrap();
        store.create(&draft, [name.clone()]).unwrap();
        Self { _root: root, store, name }
    }

    fn lock(&self) -> Lock {
        self.store.lock(&self.name, Duration::ZERO).unwrap()
    }

    /// A socket, and the file that names it and this process as the keeper.
    fn listen(&self) -> UnixListener {
        self.listen_as(&ProcessIdentity::own().unwrap())
    }

    fn listen_as(&self, process: &ProcessIdentity) -> UnixListener {
        let id = self.store.load(&self.name).unwrap().id;
        let socket = self.store.layout().socket(&id);
        let listener = UnixListener::bind(&socket).unwrap();
        let keeper = KeeperRecord {
            format_version: FORMAT_VERSION,
            pid: process.pid,
            start_time: process.start_time,
            socket: HostPath::new(socket).unwrap(),
        };
        self.store.write_keeper(&self.name, &keeper).unwrap();
        listener
    }

    async fn ready_with(&self, script: &str) -> Result<Keeper, Failure> {
        let with = KeeperArguments {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into(), "sh".into()],
            network: b"{}".to_vec(),
        };
        ready(&self.store, &self.name, Face::Hutch, async || Ok(with)).await
    }

    async fn ready(&self) -> Result<Keeper, Failure> {
        ready(&self.store, &self.name, Face::Hutch, async || panic!("no keeper is to be started"))
            .await
    }
}

fn status(api_version: u16, phase: Phase) -> Response {
    Response::Status(Status {
        api_version,
        phase,
        sessions: 0,
        accelerator: "tcg".to_owned(),
        keeper_pid: 1,
        vmm_pid: None,
        workspace_pid: None,
        proxy_pid: None,
        ready_ms: None,
        resumed: false,
        unanswered_pings: 0,
    })
}

/// Answers one question of each connection, the answers in order; then does what is to be done and ends.
async fn play(listener: UnixListener, answers: Vec<Response>, end: impl FnOnce()) -> Vec<Request> {
    let mut asked = Vec::new();
    for answer in answers {
        let (stream, _) = listener.accept().await.unwrap();
        let (connection, mut incoming) =
            Connection::establish(stream, Role::Server, Limits::default()).await.unwrap();
        let mut stream = incoming.next().await.unwrap().accept();
        asked.push(message::read(&mut stream, 1024).await.unwrap());
        message::write(&mut stream, &answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // Until the other side has it.
        let mut rest = Vec::new();
        let _end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
        drop(connection);
    }
    drop(listener);
    end();
    asked
}

#[tokio::test]
async fn a_keeper_that_lives_is_used() {
    let world = World::new();
    let _lock = world.lock();
    let played = play(world.listen(), vec![status(API_VERSION, Phase::Ready)], || {});
    let (keeper, asked) = tokio::join!(world.ready(), played);
    assert!(keeper.is_ok());
    assert_eq!(asked, [Request::WaitReady]);
}

#[tokio::test]
async fn a_keeper_of_another_version_is_told_with_what_to_do() {
    let world = World::new();
    let _lock = world.lock();
    let played = play(world.listen(), vec![status(API_VERSION + 1, Phase::Ready)], || {});
    let (keeper, _) = tokio::join!(world.ready(), played);
    let failure = keeper.unwrap_err();
    let expected = format!(
        "the sandbox `box` cannot be used: its keeper is of another version of hutch: it speaks interface {}, this one {API_VERSION}",
        API_VERSION + 1
    );
    assert_eq!(failure.to_string(), expected);
    assert!(format!("{failure:?}").contains("hutch stop box"));
}

#[tokio::test]
async fn a_start_that_fails_says_why_without_the_guests_control_characters() {
    let world = World::new();
    let _lock = world.lock();
    let phase = Phase::Failed { reason: "the guest said \u{1b}[2J".to_owned() };
    let played = play(world.listen(), vec![status(API_VERSION, phase)], || {});
    let (keeper, _) = tokio::join!(world.ready(), played);
    assert_eq!(
        keeper.unwrap_err().to_string(),
        "the sandbox `box` did not start: the guest said \\x1b[2J"
    );
}

#[tokio::test]
async fn a_keeper_on_its_way_down_is_waited_for_and_a_new_one_started() {
    let world = World::new();
    let lock = world.lock();
    let (gone, told) = oneshot::channel::<()>();
    let played = play(world.listen(), vec![status(API_VERSION, Phase::Stopping)], move || {
        // Held for a while after the last answer, as a process that ends does.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(lock);
            drop(gone);
        });
    });
    let (keeper, _) = tokio::join!(world.ready_with("echo 'failed: no room' >&3"), async {
        let asked = played.await;
        std::fs::remove_file(world.store.keeper(&world.name).unwrap().unwrap().socket.as_path())
            .unwrap();
        asked
    });
    drop(told);
    assert_eq!(keeper.unwrap_err().to_string(), "the sandbox `box` did not start: no room");
}

#[tokio::test]
async fn a_keeper_that_ends_at_once_is_told() {
    let world = World::new();
    let failure = world.ready_with("exit 3").await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the sandbox `box` did not start: its keeper ended at once (exit status: 3)"
    );
    let failure =
        world.ready_with("printf '%s' \"$*\" | sed 's/^/failed: /' >&3").await.unwrap_err();
    assert_eq!(failure.to_string(), "the sandbox `box` did not start: --ready-fd 3 --network-fd 4");
    let failure =
        world.ready_with("echo \"failed: $(cat /proc/self/fd/4)\" >&3").await.unwrap_err();
    assert_eq!(failure.to_string(), "the sandbox `box` did not start: {}");
}

#[test]
fn what_a_keeper_is_given_cannot_be_changed_any_more() {
    let long = vec![b'x'; 1 << 20];
    let file = File::from(sealed(&long).unwrap());
    let again = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
    assert_eq!(again.unwrap(), long);
    assert!((&file).write_all(b"y").is_err());
}

#[tokio::test]
async fn stop_asks_the_keeper_and_waits_for_its_end() {
    let world = World::new();
    assert!(!stop(&world.store, &world.name, Face::Hutch).await.unwrap());
    let lock = world.lock();
    let played = play(world.listen(), vec![Response::Stopped], move || drop(lock));
    let (stopped, asked) = tokio::join!(stop(&world.store, &world.name, Face::Hutch), played);
    assert!(stopped.unwrap());
    assert!(matches!(asked[..], [Request::Stop { timeout_ms: 1.. }]), "{asked:?}");
}

/// A process that holds the sandbox's lock, as a keeper does.
fn holder(world: &World, script: &str) -> Child {
    let lock = world.store.paths(&world.name).lock();
    let mut child = hutch_sys::spawn::command("flock")
        .arg("--no-fork")
        .arg(lock)
        .args(["sh", "-c", &format!("{script} echo held; while :; do sleep 0.05; done")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_cannot_be_talked_to_is_ended_by_a_signal() {
    let world = World::new();
    let mut child = holder(&world, "");
    let listener = world.listen_as(&ProcessIdentity::of(child.id()).unwrap());
    // It accepts and hangs up.
    let hang_up = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    assert!(stop(&world.store, &world.name, Face::Hutch).await.unwrap());
    hang_up.abort();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert!(!world.store.is_running(&world.name).unwrap());
}

#[test]
fn logs_that_were_removed_with_their_sandbox_are_not_pointed_to() {
    let world = World::new();
    let said = || format!("{:?}", not_started(&world.store, &world.name, "odd"));
    assert!(said().contains("its logs are in"), "{}", said());
    world.store.remove(world.name.as_str(), Duration::ZERO).unwrap();
    assert!(!said().contains("its logs are in"), "{}", said());
}

#[test]
fn an_end_is_waited_for_so_long_and_no_longer() {
    let world = World::new();
    let ended = || has_ended(&world.store, &world.name, Duration::from_millis(1)).unwrap();
    assert!(ended());
    let lock = world.lock();
    assert!(!ended());
    drop(lock);
    assert!(ended());
    world.store.remove(world.name.as_str(), Duration::ZERO).unwrap();
    assert!(ended());
}
