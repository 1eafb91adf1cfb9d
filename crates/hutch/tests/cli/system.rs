//! What is kept on the disk, and what goes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use hutch_store::{HostPath, SnapshotKey, Snapshots, Unneeded};
use serde_json::Value;

use super::world::{Run, World};

fn put(path: &Path, bytes: &[u8]) {
    let directory = path.parent().expect("a file is in a directory");
    fs::create_dir_all(directory).expect("the world is writable");
    File::create(path).and_then(|mut file| file.write_all(bytes)).expect("the world is writable");
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).expect("JSON")
}

fn kind(usage: &Value, name: &str) -> Value {
    let kinds = usage["kinds"].as_array().expect("a list");
    kinds.iter().find(|kind| kind["kind"] == name).expect("every kind is there").clone()
}

/// A world with a sandbox that has old logs, two snapshots of which one stands on nothing, and what a dead maker left.
fn kept() -> (World, Snapshots) {
    let world = World::new();
    world.sandbox("one", &world.project("one"));
    let state = world.path("home/.local/state/hutch");
    put(&state.join("sandboxes/one/logs/init.log.old"), &[b'x'; 10_000]);
    put(&state.join("sandboxes/one/logs/init.log"), b"now");
    put(&state.join("sandboxes/one/network/log.jsonl.1"), &[b'x'; 10_000]);
    let snapshots = Snapshots::new(&state.join("images"));
    for (name, stands_on) in [("good", "/"), ("stale", "/nonexistent")] {
        let making = snapshots.make(&SnapshotKey::of([name.as_bytes()])).expect("it can be made");
        let mut memory = making.memory().expect("it can be made");
        memory.write_all(&[1; 100_000]).expect("it can be written");
        drop(making.state().expect("it can be made"));
        making.publish(vec![HostPath::new(stands_on).expect("absolute")]).expect("it is complete");
    }
    (world, snapshots)
}

#[test]
fn df_tells_what_is_there_and_what_could_go() {
    let (world, _) = kept();
    let table = world.hutch(&["system", "df"]);
    assert_eq!((table.code, table.stderr.as_str()), (0, ""));
    let first: Vec<_> = table.stdout.lines().map(|line| &line[..9]).collect();
    assert_eq!(
        first,
        ["TYPE     ", "Sandboxes", "Templates", "Guest ima", "Kernel pa", "Snapshots", "Logs     "]
    );
    let usage = json(&world.hutch(&["system", "df", "--json"]));
    assert_eq!(usage["format_version"], 1);
    let snapshots = kind(&usage, "Snapshots");
    assert_eq!((&snapshots["count"], &snapshots["active"]), (&2.into(), &0.into()));
    let reclaimable = snapshots["reclaimable_bytes"].as_u64().expect("a number");
    assert!((100_000..200_000).contains(&reclaimable), "{snapshots}");
    assert!(kind(&usage, "Logs")["reclaimable_bytes"].as_u64().expect("a number") >= 20_000);
    assert_eq!(kind(&usage, "Sandboxes")["count"], 1);
    assert_eq!(kind(&usage, "Sandboxes")["reclaimable_bytes"], 0);
}

#[test]
fn prune_asks_and_then_takes_only_what_nobody_needs() {
    let (world, snapshots) = kept();
    let hutch = Path::new(env!("CARGO_BIN_EXE_hutch"));
    let declined = world.run(world.command(hutch).args(["system", "prune"]), b"n\n");
    assert_eq!(declined.code, 1, "{}", declined.seen());
    assert!(declined.stderr.contains("nothing was removed"), "{}", declined.stderr);
    assert_eq!(snapshots.list().len(), 2);

    let pruned = world.run(world.command(hutch).args(["system", "prune"]), b"y\n");
    assert_eq!(pruned.code, 0, "{}", pruned.seen());
    assert!(pruned.stdout.starts_with("Freed "), "{}", pruned.stdout);
    assert_eq!(snapshots.list().len(), 1);
    assert!(snapshots.unneeded(Unneeded::Stale).is_empty());
    let logs = world.path("home/.local/state/hutch/sandboxes/one/logs");
    assert!(logs.join("init.log").is_file() && !logs.join("init.log.old").exists());
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "one\n");

    let nothing = json(&world.hutch(&["system", "prune", "--force", "--json"]));
    assert_eq!((&nothing["format_version"], &nothing["bytes"]), (&1.into(), &0.into()));
    let all = json(&world.hutch(&["system", "prune", "--all", "--force", "--json"]));
    assert!(all["bytes"].as_u64().expect("a number") >= 100_000, "{all}");
    assert!(snapshots.list().is_empty());
    assert_eq!(world.hutch(&["system", "prune", "--json"]).code, 2, "it cannot ask in JSON");
}
