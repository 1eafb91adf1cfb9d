//! Each part killed at each moment, a full disk, damaged state, a hostile guest.

use std::fs;
use std::time::Duration;

use hutch_testkit::{TestEnvironment, TestSandbox, eventually, hostile, small_disk::SmallDisk};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);
const PARTS: [&str; 3] = ["hutch-keeper", "hutch-workspace", "qemu-system"];

/// After a part was killed: nothing runs, and the next command repairs it with every synced file.
#[track_caller]
fn recovers(environment: &TestEnvironment, sandbox: &TestSandbox<'_>, what: &str) {
    sandbox.becomes("stopped", SOON);
    environment.is_quiet();
    sandbox.shell("cat ~/synced").run().success().says("synced");
    assert_eq!(sandbox.status(), "running", "{what}");
}

fn prepared<'e>(environment: &'e TestEnvironment, name: &str) -> TestSandbox<'e> {
    let sandbox = environment.boot(name);
    sandbox.shell("echo synced > ~/synced && sync").run().success();
    sandbox
}

#[test]
fn each_part_killed_while_ready() {
    let environment = TestEnvironment::new();
    let sandbox = prepared(&environment, "ready");
    for part in PARTS {
        let session = sandbox.exec(["sleep", "1000"]).start();
        eventually("the session runs", SOON, || {
            sandbox.exec(["pgrep", "-x", "sleep"]).run().status.success().then_some(())
        });
        environment.process(part).signal(Signal::KILL);
        // Nobody waits for ever: the session ends with a failure of its own.
        session.wait(SOON).failure();
        recovers(&environment, &sandbox, part);
    }
    let end = &sandbox.inspect();
    assert!(!end.to_string().is_empty());
}

#[test]
fn each_part_killed_while_booting() {
    let environment = TestEnvironment::new();
    let sandbox = prepared(&environment, "booting");
    for part in PARTS {
        sandbox.stop();
        let start = sandbox.exec(["true"]).start();
        let victim = eventually(&format!("{part} is there"), SOON, || {
            environment.processes().into_iter().find(|process| process.program.starts_with(part))
        });
        victim.signal(Signal::KILL);
        // The command that waited starts it again, or says why it cannot. It never waits for ever.
        let outcome = start.wait(SOON);
        if outcome.status.success() {
            sandbox.stop();
        } else {
            let outcome = outcome.failure();
            assert!(!outcome.talk().trim().is_empty(), "{part}: no reason is given");
        }
        recovers(&environment, &sandbox, part);
    }
}

#[test]
fn each_part_killed_while_stopping() {
    let environment = TestEnvironment::new();
    let sandbox = prepared(&environment, "stopping");
    for part in PARTS {
        // Something that takes a while to go away keeps the stop busy.
        sandbox
            .exec_with(["-d"], ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
            .run()
            .success();
        let victim = environment.process(part);
        let stop = environment.hutch(["stop", sandbox.name()]).start();
        eventually("it is stopping", SOON, || stopping(&environment).then_some(()));
        victim.signal(Signal::KILL);
        let outcome = stop.wait(SOON);
        assert!(outcome.status.code().is_some(), "{outcome:?}");
        recovers(&environment, &sandbox, part);
    }
}

/// Whether the keeper's log says that it is on its way down.
fn stopping(environment: &TestEnvironment) -> bool {
    let log = environment.state().join("sandboxes/stopping/logs/keeper.log");
    fs::read_to_string(log).is_ok_and(|log| log.to_lowercase().contains("stopping"))
}

#[test]
fn the_command_that_starts_a_sandbox_is_killed() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("orphan");
    let start = sandbox.exec(["true"]).start();
    eventually("the VM is there", SOON, || {
        environment
            .processes()
            .iter()
            .any(|process| process.program.starts_with("qemu-system"))
            .then_some(())
    });
    start.signal(Signal::KILL);
    // The keeper outlives its caller: the sandbox comes up and answers.
    sandbox.exec(["echo", "alive"]).run().success().says("alive");
}

#[test]
fn a_create_that_is_killed_leaves_no_half_sandbox() {
    let environment = TestEnvironment::new();
    let project = environment.project("half");
    for _ in 0..5 {
        let create =
            environment.hutch(["create", "-q", "--name", "half", "shell"]).args([&project]).start();
        eventually("it writes or is done", SOON, || {
            (!hutch_testkit::environment::files(&environment.state()).is_empty()).then_some(())
        });
        create.signal(Signal::KILL);
        drop(create.wait(SOON));
        let listed = environment.hutch(["ls", "-q"]).run().success().text();
        if !listed.is_empty() {
            environment.hutch(["rm", "half"]).run().success();
        }
    }
    let sandbox = environment.create_on("half", &project);
    sandbox.exec(["true"]).run().success();
}

#[test]
fn damaged_state_of_one_sandbox_is_named_and_harms_no_other() {
    let environment = TestEnvironment::new();
    let good = environment.create("good");
    for (name, damage) in [
        ("empty", &b""[..]),
        ("truncated", &br#"{"format_version": 1, "na"#[..]),
        ("binary", &[0, 159, 146, 150, 255][..]),
        ("future", &br#"{"format_version": 99}"#[..]),
        ("wrong", &br#"["a list"]"#[..]),
    ] {
        let sandbox = environment.create(name);
        environment.write(&sandbox.directory().join("sandbox.json"), damage);
        // The list goes on, the sandbox itself is an error that names the file or the sandbox.
        let list = environment.hutch(["ls"]).run().success();
        assert!(list.text().contains("good"), "{list:?}");
        sandbox.exec(["true"]).run().failure().complains(name);
        environment.hutch(["rm", name]).run().success();
    }
    // Other files: what they say is lost, the sandbox is not.
    for file in ["status.json", "keeper.json"] {
        environment.write(&good.directory().join(file), "{ damaged");
        environment.hutch(["ls"]).run().success();
        environment.hutch(["inspect", "good"]).run().success();
    }
    good.exec(["echo", "fine"]).run().success().says("fine");
}

#[test]
fn a_damaged_data_disk_is_a_clear_failure() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("disk");
    environment.write(&sandbox.directory().join("data.img"), vec![0x5a; 4 << 20]);
    let outcome = sandbox.exec(["true"]).run().failure();
    assert!(outcome.talk().contains("disk"), "{outcome:?}");
    sandbox.becomes("stopped", SOON);
    environment.is_quiet();
    fs::remove_file(sandbox.directory().join("data.img")).expect("it can be removed");
    sandbox.exec(["true"]).run().failure();
}

#[test]
fn as_root_a_full_disk_is_a_clear_failure_and_keeps_the_old_state() {
    let disk = SmallDisk::new(48 << 20);
    let mut environment = TestEnvironment::new();
    environment.move_state(&disk.path());
    let first = environment.boot("first");
    first.shell("echo synced > ~/synced && sync").run().success();
    first.stop();

    disk.fill();
    let project = environment.project("second");
    let outcome = environment
        .hutch(["create", "-q", "--name", "second", "shell"])
        .args([&project])
        .run()
        .failure();
    assert!(outcome.talk().contains("space"), "{outcome:?}");
    let listed = environment.hutch(["ls", "-q"]).run().success().text();
    assert_eq!(listed, "first");
    let left = hutch_testkit::environment::files(&environment.state());
    assert!(!left.iter().any(|file| file.to_string_lossy().contains("second")), "{left:?}");

    // What is there can still be listed, inspected and removed.
    environment.hutch(["inspect", "first"]).run().success();
    disk.drain();
    first.shell("cat ~/synced").run().success().says("synced");
    // Full while it runs: the sandbox sees errors, the host's state stays whole.
    disk.fill();
    let outcome = first
        .shell("dd if=/dev/urandom of=$HOME/big bs=1M count=64 status=none && sync && echo written")
        .limit(SOON)
        .run();
    assert!(!outcome.text().contains("written") || disk.free() > 0, "{outcome:?}");
    environment.hutch(["stop", "first"]).limit(SOON * 2).run();
    disk.drain();
    assert_eq!(environment.hutch(["ls", "-q"]).run().success().text(), "first");
    first.shell("cat ~/synced").run().success().says("synced");
    environment.hutch(["reset", "--force"]).run().success();
    environment.is_quiet();
    drop(environment);
    drop(disk);
}

#[test]
fn a_guest_kernel_panic_stops_that_sandbox_with_a_reason() {
    let environment = TestEnvironment::new();
    let other = environment.boot("other");
    let sandbox = environment.create("panics");
    let keeper = hostile::start(&environment, &sandbox, hostile::Attack::Panic);
    keeper.wait(SOON);
    sandbox.becomes("stopped", SOON);
    let inspected = sandbox.inspect().to_string();
    assert!(inspected.contains("panic") || inspected.contains("crash"), "{inspected}");
    other.exec(["echo", "unharmed"]).run().success().says("unharmed");
}

#[test]
fn a_guest_that_floods_every_port_is_bounded_and_stopped() {
    attack(hostile::Attack::Flood);
}

#[test]
fn a_guest_that_sends_garbage_is_stopped() {
    attack(hostile::Attack::Garbage);
}

#[test]
fn a_guest_that_announces_huge_messages_is_stopped() {
    attack(hostile::Attack::HugeFrames);
}

#[test]
fn a_guest_that_says_nothing_is_given_up() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("silent");
    let keeper = hostile::start(&environment, &sandbox, hostile::Attack::Silence);
    let outcome = keeper.wait(Duration::from_secs(170));
    assert!(outcome.status.code().is_some(), "{outcome:?}");
    sandbox.becomes("stopped", SOON);
    environment.is_quiet();
}

/// The sandbox ends with a reason, its keeper's memory stays small, and another sandbox works all the while.
#[track_caller]
fn attack(attack: hostile::Attack) {
    let environment = TestEnvironment::new();
    let other = environment.boot("other");
    let sandbox = environment.create("hostile");
    let keeper = hostile::start(&environment, &sandbox, attack);
    let pid = keeper.pid();
    let mut largest = 0;
    eventually("the keeper gives up", SOON, || {
        largest = largest.max(hostile::resident_bytes(pid));
        (!hutch_testkit::traces::alive(pid)).then_some(())
    });
    keeper.wait(SOON);
    assert!(largest < 128 << 20, "the keeper held {largest} bytes");
    sandbox.becomes("stopped", SOON);
    let serial = sandbox.directory().join("logs/serial.log").metadata().map_or(0, |log| log.len());
    assert!(serial <= 17 << 20, "the serial log has {serial} bytes");
    other.exec(["echo", "unharmed"]).run().success().says("unharmed");
}
