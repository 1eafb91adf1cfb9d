//! The container and its processes, for real: namespaces, cgroups and terminals on this machine, without a VM.
//!
//! Needs root, as the guest's init has; the project's test run has it.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hutch_init::container::{Container, ContainerSpec, Outcome, Process, SpawnError, StdioFds};
use hutch_wire::guest::{Bytes, ExecFailure, ExecSpec, WindowSize};

/// Tests of one process have cgroups of their own.
static NEXT: AtomicU32 = AtomicU32::new(0);

struct Fixture {
    container: Container,
    cgroup: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root, as the guest's init has"
        );
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["bin", "etc", "home/agent", "tmp", "proc", "sys", "dev", "run"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "sleep", "cat", "id", "stty", "tty", "env", "setsid", "wc", "head", "kill",
            "true", "readlink",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let write = |name: &str, text: &str| {
            fs::File::create(root.join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        };
        write("etc/passwd", "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n");
        write("etc/group", "root:x:0:\nagent:x:1000:\ndocker:x:999:agent\n");
        write("bin/not-a-program", "text");
        write("bin/no-interpreter", "#!/no/such/interpreter\n");
        fs::set_permissions(root.join("bin/no-interpreter"), PermissionsExt::from_mode(0o755))
            .unwrap();
        rustix::fs::chown(root.join("home/agent"), Some(rustix::fs::Uid::from_raw(1000)), None)
            .unwrap();
        let cgroup_root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.join("cgroup.procs").exists())
            .expect("cgroup version 2 is mounted")
            .join(format!(
                "hutch-container-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
        fs::create_dir(&cgroup_root).unwrap();
        let container = Container::start(
            Path::new(env!("CARGO_BIN_EXE_hutch-init")),
            ContainerSpec {
                root: root.to_owned(),
                hostname: "a-sandbox".to_owned(),
                cgroup_root: cgroup_root.clone(),
                environment: vec![pair("OF_SANDBOX", "1"), pair("BOTH", "sandbox")],
                user: "agent".to_owned(),
                directory: None,
            },
        )
        .await
        .unwrap();
        Self { container, cgroup: cgroup_root.join("sandbox"), _directory: directory }
    }

    /// Runs a shell script to its end: standard output, standard error, outcome.
    async fn shell(&self, script: &str) -> (String, String, Outcome) {
        self.run(spec(&["sh", "-c", script])).await.unwrap()
    }

    async fn run(&self, spec: ExecSpec) -> Result<(String, String, Outcome), SpawnError> {
        let (out, stdout) = rustix::pipe::pipe().unwrap();
        let (err, stderr) = rustix::pipe::pipe().unwrap();
        let stdio = StdioFds { stdin: None, stdout: Some(stdout), stderr: Some(stderr) };
        let mut process = self.container.spawn(spec, stdio).await?;
        let (out, err) = (read(out), read(err));
        let outcome = process.wait().await;
        Ok((out.await.unwrap(), err.await.unwrap(), outcome))
    }

    fn session_cgroups(&self) -> usize {
        let sessions =
            |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b"session-");
        fs::read_dir(&self.cgroup).unwrap().flatten().filter(sessions).count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.container.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The kernel removes members after the kill returns.
        while fs::read_to_string(self.cgroup.join("cgroup.events"))
            .is_ok_and(|text| text.contains("populated 1"))
        {
            assert!(Instant::now() < deadline, "the container's processes do not end");
            std::thread::yield_now();
        }
        for entry in fs::read_dir(&self.cgroup).unwrap().flatten() {
            fs::remove_dir(entry.path()).ok();
        }
        fs::remove_dir(&self.cgroup).ok();
        fs::remove_dir(self.cgroup.parent().unwrap()).ok();
    }
}

fn pair(name: &str, value: &str) -> (Bytes, Bytes) {
    (Bytes::from(name.as_bytes()), Bytes::from(value.as_bytes()))
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

fn read(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // A terminal's master fails with EIO when the last slave is closed: that is its end.
        fs::File::from(fd).read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process with this word in its arguments lives anywhere on the machine.
fn alive(word: &str) -> bool {
    let has = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
        })
    };
    fs::read_dir("/proc").unwrap().flatten().any(|entry| has(&entry))
}

#[tokio::test]
async fn status_and_streams_are_exact() {
    let fixture = Fixture::start().await;
    let (out, err, outcome) = fixture.shell("echo out; echo err >&2; exit 7").await;
    assert_eq!((out.as_str(), err.as_str(), outcome), ("out\n", "err\n", Outcome::Exited(7)));
    let (_, _, outcome) = fixture.shell("kill -9 $$").await;
    assert_eq!(outcome, Outcome::Signaled(9));
}

#[tokio::test]
async fn the_container_sees_only_itself() {
    let fixture = Fixture::start().await;
    let (out, _, _) = fixture
        .shell(
            "cat /proc/sys/kernel/hostname; cat /proc/1/comm; ls /dev; cat /proc/self/cgroup; ls /",
        )
        .await;
    assert!(out.starts_with("a-sandbox\n"), "{out}");
    assert!(out.contains("urandom") && !out.contains("vda") && !out.contains("vport"), "{out}");
    assert!(out.contains("0::/session-"), "the cgroup namespace starts at the container: {out}");
}

#[tokio::test]
async fn user_environment_and_directory_have_defaults_and_can_be_set() {
    let fixture = Fixture::start().await;
    let (out, _, _) = fixture.shell("id -u; id -G; pwd; echo $HOME $USER $OF_SANDBOX $BOTH").await;
    assert_eq!(out, "1000\n1000 999\n/home/agent\n/home/agent agent 1 sandbox\n");
    let mut as_root = spec(&["sh", "-c", "id -u; pwd; echo $HOME $BOTH"]);
    as_root.user = Some("root".to_owned());
    as_root.directory = Some(Bytes::from("/tmp"));
    as_root.environment = vec![pair("BOTH", "session")];
    assert_eq!(fixture.run(as_root).await.unwrap().0, "0\n/tmp\n/root session\n");
}

#[tokio::test]
async fn a_session_begins_in_a_cgroup_of_its_own() {
    let fixture = Fixture::start().await;
    for number in 1..=2 {
        let (out, _, _) = fixture.shell("cat /proc/self/cgroup").await;
        let line = format!("0::/session-{number}");
        assert!(out.lines().any(|found| found == line), "{out}");
    }
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let fixture = Fixture::start().await;
    let kind = async |spec: ExecSpec| fixture.run(spec).await.unwrap_err().kind;
    assert_eq!(kind(spec(&["no-such-program"])).await, ExecFailure::NotFound);
    assert_eq!(kind(spec(&["/bin/not-a-program"])).await, ExecFailure::NotExecutable);
    assert_eq!(kind(spec(&["/tmp"])).await, ExecFailure::NotExecutable);
    for script in ["no-interpreter", "/bin/no-interpreter"] {
        let error = fixture.run(spec(&[script])).await.unwrap_err();
        assert_eq!(error.kind, ExecFailure::NotExecutable);
        let said = "`/bin/no-interpreter` cannot be run: the interpreter that it names is not in the sandbox";
        assert_eq!(error.message, said);
    }
    assert_eq!(kind(spec(&[""])).await, ExecFailure::Invalid);
    let mut wrong = spec(&["true"]);
    wrong.user = Some("nobody-here".to_owned());
    assert_eq!(kind(wrong.clone()).await, ExecFailure::Invalid);
    wrong.user = None;
    wrong.directory = Some(Bytes::from("/no/such/directory"));
    assert_eq!(kind(wrong).await, ExecFailure::Invalid);
    // A cgroup goes with the first look after its last process was reaped; each session's start and end is a look.
    for _ in 0..100 {
        fixture.shell("true").await;
        if fixture.session_cgroups() <= 1 {
            return;
        }
    }
    panic!("{} cgroups stay", fixture.session_cgroups());
}

#[tokio::test]
async fn root_has_the_usual_capabilities_and_all_of_them_when_privileged() {
    let fixture = Fixture::start().await;
    let bounding = async |privileged: bool| {
        let mut spec = spec(&["sh", "-c", "cat /proc/self/status"]);
        spec.user = Some("root".to_owned());
        spec.privileged = privileged;
        let (out, _, _) = fixture.run(spec).await.unwrap();
        let line =
            out.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
        u64::from_str_radix(&line, 16).unwrap()
    };
    let (usual, all) = (bounding(false).await, bounding(true).await);
    let (sys_module, sys_admin, setuid) = (1 << 16, 1 << 21, 1 << 7);
    assert_eq!(usual & (sys_module | sys_admin), 0);
    assert_ne!(usual & setuid, 0, "sudo needs it");
    assert_eq!(all & sys_admin, sys_admin);
}

fn terminal(arguments: &[&str]) -> ExecSpec {
    ExecSpec { tty: Some(WindowSize { rows: 33, columns: 101 }), ..spec(arguments) }
}

async fn in_terminal(fixture: &Fixture, spec: ExecSpec) -> (Process, fs::File) {
    let mut process = fixture.container.spawn(spec, StdioFds::default()).await.unwrap();
    let master = fs::File::from(process.terminal.take().unwrap());
    (process, master)
}

#[tokio::test]
async fn a_terminal_has_its_size_and_belongs_to_the_user() {
    let fixture = Fixture::start().await;
    let (mut process, master) =
        in_terminal(&fixture, terminal(&["sh", "-c", "stty size; tty; id -u; echo x >$(tty)"]))
            .await;
    let text = read(master.into()).await.unwrap();
    assert_eq!(process.wait().await, Outcome::Exited(0));
    assert_eq!(text.replace('\r', ""), "33 101\n/dev/pts/0\n1000\nx\n");
}

#[tokio::test]
async fn control_c_reaches_the_foreground_process() {
    let fixture = Fixture::start().await;
    let (mut process, mut master) =
        in_terminal(&fixture, terminal(&["sh", "-c", "echo ready; sleep 1000"])).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"ready\r\n") {
        let mut byte = [0];
        master.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    master.write_all(b"\x03").unwrap();
    let outcome = process.wait().await;
    assert!(matches!(outcome, Outcome::Signaled(2) | Outcome::Exited(130)), "{outcome:?}");
}

#[tokio::test]
async fn killing_the_tree_misses_no_daemon() {
    let fixture = Fixture::start().await;
    let script = "(setsid sh -c 'setsid sleep 98761 & exit' &); exec sleep 98762";
    let mut process =
        fixture.container.spawn(spec(&["sh", "-c", script]), StdioFds::default()).await.unwrap();
    eventually("both sleep", || alive("98761") && alive("98762")).await;
    process.kill_tree().unwrap();
    assert_eq!(process.wait().await, Outcome::Signaled(9));
    eventually("both are gone", || !alive("98761") && !alive("98762")).await;
    drop(process);
}

#[tokio::test]
async fn what_a_command_leaves_behind_lives_on_until_it_ends_itself() {
    let fixture = Fixture::start().await;
    let (_, _, outcome) = fixture.shell("sleep 98763 >/dev/null 2>&1 </dev/null & exit 0").await;
    assert_eq!(outcome, Outcome::Exited(0));
    assert!(alive("98763"));
    assert_eq!(fixture.session_cgroups(), 1, "its cgroup is still needed");
    let mut as_root = spec(&["sh", "-c", "kill -9 -1"]);
    as_root.user = Some("root".to_owned());
    fixture.run(as_root).await.unwrap();
    eventually("it is gone", || !alive("98763")).await;
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let fixture = Fixture::start().await;
    let mut process = fixture
        .container
        .spawn(spec(&["sh", "-c", "sleep 98764 & sleep 98764; wait"]), StdioFds::default())
        .await
        .unwrap();
    eventually("it sleeps", || alive("98764")).await;
    process.signal(15).await.unwrap();
    assert_eq!(process.wait().await, Outcome::Signaled(15));
    eventually("its child is gone", || !alive("98764")).await;
}

#[tokio::test]
async fn hundreds_of_sessions_leave_nothing() {
    let fixture = Fixture::start().await;
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    fixture.shell("true").await;
    let before = descriptors();
    for round in 0..300 {
        let (out, _, outcome) = fixture.shell(&format!("echo {round}")).await;
        assert_eq!((out, outcome), (format!("{round}\n"), Outcome::Exited(0)));
    }
    assert_eq!(descriptors(), before);
    fixture.shell("true").await;
    // The last one may still be on its way out.
    assert!(fixture.session_cgroups() <= 1);
    let (out, _, _) = fixture.shell("ls /proc | grep -c '^[0-9]'").await;
    assert!(out.trim().parse::<u32>().unwrap() <= 5, "zombies or survivors: {out}");
}

#[tokio::test]
async fn a_killed_container_ends_everything_and_says_so() {
    let fixture = Fixture::start().await;
    let mut process =
        fixture.container.spawn(spec(&["sleep", "98765"]), StdioFds::default()).await.unwrap();
    fixture.container.kill().unwrap();
    fixture.container.ended().await;
    assert_eq!(process.wait().await, Outcome::Signaled(9));
    let refused = fixture.run(spec(&["true"])).await.unwrap_err();
    assert_eq!(refused.kind, ExecFailure::Refused);
}

#[tokio::test]
async fn a_long_argument_list_arrives_whole() {
    let fixture = Fixture::start().await;
    let long = "x".repeat(100_000);
    let (out, _, _) = fixture
        .run(spec(&["sh", "-c", "echo -n \"$@\" | wc -c", "sh", &long, &long]))
        .await
        .unwrap();
    assert_eq!(out.trim(), "200001");
}

#[test]
fn without_its_socket_the_supervisor_refuses_to_run() {
    let run = |arguments: &[&str]| {
        #[expect(clippy::disallowed_methods, reason = "the test runs init itself")]
        Command::new(env!("CARGO_BIN_EXE_hutch-init")).args(arguments).output().unwrap()
    };
    assert_eq!(run(&["container"]).status.code(), Some(2));
}

#[tokio::test]
async fn a_changed_variable_is_that_of_later_sessions_and_a_persons_still_wins() {
    let fixture = Fixture::start().await;
    let changed = vec![pair("OF_SANDBOX", "2"), pair("NEW", "3")];
    let all = fixture.container.change_environment(changed);
    assert_eq!(all.len(), 3, "{all:?}");
    let mut spec = spec(&["sh", "-c", "echo $OF_SANDBOX $BOTH $NEW"]);
    spec.environment = vec![pair("BOTH", "session")];
    assert_eq!(fixture.run(spec).await.unwrap().0, "2 session 3\n");
}

#[tokio::test]
async fn the_docker_socket_is_the_users_and_somebody_listens() {
    let fixture = Fixture::start().await;
    let (out, ..) = fixture
        .shell("busybox stat -c '%F %a %u %g' /run/docker.sock; readlink /run/hutch/bin/runc; head -c 4 /run/hutch/init | wc -c; : > /run/hutch/init")
        .await;
    assert_eq!(out, "socket 660 1000 999\n/run/hutch/init\n4\n");
    let socket = fixture.container.take_engine_socket().expect("it was made");
    assert!(rustix::net::sockopt::socket_acceptconn(&socket).unwrap());
    assert!(fixture.container.take_engine_socket().is_none());
}
