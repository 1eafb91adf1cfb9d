//! Sessions through a real connection, in a real container: namespaces, cgroups and terminals on this machine, no VM.
//!
//! Needs root, as the guest's init has; the project's test run has it. Without it these tests fail and say so.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: whatever goes wrong fails the test"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hutch_init::container::{Container, ContainerSpec};
use hutch_init::session::{Channel, Sessions};
use hutch_wire::guest::{
    Bytes, ExecEvent, ExecFailure, ExecRequest, ExecSpec, Open, Stdio, WindowSize,
};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::{Connection, Limits, Role, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);
const APPLETS: [&str; 14] = [
    "sh",
    "sleep",
    "cat",
    "id",
    "stty",
    "tty",
    "setsid",
    "wc",
    "head",
    "kill",
    "true",
    "sha256sum",
    "yes",
    "touch",
];

/// A container, its sessions, and a connected host.
struct Fixture {
    host: Connection,
    sessions: Sessions,
    cgroup: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "not run: this test needs root");
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["bin", "etc", "home/agent", "tmp", "proc", "sys", "dev", "run"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let places = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = places.iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let users = "root:x:0:0::/:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n";
        fs::File::create(root.join("etc/passwd")).unwrap().write_all(users.as_bytes()).unwrap();
        // A cgroup of the test's own stands for the machine's root: tests run side by side.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let unified = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .expect("cgroup v2 is mounted");
        let cgroup = Path::new(unified[1]).join(format!("hutch-session-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let spec = ContainerSpec {
            root: root.to_owned(),
            hostname: "a-sandbox".to_owned(),
            cgroup_root: cgroup.clone(),
            environment: Vec::new(),
            user: "agent".to_owned(),
            directory: None,
        };
        let init = Path::new(env!("CARGO_BIN_EXE_hutch-init"));
        let sessions = Sessions::new(Container::start(init, spec).await.unwrap());
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let ((host, _), (_, mut incoming)) = tokio::try_join!(
            Connection::establish(ours, Role::Client, Limits::default()),
            Connection::establish(theirs, Role::Server, Limits::default()),
        )
        .unwrap();
        let served = sessions.clone();
        tokio::spawn(async move {
            let channel = Channel::default();
            while let Some(stream) = incoming.next().await {
                match postcard::from_bytes(stream.payload()) {
                    Ok(Open::Exec) => channel.exec(&served, stream),
                    Ok(Open::Stdio { exec, which }) => channel.stdio(stream, exec, which),
                    other => panic!("{other:?}"),
                }
            }
        });
        Self { host, sessions, cgroup, _directory: directory }
    }

    async fn open(&self, what: &Open) -> Stream {
        self.host.open(&postcard::to_stdvec(what).unwrap()).await.unwrap()
    }

    async fn begin(&self, spec: &ExecSpec) -> Session {
        let mut exec = self.open(&Open::Exec).await;
        let number = exec.id();
        let stdio = async |which| self.open(&Open::Stdio { exec: number, which }).await;
        let mut session =
            Session { stdin: None, stdout: None, stderr: None, tty: None, exec: None };
        if spec.tty.is_some() {
            session.tty = Some(stdio(Stdio::Tty).await);
        } else if !spec.detached {
            if spec.stdin {
                session.stdin = Some(stdio(Stdio::Stdin).await);
            }
            session.stdout = Some(stdio(Stdio::Stdout).await);
            session.stderr = Some(stdio(Stdio::Stderr).await);
        }
        message::write(&mut exec, spec).await.unwrap();
        session.exec = Some(exec);
        session
    }

    /// A session that has started.
    async fn started(&self, spec: &ExecSpec) -> Session {
        let mut session = self.begin(spec).await;
        let event = session.event().await;
        assert!(matches!(event, ExecEvent::Started { .. }), "{event:?}");
        session
    }

    /// Runs a script to its end.
    async fn shell(&self, script: &str) -> (String, String, ExecEvent) {
        self.started(&shell(script)).await.finish().await
    }

    async fn failure(&self, spec: &ExecSpec) -> ExecFailure {
        match self.begin(spec).await.event().await {
            ExecEvent::Failed { kind, message } => {
                assert!(!message.is_empty());
                kind
            }
            other => panic!("{other:?}"),
        }
    }

    fn session_cgroups(&self) -> usize {
        fs::read_dir(self.cgroup.join("sandbox"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"session-"))
            .count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.sessions.container().kill().unwrap();
        let sandbox = self.cgroup.join("sandbox");
        let deadline = Instant::now() + LIMIT;
        let populated = || {
            fs::read_to_string(sandbox.join("cgroup.events"))
                .is_ok_and(|text| text.contains("populated 1"))
        };
        // The kernel removes members after the kill returns.
        while populated() {
            assert!(Instant::now() < deadline, "the container's processes do not end");
            std::thread::yield_now();
        }
        for entry in fs::read_dir(&sandbox).unwrap().flatten() {
            fs::remove_dir(entry.path()).ok();
        }
        fs::remove_dir(&sandbox).ok();
        fs::remove_dir(&self.cgroup).ok();
    }
}

struct Session {
    exec: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    tty: Option<Stream>,
}

impl Session {
    async fn event(&mut self) -> ExecEvent {
        let exec = self.exec.as_mut().unwrap();
        tokio::time::timeout(LIMIT, message::read(exec, MESSAGE_MAX))
            .await
            .expect("an event comes")
            .expect("the exec stream is well")
    }

    async fn ask(&mut self, request: ExecRequest) {
        message::write(self.exec.as_mut().unwrap(), &request).await.unwrap();
    }

    async fn finish(mut self) -> (String, String, ExecEvent) {
        if let Some(stdin) = &mut self.stdin {
            stdin.shutdown().await.unwrap();
        }
        let (out, err) =
            tokio::join!(to_end(self.stdout.take().unwrap()), to_end(self.stderr.take().unwrap()));
        (text(&out), text(&err), self.event().await)
    }

    /// Reads the terminal until it shows this.
    async fn shows(&mut self, wanted: &str) -> String {
        let tty = self.tty.as_mut().unwrap();
        let mut seen = Vec::new();
        while !text(&seen).contains(wanted) {
            let mut piece = [0; 1024];
            let read = tokio::time::timeout(LIMIT, tty.read(&mut piece)).await;
            let count = read.unwrap_or_else(|_| panic!("not shown: {}", text(&seen))).unwrap();
            assert_ne!(count, 0, "it ended after {}", text(&seen));
            seen.extend_from_slice(&piece[..count]);
        }
        text(&seen)
    }

    async fn types(&mut self, keys: &[u8]) {
        self.tty.as_mut().unwrap().write_all(keys).await.unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn to_end(mut stream: Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    read.expect("the stream ends").expect("it ends well");
    bytes
}

fn spec(arguments: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: arguments.iter().map(|argument| Bytes::from(argument.as_bytes())).collect(),
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

fn shell(script: &str) -> ExecSpec {
    spec(&["sh", "-c", script])
}

fn in_terminal(script: &str) -> ExecSpec {
    ExecSpec { tty: Some(WindowSize { rows: 24, columns: 80 }), ..shell(script) }
}

fn with_stdin(arguments: &[&str]) -> ExecSpec {
    ExecSpec { stdin: true, ..spec(arguments) }
}

/// How many processes anywhere on the machine have this word as an argument.
fn alive(word: &str) -> usize {
    let has = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
        })
    };
    fs::read_dir("/proc").unwrap().flatten().filter(has).count()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not happen that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn output_streams_are_separate_and_the_status_is_exact() {
    let fixture = Fixture::start().await;
    let (out, err, end) = fixture.shell("echo out; echo err >&2; exit 7").await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(end, ExecEvent::Exited { code: 7 });
    let (_, _, end) = fixture.shell("kill -15 $$").await;
    assert_eq!(end, ExecEvent::Signaled { signal: 15 });
    let (_, _, end) = fixture.shell("exit 255").await;
    assert_eq!(end, ExecEvent::Exited { code: 255 });
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let fixture = Fixture::start().await;
    assert_eq!(fixture.failure(&spec(&["no-such-program"])).await, ExecFailure::NotFound);
    assert_eq!(fixture.failure(&spec(&["/etc/passwd"])).await, ExecFailure::NotExecutable);
    assert_eq!(fixture.failure(&spec(&[])).await, ExecFailure::Invalid);
    let nobody = ExecSpec { user: Some("nobody-here".to_owned()), ..spec(&["true"]) };
    assert_eq!(fixture.failure(&nobody).await, ExecFailure::Invalid);
    let nowhere = ExecSpec { directory: Some(Bytes::from("/no/where")), ..spec(&["true"]) };
    assert_eq!(fixture.failure(&nowhere).await, ExecFailure::Invalid);
    fixture.shell("true").await;
    eventually("nothing is left", || {
        fixture.session_cgroups() == 0 && fixture.sessions.running() == 0
    })
    .await;
}

#[tokio::test]
async fn a_megabyte_passes_unchanged_both_ways_and_the_half_close_is_the_end_of_input() {
    let fixture = Fixture::start().await;
    let mut session = fixture.started(&with_stdin(&["cat"])).await;
    let bytes: Vec<u8> =
        (0..1_048_577_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let mut stdin = session.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
        stdin
    });
    let got = to_end(session.stdout.take().unwrap()).await;
    assert!(got == bytes);
    drop(writer.await.unwrap());
    assert_eq!(session.event().await, ExecEvent::Exited { code: 0 });
}

#[tokio::test]
async fn without_a_stream_for_it_standard_input_is_empty() {
    let fixture = Fixture::start().await;
    let (out, _, _) = fixture.shell("cat; echo end").await;
    assert_eq!(out, "end\n");
}

#[tokio::test]
async fn a_host_that_stops_reading_ends_the_writer_by_its_pipe() {
    let fixture = Fixture::start().await;
    let mut session = fixture.started(&spec(&["yes"])).await;
    let mut stdout = session.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100_000]).await.unwrap();
    drop(stdout);
    assert_eq!(session.event().await, ExecEvent::Signaled { signal: 13 });
}

#[tokio::test]
async fn a_slow_reader_gets_everything_although_the_command_has_ended() {
    let fixture = Fixture::start().await;
    let session = fixture.started(&shell("yes | head -c 600000")).await;
    // Longer than held output is waited for: a reader is not what holds it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (out, _, end) = session.finish().await;
    assert_eq!((out.len(), end), (600_000, ExecEvent::Exited { code: 0 }));
}

#[tokio::test]
async fn signals_reach_the_process_group() {
    let fixture = Fixture::start().await;
    let mut session = fixture.started(&shell("sleep 87611 & sleep 87611; wait")).await;
    eventually("both sleep", || alive("87611") == 2).await;
    session.ask(ExecRequest::Signal(15)).await;
    assert_eq!(session.event().await, ExecEvent::Signaled { signal: 15 });
    eventually("both are gone", || alive("87611") == 0).await;
}

#[tokio::test]
async fn a_terminal_has_its_size_from_the_start_and_learns_a_new_one() {
    let fixture = Fixture::start().await;
    let script = "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 0.01; done";
    let mut session = fixture.started(&in_terminal(script)).await;
    session.shows("24 80").await;
    session.ask(ExecRequest::Resize(WindowSize { rows: 51, columns: 132 })).await;
    session.shows("51 132").await;
    assert_eq!(session.event().await, ExecEvent::Exited { code: 3 });
}

#[tokio::test]
async fn control_c_interrupts_the_foreground_and_not_the_shell() {
    let fixture = Fixture::start().await;
    let interactive =
        ExecSpec { tty: Some(WindowSize { rows: 24, columns: 80 }), ..spec(&["sh", "-i"]) };
    let mut session = fixture.started(&interactive).await;
    session.types(b"sleep 87612\r").await;
    eventually("it sleeps", || alive("87612") == 1).await;
    session.types(b"\x03").await;
    session.types(b"echo status-$?\r").await;
    session.shows("status-130").await;
    session.types(b"sleep 87612\r").await;
    eventually("it sleeps again", || alive("87612") == 1).await;
    // The same by a request, as a host without the terminal's keys does it.
    session.ask(ExecRequest::Signal(2)).await;
    eventually("it is gone", || alive("87612") == 0).await;
    session.types(b"exit 5\r").await;
    to_end(session.tty.take().unwrap()).await;
    assert_eq!(session.event().await, ExecEvent::Exited { code: 5 });
}

#[tokio::test]
async fn a_host_that_goes_takes_the_session_and_its_daemons_with_it() {
    let fixture = Fixture::start().await;
    let script = "(setsid sh -c 'setsid sleep 87613 & exit' &); exec sleep 87613";
    let session = fixture.started(&shell(script)).await;
    eventually("both sleep", || alive("87613") == 2).await;
    drop(session);
    eventually("nothing is left", || alive("87613") == 0 && fixture.sessions.running() == 0).await;
    fixture.shell("true").await;
    eventually("its cgroup is gone", || fixture.session_cgroups() == 0).await;
}

#[tokio::test]
async fn a_detached_session_goes_on_without_its_host() {
    let fixture = Fixture::start().await;
    let detached = ExecSpec { detached: true, ..shell("yes | head -c 300000; exec sleep 87614") };
    drop(fixture.started(&detached).await);
    let mut later = fixture.started(&spec(&["yes", "87619"])).await;
    later.ask(ExecRequest::Detach).await;
    drop(later);
    let mut terminal =
        fixture.started(&in_terminal("yes | head -c 300000; exec sleep 87615")).await;
    terminal.ask(ExecRequest::Detach).await;
    drop(terminal);
    eventually("they have written everything and sleep", || {
        alive("87614") == 1 && alive("87615") == 1
    })
    .await;
    assert_eq!((fixture.sessions.running(), alive("87619")), (3, 1));
}

#[tokio::test]
async fn what_a_command_leaves_behind_lives_on_and_delays_the_end_by_two_seconds() {
    let fixture = Fixture::start().await;
    let start = Instant::now();
    let (out, _, end) = fixture.shell("sleep 87616 & echo done").await;
    assert_eq!((out.as_str(), end), ("done\n", ExecEvent::Exited { code: 0 }));
    assert!(start.elapsed() >= Duration::from_secs(2), "the background process holds the output");
    assert_eq!((alive("87616"), fixture.sessions.running()), (1, 0));
    let start = Instant::now();
    fixture.shell("sleep 87616 >/dev/null 2>&1 & true").await;
    assert!(start.elapsed() < Duration::from_secs(2), "nothing holds it");
    assert_eq!(alive("87616"), 2);
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let fixture = Fixture::start().await;
    let session = fixture.started(&spec(&["sleep", "87617"])).await;
    let exec = session.exec.as_ref().unwrap().id();
    for (exec, which, reason) in [
        (exec, Stdio::Stdout, "the session has this stream already"),
        (exec, Stdio::Tty, "the session has no such stream"),
        (exec + 1000, Stdio::Stdout, "there is no such session"),
    ] {
        let mut stream = fixture.open(&Open::Stdio { exec, which }).await;
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
    let mut garbage = fixture.open(&Open::Exec).await;
    garbage.write_all(&[0xff; 64]).await.unwrap();
    assert!(garbage.read_u8().await.is_err());
    eventually("it is forgotten", || fixture.sessions.running() == 1).await;
}

#[tokio::test]
async fn five_hundred_sessions_leave_nothing() {
    let fixture = Fixture::start().await;
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    fixture.shell("true").await;
    let before = descriptors();
    for round in 0..500 {
        let (out, _, end) = match round % 5 {
            0 => fixture.started(&with_stdin(&["cat"])).await.finish().await,
            _ => fixture.shell(&format!("echo {round}")).await,
        };
        assert_eq!(end, ExecEvent::Exited { code: 0 });
        assert!(out.is_empty() || out == format!("{round}\n"));
    }
    eventually("sessions and descriptors are gone", || {
        fixture.sessions.running() == 0 && descriptors() == before
    })
    .await;
    let (out, _, _) = fixture.shell("set -- /proc/[0-9]*; echo $#").await;
    assert!(out.trim().parse::<u32>().unwrap() <= 3, "zombies or survivors: {out}");
    eventually("cgroups are gone", || fixture.session_cgroups() == 0).await;
}

#[tokio::test]
async fn a_container_that_ends_ends_its_sessions() {
    let fixture = Fixture::start().await;
    let session = fixture.started(&spec(&["sleep", "87618"])).await;
    fixture.sessions.container().kill().unwrap();
    assert_eq!(session.finish().await.2, ExecEvent::Signaled { signal: 9 });
    assert_eq!(fixture.failure(&spec(&["true"])).await, ExecFailure::Refused);
}
