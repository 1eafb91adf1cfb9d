//! Snapshots are made and resumed step by step; each step is killed, or has no room. No sandbox breaks, nothing stays.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_testkit::small_disk::SmallDisk;
use hutch_testkit::traces::Process;
use hutch_testkit::{TestEnvironment, TestSandbox, eventually};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(90);
/// The parts of a sandbox that runs.
const PARTS: [&str; 4] = ["qemu-system", "hutch-workspace", "hutch-proxy", "hutch-keeper"];

fn world() -> TestEnvironment {
    let environment = TestEnvironment::new();
    let images = environment.path("images");
    environment.warm(&images)
}

/// What is in the directory of snapshots: complete ones, and those that are being made.
fn snapshots(images: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = fs::read_dir(images.join("snapshots")).into_iter().flatten().flatten();
    let directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.partition(|path| !path.to_string_lossy().contains(".making-"))
}

/// The guest that is saved, not the one that only tries what QEMU can do, nor QEMU asked for its version.
fn qemu(environment: &TestEnvironment) -> Option<Process> {
    let is_guest =
        |one: &Process| one.program.starts_with("qemu-system") && one.arguments.contains("-kernel");
    environment.processes().into_iter().find(is_guest)
}

/// How far the making has come, by what can be seen of it.
type Step = (&'static str, fn(&TestEnvironment, &Path) -> bool);

fn size(images: &Path, file: &str) -> u64 {
    let making = snapshots(images).1;
    let file = making.first().and_then(|making| fs::metadata(making.join(file)).ok());
    file.map_or(0, |of| of.blocks() * 512)
}

const STEPS: [Step; 6] = [
    ("a directory is made", |_, images| !snapshots(images).1.is_empty()),
    ("the VM runs", |environment, _| qemu(environment).is_some()),
    ("the guest boots", |_, images| size(images, "memory") > 40 << 20),
    ("the state is written", |_, images| size(images, "state") > 0),
    ("the result is tried", |environment, _| {
        qemu(environment).is_some_and(|qemu| qemu.arguments.contains("-incoming"))
    }),
    ("it is published", |_, images| !snapshots(images).0.is_empty()),
];

/// Waits for a step, or for the end of the making: the last steps may be over before they are seen.
#[track_caller]
fn reached(environment: &TestEnvironment, images: &Path, (what, step): Step) {
    let done = || step(environment, images) || !snapshots(images).0.is_empty();
    eventually(what, SOON, || done().then_some(()));
}

#[track_caller]
fn started(sandbox: &TestSandbox<'_>, how: &str) {
    sandbox.start();
    assert_eq!(sandbox.inspect()["started"], how, "{}", sandbox.name());
}

#[test]
fn a_maker_killed_at_each_step_leaves_nothing_that_stays() {
    let environment = world();
    let images = environment.path("images");
    for (at, step) in STEPS.into_iter().enumerate() {
        let maker = environment.hutch(["warm", "-q", "shell"]).start();
        reached(&environment, &images, step);
        for part in environment.processes() {
            if part.program.starts_with("hutch-keeper") {
                part.signal(Signal::KILL);
            }
        }
        drop(maker.wait(SOON));
        environment.is_quiet();
        let (complete, halves) = snapshots(&images);
        assert!(halves.len() <= 1, "what the one before left is gone: {halves:?}");
        assert!(complete.is_empty() || at >= 4, "{}: {complete:?}", step.0);
    }
    environment.hutch(["warm", "-q", "shell"]).run().success();
    let (complete, halves) = snapshots(&images);
    assert_eq!((complete.len(), halves.len()), (1, 0));
    let left: Vec<_> = environment
        .sockets()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("snapshot-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    started(&environment.create("after"), "warm");
}

#[test]
fn a_vm_that_dies_while_it_is_saved_is_a_clear_failure() {
    let environment = world();
    let images = environment.path("images");
    for step in &STEPS[1..5] {
        let maker = environment.hutch(["warm", "-q", "shell"]).start();
        reached(&environment, &images, *step);
        if let Some(qemu) = qemu(&environment) {
            qemu.signal(Signal::KILL);
        }
        let outcome = maker.wait(SOON);
        // It may have been done with this VM already; then what it made is good.
        if !outcome.status.success() {
            outcome.failure().complains("no snapshot was made");
            let (complete, halves) = snapshots(&images);
            assert_eq!((complete.len(), halves.len()), (0, 0), "{}", step.0);
        }
        environment.is_quiet();
    }
    let sandbox = environment.create("after");
    sandbox.exec(["true"]).run().success();
}

#[test]
fn each_part_killed_while_resuming() {
    let environment = world();
    let images = environment.path("images");
    environment.hutch(["warm", "-q", "shell"]).run().success();
    let sandbox = environment.create("resuming");
    started(&sandbox, "warm");
    sandbox.shell("echo synced > ~/synced && sync").run().success();
    for part in PARTS {
        sandbox.stop();
        environment.is_quiet();
        let start = sandbox.exec(["true"]).start();
        let victim = eventually(&format!("{part} is there"), SOON, || {
            let found = environment.processes();
            found.into_iter().find(|one| one.program.starts_with(part))
        });
        victim.signal(Signal::KILL);
        // The command starts it another way, or says why it cannot. It never waits for ever.
        let outcome = start.wait(SOON);
        if !outcome.status.success() {
            let outcome = outcome.failure();
            assert!(!outcome.talk().trim().is_empty(), "{part}: no reason is given");
        }
        sandbox.shell("cat ~/synced").run().success().says("synced");
    }
    // A snapshot that was taken for broken is made anew in the background.
    eventually("there is a snapshot", SOON, || {
        let makes = environment.processes().iter().any(|one| one.arguments.contains("snapshot "));
        (!makes && snapshots(&images).0.len() == 1).then_some(())
    });
    sandbox.stop();
    started(&sandbox, "warm");
}

#[test]
fn as_root_a_disk_that_is_full_at_each_step_of_the_making_gets_no_half_snapshot() {
    let disk = SmallDisk::new(600 << 20);
    let images = disk.path().join("images");
    let environment = TestEnvironment::as_root().warm(&images);
    let free = disk.free();
    for room in [0, 64 << 10, 1 << 20, 8 << 20, 24 << 20, 48 << 20] {
        disk.fill_but(room);
        let outcome = environment.hutch(["warm", "-q", "shell"]).limit(SOON).run().failure();
        outcome.complains("no snapshot was made");
        environment.is_quiet();
        let (complete, halves) = snapshots(&images);
        assert_eq!((complete.len(), halves.len()), (0, 0), "{room}");
        disk.drain();
        // A VM that was killed may still be on its way out, with the file that it had.
        eventually(&format!("nothing stays of {room}"), SOON, || {
            (disk.free() + (1 << 20) > free).then_some(())
        });
    }
    // What was not made is no reason not to start.
    disk.fill();
    let sandbox = environment.create("after");
    started(&sandbox, "cold");
    sandbox.stop();
    environment.is_quiet();
    disk.drain();
    environment.hutch(["warm", "-q", "shell"]).run().success();
    disk.fill();
    started(&sandbox, "warm");
    sandbox.stop();
    environment.hutch(["reset", "--force"]).run().success();
    environment.is_quiet();
    drop(environment);
    drop(disk);
}

#[test]
fn as_root_a_warm_start_with_a_full_state_disk_says_so_and_works_again_afterwards() {
    let disk = SmallDisk::new(96 << 20);
    let mut environment = TestEnvironment::as_root();
    environment.move_state(&disk.path());
    let images = environment.path("images");
    let environment = environment.warm(&images);
    environment.hutch(["warm", "-q", "shell"]).run().success();
    let sandbox = environment.create("full");
    started(&sandbox, "warm");
    sandbox.shell("echo synced > ~/synced && sync").run().success();
    sandbox.stop();
    environment.is_quiet();
    disk.fill();
    let outcome = sandbox.exec(["true"]).limit(SOON).run();
    if !outcome.status.success() {
        outcome.failure().complains("space");
    }
    environment.hutch(["stop", "full"]).limit(SOON).run();
    environment.is_quiet();
    assert_eq!(snapshots(&images).0.len(), 1, "the snapshot was not the reason");
    disk.drain();
    sandbox.shell("cat ~/synced").run().success().says("synced");
    assert_eq!(sandbox.inspect()["started"], "warm");
    environment.hutch(["reset", "--force"]).run().success();
    environment.is_quiet();
    drop(environment);
    drop(disk);
}
