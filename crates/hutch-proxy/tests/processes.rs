//! Both programs as the keeper starts them: a guest's end of the port, a server that reflects, keys in start files.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hutch_policy::log::Record;
use hutch_policy::settings::{Inspect, NetworkSettings, Service};
use hutch_proxy::control::{CallerEnvironment, PolicyState, Reply, Request, Start};
use hutch_proxy::{BrokerSpec, Proxy, Spawn};
use hutch_wire::network::Open;
use hutch_wire::{Connection, Limits, Role, message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const PLACEHOLDER: &str = "proxy-managed";

/// A server on this machine that answers with what it was sent, head and all.
fn reflecting_server() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let (seen, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Some(head) = head(&mut stream) else { continue };
            let key =
                head.lines().find_map(|line| line.strip_prefix("x-mine: ")).unwrap_or_default();
            let status = if key == PLACEHOLDER { "401 Unauthorized" } else { "200 OK" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nx-echo: {key}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{head}",
                head.len()
            );
            // A client that went away is no matter of the server's.
            stream.write_all(answer.as_bytes()).ok();
            if seen.send(head).is_err() {
                return;
            }
        }
    });
    (port, requests)
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

struct World {
    base: tempfile::TempDir,
    proxy: Proxy,
    control: UnixStream,
    credentials: UnixStream,
    guest: Connection,
}

impl World {
    async fn start(port: u16, bashrc: &str) -> Self {
        let base = tempfile::tempdir().expect("a directory");
        for directory in ["home", "network"] {
            fs::create_dir(base.path().join(directory)).expect("a directory");
        }
        write(&base.path().join("home/.bashrc"), bashrc);
        let service = Service {
            name: "mine".to_owned(),
            hosts: vec![format!("localhost:{port}")],
            header: "x-mine".to_owned(),
            format: "%s".to_owned(),
            variables: vec!["MINE_KEY".to_owned(), "OTHER_KEY".to_owned()],
            placeholder_variables: Vec::new(),
            placeholder: PLACEHOLDER.to_owned(),
            replaces: Vec::new(),
            git_basic: false,
            oauth: None,
        };
        let (guest, port_end) = StdStream::pair().expect("a socket pair");
        let spawn = Spawn {
            port: port_end.into(),
            directory: base.path().join("network"),
            log: File::create(base.path().join("talk")).expect("a log"),
            broker: BrokerSpec {
                store: base.path().join("config"),
                home: base.path().join("home"),
                shell: Some("/bin/bash".into()),
                user: "someone".to_owned(),
                services: vec![(service.name.clone(), service.variables.clone())],
            },
        };
        let program = Path::new(env!("CARGO_BIN_EXE_hutch-proxy"));
        let proxy = hutch_proxy::spawn(program, spawn).expect("both programs");
        let mut control = stream(&proxy.control);
        let credentials = stream(&proxy.credentials);
        let start = Start {
            sandbox: "box".to_owned(),
            settings: NetworkSettings { services: vec![service], ..NetworkSettings::default() },
            policy: PolicyState {
                proxy_config: format!(
                    r#"{{"policy":{{"default":"deny"}},"network":{{"allowedDomains":["localhost:{port}"]}}}}"#
                ),
                inspect: Inspect::Credentials,
            },
        };
        message::write(&mut control, &start).await.expect("a message");
        let reply: Reply =
            message::read(&mut control, message::MESSAGE_MAX).await.expect("a reply");
        assert!(matches!(reply, Reply::Ready { .. }), "{reply:?}");
        guest.set_nonblocking(true).expect("a socket");
        let guest = UnixStream::from_std(guest).expect("a socket");
        let (guest, _) = Connection::establish(guest, Role::Server, Limits::default())
            .await
            .expect("a connection");
        Self { base, proxy, control, credentials, guest }
    }

    /// The user that the worker runs as.
    fn proxy_uid(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.proxy.pid()))
            .expect("the worker runs");
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("its user");
        line.split_whitespace().nth(1).and_then(|uid| uid.parse().ok()).expect("a number")
    }

    async fn ask(&self, port: u16) -> String {
        let open = postcard::to_stdvec(&Open::Proxy).expect("bytes");
        let mut stream = self.guest.open(&open).await.expect("a stream");
        let request = format!(
            "GET http://host.docker.internal:{port}/path HTTP/1.1\r\nHost: host.docker.internal:{port}\r\nx-mine: {PLACEHOLDER}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8(answer).expect("text")
    }

    async fn place(&mut self) -> Option<String> {
        message::write(&mut self.control, &Request::Services).await.expect("a message");
        let reply: Reply =
            message::read(&mut self.control, message::MESSAGE_MAX).await.expect("a reply");
        // Whatever else it says is no place, and fails whoever compares it.
        let Reply::Services(services) = reply else { return Some(format!("{reply:?}")) };
        services.into_iter().next().expect("a service").1
    }

    fn file(&self, path: &str) -> PathBuf {
        self.base.path().join(path)
    }
}

#[expect(clippy::disallowed_methods, reason = "a start file of a test, not one of ours")]
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
}

fn stream(socket: &StdStream) -> UnixStream {
    let socket = socket.try_clone().expect("a duplicate");
    socket.set_nonblocking(true).expect("a socket");
    UnixStream::from_std(socket).expect("a socket")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_a_start_file_reaches_the_server_and_never_comes_back() {
    let (port, requests) = reflecting_server();
    let seen = || requests.recv_timeout(Duration::from_secs(20)).expect("a request");
    let mut world = World::start(port, "export MINE_KEY=key-of-the-shell\n").await;
    let answer = world.ask(port).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-mine: ****************"), "{answer}");
    assert!(!answer.contains("key-of-the-shell"), "{answer}");
    let request = seen();
    assert!(request.contains("x-mine: key-of-the-shell\r\n"), "{request}");
    assert!(!request.contains(PLACEHOLDER), "{request}");
    assert_eq!(world.place().await.as_deref(), Some("login shell MINE_KEY"));

    // A key that changes is used by the next request; one of the caller's comes before the shell's.
    write(&world.file("home/.bashrc"), "export MINE_KEY=another-key-of-the-shell\n");
    world.ask(port).await;
    assert!(seen().contains("x-mine: another-key-of-the-shell\r\n"));
    let variables = [("MINE_KEY".to_owned(), "key-of-the-caller".to_owned())].into();
    message::write(&mut world.credentials, &CallerEnvironment { variables }).await.expect("sent");
    while world.place().await.as_deref() != Some("environment MINE_KEY") {
        tokio::task::yield_now().await;
    }
    let answer = world.ask(port).await;
    assert!(seen().contains("x-mine: key-of-the-caller\r\n") && !answer.contains("of-the-caller"));

    // Nothing that they left behind has a key.
    world.proxy.kill().expect("an end");
    world.proxy.wait(Duration::from_secs(20)).expect("an end").expect("an end");
    for file in ["network/log.jsonl", "talk"] {
        let text = fs::read_to_string(world.file(file)).unwrap_or_default();
        assert!(!text.contains("key-of-the"), "{file}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_the_log_says_why_the_server_refused() {
    let (port, requests) = reflecting_server();
    let mut world = World::start(port, "").await;
    let answer = world.ask(port).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    drop(requests);
    assert_eq!(world.place().await, None);
    let log = world.file("network/log.jsonl");
    // Written by a thread of its own, at once; the time-out of the test is the limit.
    let record = loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if let Some(record) = text.lines().find_map(Record::from_line) {
            break record;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((record.status, record.credential), (Some(401), None));
    let error = record.error.expect("an explanation");
    assert!(error.starts_with("no credential for mine on the host; looked in"), "{error}");
    assert!(error.contains("MINE_KEY or OTHER_KEY"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_files_run_without_network_and_write_nothing() {
    let (port, _requests) = reflecting_server();
    let bashrc = format!(
        "if (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; then export MINE_KEY=online; fi\n\
         if : > \"$HOME/written\"; then export MINE_KEY=wrote; fi 2>/dev/null\n\
         export OTHER_KEY=confined\n"
    );
    let mut world = World::start(port, &bashrc).await;
    assert_eq!(world.place().await.as_deref(), Some("login shell OTHER_KEY"));
    assert!(!world.file("home/written").exists());
    let status = fs::read_to_string(format!("/proc/{}/status", world.proxy.broker_pid()))
        .expect("the broker runs");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_ends_with_the_worker() {
    let (port, _requests) = reflecting_server();
    let mut world = World::start(port, "").await;
    world.place().await;
    kill(world.proxy.pid());
    let broker = world.proxy.broker_pid();
    while !ended(broker) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_ends_with_the_broker_and_says_so() {
    let (port, _requests) = reflecting_server();
    let mut world = World::start(port, "").await;
    world.place().await;
    kill(world.proxy.broker_pid());
    let status = world.proxy.wait(Duration::from_secs(10)).expect("it can be waited for");
    assert_eq!(status.and_then(|status| status.code()), Some(1));
    let talk = fs::read_to_string(world.file("talk")).expect("a log");
    assert!(talk.contains("the credential broker has ended"), "{talk}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_root_starts_goes_on_as_nobody() {
    if !rustix::process::geteuid().is_root() {
        // The whole test run has root; an ordinary user's worker stays that user's.
        let (port, _requests) = reflecting_server();
        let world = World::start(port, "").await;
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(world.proxy_uid(), own);
        return;
    }
    let (port, _requests) = reflecting_server();
    let mut world = World::start(port, "export MINE_KEY=key-of-root\n").await;
    assert_eq!(world.proxy_uid(), 65534);
    assert!(world.ask(port).await.starts_with("HTTP/1.1 200"));
    // It still writes into its directory, which root still reads.
    let ca = fs::metadata(world.file("network/ca.pem")).expect("a certificate");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&ca), 65534);
    world.place().await;
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a number"), rustix::process::Signal::KILL)
        .expect("a signal");
}

/// A zombie until the keeper's handle is dropped.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}
