//! A sandbox comes up as promised.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutch_testkit::TestEnvironment;

#[test]
fn run_shell_passes_streams_and_status_through() {
    let environment = TestEnvironment::new();
    let project = environment.project("my project");
    let run = environment
        .hutch(["run", "-q", "shell"])
        .args([&project])
        .args(["--", "-c", "echo out; echo err >&2; pwd; exit 7"])
        .run()
        .code(7);
    assert_eq!(run.text(), format!("out\n{}", project.display()));
    assert!(run.talk().contains("err\n"), "{run:?}");
    assert!(!run.talk().contains("out"), "{run:?}");
}

#[test]
fn the_machine_is_its_own_and_has_what_was_promised() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("own");
    let shell = |script: &str| sandbox.shell(script).run().success().text();

    assert_eq!(
        shell("id -un; id -u; id -g; echo $HOME; echo $SHELL"),
        "agent\n1000\n1000\n/home/agent\n/bin/bash"
    );
    assert_eq!(shell("sudo -n id -u"), "0");
    assert_eq!(shell("hostname"), "own");
    assert_ne!(shell("uname -r"), host_release());
    // Nothing that leads anywhere: what has a route to everywhere ends in init, which passes it on by the channel.
    assert_eq!(shell("ls /sys/class/net"), "egress\nlo");
    assert_eq!(shell("ls -d /sys/class/net/*/device 2>/dev/null | wc -l"), "0");

    let guest: u64 = shell("date +%s").parse().expect("a time");
    let host = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(guest.abs_diff(host) <= 5, "clock of the guest {guest}, of the host {host}");

    let id = shell("cat /etc/machine-id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(
        shell("readlink /proc/1/ns/pid >/dev/null 2>&1; cat /proc/sys/kernel/random/entropy_avail"),
        "256"
    );
}

#[test]
fn the_template_has_the_base_environment() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("base");
    let tools = "docker git gh node npm go python3 pip uv make jq rg curl vi sudo ssh";
    let script =
        format!("for tool in {tools}; do command -v $tool >/dev/null || echo missing $tool; done");
    assert_eq!(sandbox.shell(&script).run().success().text(), "");
    sandbox.shell("docker buildx version && docker compose version").run().success();
    sandbox.shell("git --version && node --version && go version && uv --version").run().success();
}

#[test]
fn processors_memory_and_disk_are_as_asked() {
    let environment = TestEnvironment::new();
    let project = environment.project("sized");
    environment
        .hutch([
            "create", "-q", "--name", "sized", "--cpus", "2", "--memory", "1g", "--disk", "3g",
            "shell",
        ])
        .args([&project])
        .run()
        .success();
    let ask = |script: &str| {
        environment
            .hutch(["exec", "sized", "sh", "-c", script])
            .run()
            .success()
            .text()
            .parse::<u64>()
            .expect(script)
    };
    assert_eq!(ask("nproc"), 2);
    let memory = ask("awk '/^MemTotal/ { print $2 }' /proc/meminfo");
    assert!((850_000..=1_048_576).contains(&memory), "memory of {memory} KiB");
    let disk = ask("df --output=size -BM / | tail -1 | tr -dc 0-9");
    assert!((2500..=3072).contains(&disk), "disk of {disk} MiB");
}

#[test]
fn a_cold_start_is_quick_enough() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("quick");
    // The first start also formats nothing and builds nothing: create did.
    let took = sandbox.exec(["true"]).run().success().took;
    // 8 s is the promise for a machine of our own; the tests share it with another VM.
    assert!(took < Duration::from_secs(30), "cold start took {took:?}");
}

#[test]
fn as_root_a_sandbox_runs_too() {
    let environment = TestEnvironment::as_root();
    let sandbox = environment.boot("root");
    sandbox.shell("echo from inside > file; id -un").run().success().says("agent");
    let file = sandbox.workspace().join("file");
    assert_eq!(std::fs::read_to_string(&file).expect("the file is here"), "from inside\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&file.metadata().expect("the file is here"));
    assert_eq!(owner, 0);
}

fn host_release() -> String {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host has a kernel");
    release.trim_end().to_owned()
}
