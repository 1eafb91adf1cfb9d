//! Starts from a snapshot: sandboxes that share one and nothing else, and what happens when it is damaged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutch_testkit::{TestEnvironment, TestSandbox, eventually};

const SOON: Duration = Duration::from_secs(90);

/// A world whose starts are warm, with snapshots of its own.
fn world() -> TestEnvironment {
    let environment = TestEnvironment::new();
    let images = environment.path("images");
    environment.warm(&images)
}

fn snapshots(environment: &TestEnvironment) -> Vec<PathBuf> {
    let entries = fs::read_dir(environment.path("images/snapshots"));
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

#[track_caller]
fn the_snapshot(environment: &TestEnvironment) -> PathBuf {
    let mut all = snapshots(environment);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[track_caller]
fn started(sandbox: &TestSandbox<'_>, how: &str) {
    sandbox.start();
    assert_eq!(sandbox.inspect()["started"], how, "{}", sandbox.name());
}

/// What [`IDENTITY`] prints, in lines.
const LINES: usize = 9;
/// Everything that must be different in two sandboxes.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id; hostname; \
    head -c 16 /dev/urandom | od -An -tx1; head -c 16 /dev/random | od -An -tx1; \
    cat /proc/sys/kernel/random/uuid; python3 -c 'import uuid, secrets; print(uuid.uuid4(), secrets.token_hex(8))'; \
    openssl rand -hex 16; openssl genpkey -algorithm ed25519 -outform DER | od -An -tx1 | tail -1";

#[test]
fn a_start_without_a_snapshot_makes_the_next_one_warm() {
    let environment = world();
    let sandbox = environment.create("first");
    started(&sandbox, "cold");
    eventually("the snapshot is made", SOON, || {
        (snapshots(&environment).len() == 1
            && !the_snapshot(&environment).to_string_lossy().contains("making"))
        .then_some(())
    });
    sandbox.shell("echo kept > ~/kept && sync").run().success();
    sandbox.stop();
    environment.is_quiet();
    started(&sandbox, "warm");
    sandbox.shell("cat ~/kept").run().success().says("kept");
    let workspace = sandbox.workspace().join("file");
    environment.write(&workspace, "from outside");
    sandbox.exec(["cat"]).args([&workspace]).run().success().says("from outside");
}

#[test]
fn sandboxes_of_one_snapshot_share_nothing_but_it() {
    share_nothing(5);
}

/// The same with a hundred, which takes minutes: `cargo nextest run -p e2e --ignore-default-filter --run-ignored only`.
#[test]
#[ignore = "takes minutes; five of them are tested each time"]
fn a_hundred_sandboxes_of_one_snapshot_share_nothing_but_it() {
    share_nothing(100);
}

/// Starts so many sandboxes one after the other; the last three are alive at the same time.
fn share_nothing(count: usize) {
    let environment = world();
    environment.hutch(["warm", "shell"]).run().success().says("shell");
    let snapshot = the_snapshot(&environment);
    let memory = || {
        let metadata = fs::metadata(snapshot.join("memory")).expect("it is there");
        let digest = environment.program("sha256sum").args([&snapshot.join("memory")]).limit(SOON);
        (metadata.modified().expect("a time"), metadata.len(), digest.run().success().text())
    };
    let before = memory();
    let mut seen = BTreeSet::new();
    for number in 0..count {
        let sandbox = environment.create(&format!("s{number}"));
        started(&sandbox, "warm");
        let identity = sandbox.shell(IDENTITY).run().success().text();
        for line in identity.lines().map(str::trim).filter(|line| !line.is_empty()) {
            assert!(seen.insert(line.to_owned()), "twice: {line}");
        }
        let guest: u64 = sandbox.shell("date +%s").run().success().text().parse().expect("a time");
        let host = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        assert!(guest.abs_diff(host) <= 5, "clock of the guest {guest}, of the host {host}");
        // Its own disk, as large as it was asked for, and nothing on it.
        let disk = sandbox
            .shell("ls ~ | grep -v workspace; df --block-size=1G --output=size / | tail -1")
            .run();
        let disk = disk.success().text();
        let size: u64 = disk.trim().parse().expect("a size alone: there are no files");
        assert!((55..=64).contains(&size), "{size} GiB");
        sandbox.shell("echo mine > ~/mine && sync").run().success();
        if number >= 3 {
            environment.hutch(["rm", &format!("s{}", number - 3)]).run().success();
        }
    }
    assert_eq!(seen.len(), count * LINES, "a line for each part of the identity: {seen:?}");
    assert_eq!(memory(), before, "the file never changes");
    // It was made before any of them existed. What is in every guest is found, so that the search is one.
    assert!(holds(&environment, &snapshot, "Linux version"));
    let texts = seen.iter().filter(|line| line.len() >= 16).map(String::as_str);
    assert!(!holds(&environment, &snapshot, &texts.collect::<Vec<_>>().join("\n")));
}

/// Whether one of these lines is in the memory of a snapshot.
fn holds(environment: &TestEnvironment, snapshot: &Path, lines: &str) -> bool {
    let patterns = environment.path("patterns");
    environment.write(&patterns, lines);
    let memory = snapshot.join("memory");
    let mut grep = environment.program("grep");
    grep = grep.args(["--text", "--quiet", "--fixed-strings", "--file"]).args([&patterns, &memory]);
    let ended = grep.limit(SOON).run().status.code();
    assert!(matches!(ended, Some(0 | 1)), "grep ended with {ended:?}");
    ended == Some(0)
}

fn damage(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let content = fs::read(path).expect("it can be read");
    let mut file = fs::File::create(path).expect("it can be written");
    std::io::Write::write_all(&mut file, &change(content)).expect("it is written");
}

#[test]
fn a_damaged_snapshot_costs_a_cold_start_and_is_made_anew() {
    let environment = world();
    let sandbox = environment.create("damaged");
    let snapshot = || the_snapshot(&environment);
    for (what, file) in [("state", "state"), ("record", "snapshot.json"), ("memory", "memory")] {
        environment.hutch(["warm", "-q", "shell"]).run().success();
        match file {
            // Large and sparse: one byte in it is enough.
            "memory" => {
                let path = snapshot().join(file);
                let memory = fs::File::options().write(true).open(path).expect("it opens");
                std::os::unix::fs::FileExt::write_all_at(&memory, b"x", 1 << 20).expect("written");
            }
            _ => damage(&snapshot().join(file), |mut content| {
                content.truncate(content.len() / 2);
                content
            }),
        }
        started(&sandbox, "cold");
        let log = fs::read_to_string(sandbox.directory().join("logs/keeper.log")).expect("a log");
        assert!(log.contains("starting without a snapshot"), "{what}: {log}");
        eventually("the snapshot is made anew", SOON, || {
            (environment.processes().iter().all(|of| !of.arguments.contains("snapshot "))
                && snapshots(&environment).len() == 1)
                .then_some(())
        });
        sandbox.stop();
        started(&sandbox, "warm");
        sandbox.stop();
    }
}

#[test]
fn a_snapshot_is_for_its_shape_alone_and_cold_is_cold() {
    let environment = world();
    environment.hutch(["warm", "-q", "shell"]).run().success();
    let project = environment.project("other");
    environment
        .hutch(["create", "-q", "--name", "other", "--cpus", "1", "shell"])
        .args([&project])
        .run()
        .success();
    let start = |cold: bool| {
        let invocation = environment.hutch(["exec", "other", "nproc"]);
        let invocation = if cold { invocation.variable("HUTCH_START", "cold") } else { invocation };
        assert_eq!(invocation.run().success().text(), "1");
        let started = environment.hutch(["inspect", "other"]).run().success().json();
        environment.hutch(["stop", "other"]).run().success();
        started[0]["started"].as_str().expect("it says how").to_owned()
    };
    assert_eq!(start(true), "cold");
    assert_eq!(snapshots(&environment).len(), 1, "a cold start makes none");
    assert_eq!(start(false), "cold");
    eventually("its own is made", SOON, || {
        (environment.processes().is_empty() && snapshots(&environment).len() == 2).then_some(())
    });
    assert_eq!(start(false), "warm");
    assert_eq!(start(true), "cold");
}
