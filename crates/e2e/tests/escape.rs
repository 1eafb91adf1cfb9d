//! An attack on each barrier of `docs/threat-model.md`.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use hutch_testkit::hostile::template_layer;
use hutch_testkit::{Account, Invocation, TestEnvironment};

const SECRET: &str = "content-of-a-private-file-of-the-host";
const RACES: &str = include_str!("guest/races.py");

#[test]
fn nothing_outside_the_workspace_can_be_read_or_written() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("inside");
    let outside = environment.path("work/outside");
    environment.make_directory(&outside);
    environment.write(&outside.join("private"), SECRET);
    let workspace = sandbox.workspace();
    // Links that are already there when the sandbox starts, as a checkout may bring them.
    environment.account().act(|| {
        symlink(&outside, workspace.join("host-absolute")).expect("a link can be made");
        symlink("../outside", workspace.join("host-relative")).expect("a link can be made");
        symlink("../outside/private", workspace.join("host-file")).expect("a link can be made");
        symlink("/proc/self/root", workspace.join("host-magic")).expect("a link can be made");
        symlink("/proc/1/cwd", workspace.join("host-magic-cwd")).expect("a link can be made");
    });
    let script = format!(
        "ln -s {out} absolute; ln -s ../outside relative; ln -s ../../../../../../../../{out} far; \
         for d in absolute relative far host-absolute host-relative host-magic{out} host-magic-cwd . .. ../outside {out}; do \
           cat $d/private 2>/dev/null; cat $d/../outside/private 2>/dev/null; echo attack > $d/planted 2>/dev/null; \
           mkdir $d/planted-directory 2>/dev/null; ln $d/private linked 2>/dev/null; mv $d/private stolen 2>/dev/null; rm -f $d/private 2>/dev/null; \
         done; cat host-file linked stolen 2>/dev/null; grep -rs {SECRET} . | head -1; echo end",
        out = outside.display()
    );
    for user in ["agent", "root"] {
        let run =
            sandbox.exec_with(["--privileged", "-u", user], ["sh", "-c", &script]).run().success();
        assert!(!run.text().contains(SECRET), "{run:?}");
        assert!(run.text().ends_with("end"), "{run:?}");
    }
    let left: Vec<_> = fs::read_dir(&outside)
        .expect("it is here")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["private"]);
    assert_eq!(fs::read_to_string(outside.join("private")).expect("it is here"), SECRET);
    let around: BTreeSet<_> = fs::read_dir(environment.path("work"))
        .expect("it is here")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(around.len(), 2, "{around:?}");
}

#[test]
fn races_of_links_and_renames_do_not_lead_outside() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("races");
    let outside = environment.path("work/outside");
    environment.make_directory(&outside);
    environment.write(&outside.join("private"), SECRET);
    let races = sandbox
        .exec(["python3", "-c", RACES, &outside.to_string_lossy()])
        .limit(Duration::from_secs(120))
        .run()
        .success();
    races.says("nothing leaked");
    let left: Vec<_> = fs::read_dir(&outside)
        .expect("it is here")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["private"]);
    assert_eq!(fs::read_to_string(outside.join("private")).expect("it is here"), SECRET);
}

#[test]
fn a_fifo_in_the_workspace_blocks_nobody_else() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("fifo");
    let pipe = sandbox.workspace().join("pipe");
    environment.program("mkfifo").args([&pipe]).run().success();
    environment.write(&sandbox.workspace().join("file"), "read");
    let blocked: Vec<_> = (0..20).map(|_| sandbox.exec(["cat", "pipe"]).start()).collect();
    sandbox.exec(["cat", "file"]).run().success().says("read");
    sandbox.shell("stat -c %F pipe").run().success().says("fifo");
    for reader in blocked {
        reader.signal(rustix::process::Signal::KILL);
    }
}

#[test]
fn there_is_no_network_device_and_no_way_to_the_host() {
    let environment = TestEnvironment::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the host");
    let port = listener.local_addr().expect("it has an address").port();
    listener.set_nonblocking(true).expect("a listener can be non-blocking");
    let sandbox = environment.boot("alone");
    // A captured connection is accepted inside before the host is asked: what counts is what arrives.
    let script = format!(
        "for a in 127.0.0.1 10.0.2.2 169.254.169.254 192.168.1.1 host.docker.internal ::1; do \
           timeout 5 bash -c \"exec 3<>/dev/tcp/$a/{port}; echo x >&3; cat <&3\" 2>/dev/null; done; \
         ls /sys/class/net; cat /sys/class/net/*/address; ls /dev/vsock 2>/dev/null; echo end"
    );
    let run =
        sandbox.exec_with(["--privileged", "-u", "root"], ["bash", "-c", &script]).run().success();
    // The other device leads nowhere: it is there so that there is a route.
    let devices: Vec<String> = run.lines().into_iter().filter(|line| !line.contains(':')).collect();
    assert_eq!(devices, ["egress", "lo", "end"], "{run:?}");
    assert!(listener.accept().is_err());
}

#[test]
fn the_vmm_has_no_rights_and_holds_only_its_own_files() {
    let environment = TestEnvironment::new();
    environment.boot("confined");
    let vmm = environment.process("qemu-system");
    assert_confined(vmm.pid);
    // Its own disks and the images, nothing else that has a name.
    for file in open_files(vmm.pid) {
        let own = file.starts_with(environment.root()) || file.starts_with(environment.images());
        assert!(own || file == Path::new("/dev/null"), "the VMM holds {}", file.display());
    }
}

#[test]
fn the_workspace_worker_has_no_rights_and_holds_only_the_workspace() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("worker");
    let worker = environment.process("hutch-workspace");
    assert_confined(worker.pid);
    // Its own descriptors: that is how it opens again what it holds.
    let descriptors = std::path::PathBuf::from(format!("/proc/{}/fd", worker.pid));
    for file in open_files(worker.pid) {
        let own = file.starts_with(sandbox.workspace())
            || file.starts_with(sandbox.directory().join("logs"));
        assert!(
            own || file == Path::new("/dev/null") || file == descriptors,
            "the worker holds {}",
            file.display()
        );
    }
}

#[test]
fn the_proxy_has_no_rights_and_holds_only_its_own_directory() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("proxy");
    let all = environment.processes();
    let processes: Vec<_> = all.iter().filter(|process| process.program == "hutch-proxy").collect();
    assert_eq!(processes.len(), 2, "worker and broker among {all:#?}");
    for process in processes {
        assert_confined(process.pid);
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        assert!(core.is_some_and(|line| line.split_whitespace().nth(4) == Some("0")), "{limits}");
        for file in open_files(process.pid) {
            let own = file.starts_with(sandbox.directory().join("network"))
                || file.starts_with(sandbox.directory().join("logs"));
            assert!(own || file == Path::new("/dev/null"), "it holds {}", file.display());
        }
    }
}

#[test]
fn as_root_the_vmm_and_the_worker_have_no_rights_either() {
    let environment = TestEnvironment::as_root();
    environment.boot("confined");
    let vmm = environment.process("qemu-system").pid;
    assert_confined(vmm);
    assert_ne!(fs::metadata(format!("/proc/{vmm}")).expect("it runs").uid(), 0);
    let worker = environment.process("hutch-workspace").pid;
    assert_eq!(status_field(worker, "NoNewPrivs"), "1");
    assert_eq!(status_field(worker, "Seccomp"), "2");
}

#[test]
fn sockets_and_state_are_private() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("private");
    let private =
        |path: &Path| fs::metadata(path).expect("it is here").permissions().mode() & 0o077 == 0;
    let runtime = environment.path("run/hutch");
    assert!(private(&runtime), "{}", runtime.display());
    assert!(
        private(&sandbox.directory()) || private(&environment.state().join("sandboxes")),
        "the state can be read by others"
    );
}

#[test]
fn as_root_another_user_cannot_reach_the_keeper() {
    let environment = TestEnvironment::new();
    environment.boot("private");
    let socket = environment
        .sockets()
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "sock"))
        .expect("the keeper listens");
    // The directories would not let anyone in; even with them open, the keeper does not answer another user.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(environment.path("run"), open.clone()).expect("root may");
    fs::set_permissions(environment.path("run/hutch"), open).expect("root may");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).expect("root may");
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.settimeout(10)\n\
        s.connect(sys.argv[1])\n\
        try:\n\
        \x20 s.sendall(b'x' * 64)\n\
        \x20 answer = s.recv(100)\n\
        except ConnectionError: answer = b''\n\
        print(len(answer))";
    let stranger = Account { uid: 65_534, gid: 65_534 };
    Invocation::new("python3", stranger)
        .args(["-c", script])
        .args([&socket])
        .run()
        .success()
        .says("0");
    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(environment.path("run/hutch"), closed.clone()).expect("root may");
    fs::set_permissions(environment.path("run"), closed).expect("root may");
}

#[test]
fn the_template_cannot_be_changed() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("template");
    let template = template_layer(&environment.images());
    let before = fs::metadata(&template).expect("it is here");
    let script = "for disk in /dev/vd? /sys/block/vd?; do d=/dev/$(basename $disk); \
        [ -e $d ] || mknod $d b $(cat /sys/block/$(basename $disk)/dev | tr : ' '); done; \
        for disk in /dev/vd?; do [ \"$(cat /sys/block/$(basename $disk)/ro)\" = 1 ] || continue; \
        blockdev --setrw $disk 2>/dev/null; dd if=/dev/zero of=$disk bs=4096 count=1 conv=fsync 2>/dev/null && echo written; done; echo end";
    sandbox
        .exec_with(["--privileged", "-u", "root"], ["bash", "-c", script])
        .run()
        .success()
        .says("end");
    let after = fs::metadata(&template).expect("it is here");
    assert_eq!(
        (before.len(), before.mtime(), before.mtime_nsec()),
        (after.len(), after.mtime(), after.mtime_nsec())
    );
}

#[test]
fn two_sandboxes_share_nothing() {
    let environment = TestEnvironment::new();
    let (one, two) = (environment.boot("one"), environment.boot("two"));
    one.root_shell(
        "echo mark > /usr/local/mark; echo mark > /tmp/mark; echo mark > /home/agent/mark",
    )
    .run()
    .success();
    two.root_shell("ls /usr/local/mark /tmp/mark /home/agent/mark 2>/dev/null | wc -l")
        .run()
        .success()
        .says("0");
    two.exec([Path::new("ls"), one.workspace()]).run().failure();
    let id = |sandbox: &hutch_testkit::TestSandbox<'_>| {
        sandbox.shell("cat /etc/machine-id").run().success().text()
    };
    assert_ne!(id(&one), id(&two));
    let random = |sandbox: &hutch_testkit::TestSandbox<'_>| {
        sandbox.shell("head -c 16 /dev/urandom | base64").run().success().text()
    };
    assert_ne!(random(&one), random(&two));
}

#[test]
fn a_session_is_in_a_container_of_its_own() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("container");
    // Init, its ports and its file systems are out of reach, for root too.
    let script = "ls /dev/vport* /dev/virtio-ports 2>/dev/null; ls /proc | grep -c '^[0-9]'; \
        cat /proc/1/comm; ls / | tr '\\n' ' '";
    let run = sandbox.root_shell(script).run().success();
    let lines = run.lines();
    assert_eq!(lines.len(), 3, "{run:?}");
    assert!(lines[0].parse::<u32>().is_ok_and(|count| count < 12), "{run:?}");
    sandbox
        .shell("mount -t tmpfs none /mnt; echo 1 > /proc/sys/kernel/sysrq; kill -9 1; echo alive")
        .run()
        .success()
        .says("alive");
    sandbox
        .root_shell("insmod /nothing.ko 2>/dev/null; rmmod overlay 2>/dev/null; echo alive")
        .run()
        .success()
        .says("alive");
    // `b` would reboot the machine at once. Both files are empty devices in a sandbox.
    sandbox
        .root_shell("echo b > /proc/sysrq-trigger; head -c 1 /proc/kcore; echo alive")
        .run()
        .success()
        .says("alive");
}

#[test]
fn what_others_named_does_not_reach_the_terminal_raw() {
    let environment = TestEnvironment::new();
    let project = environment.project("a\u{1b}]0;title\u{7}b\u{9b}31m");
    environment
        .hutch(["create", "-q", "--name", "escape", "shell"])
        .args([&project])
        .run()
        .success();
    for command in ["ls", "inspect"] {
        let arguments = if command == "ls" { vec!["ls"] } else { vec!["inspect", "escape"] };
        let shown = environment.hutch(arguments).run().success();
        let raw = shown.text().chars().any(|char| char.is_control() && char != '\n');
        assert!(!raw, "{:?}", shown.text());
    }
}

/// No new privileges, a system-call filter, no capability, an empty environment.
#[track_caller]
fn assert_confined(pid: u32) {
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "Seccomp"), "2");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status_field(pid, set), 16), Ok(0), "{set}");
    }
    let variables = fs::read(format!("/proc/{pid}/environ")).expect("it runs");
    let variables = String::from_utf8_lossy(&variables);
    for variable in variables.split('\0').filter(|variable| !variable.is_empty()) {
        let name = variable.split('=').next().unwrap_or_default();
        assert!(["PATH", "LANG"].contains(&name), "it has the variable {name}");
    }
}

fn status_field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the kernel tells it").trim().to_owned()
}

/// What the process holds open that has a name in the file system.
fn open_files(pid: u32) -> Vec<std::path::PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .filter(|file| file.is_absolute() && !file.to_string_lossy().starts_with("/memfd:"))
        .collect()
}
