use std::io::{Read as _, Write as _};

use super::*;

fn key(of: &str) -> SnapshotKey {
    SnapshotKey::of([of.as_bytes()])
}

fn made(snapshots: &Snapshots, key: &SnapshotKey) {
    let making = snapshots.make(key).unwrap();
    making.memory().unwrap().write_all(b"memory").unwrap();
    making.state().unwrap().write_all(b"state").unwrap();
    making.publish(Vec::new()).unwrap();
}

fn names(base: &Path) -> Vec<String> {
    let entries = fs::read_dir(base.join("snapshots")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".lock") && !name.ends_with(".failed"));
    names
}

#[test]
fn what_was_published_is_found_and_says_the_same() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let key = key("a");
    assert!(matches!(snapshots.find(&key), Err(FindError::Missing)));
    made(&snapshots, &key);
    let mut found = snapshots.find(&key).unwrap();
    let (mut memory, mut state) = (String::new(), String::new());
    found.memory.read_to_string(&mut memory).unwrap();
    found.state.read_to_string(&mut state).unwrap();
    assert_eq!((memory.as_str(), state.as_str()), ("memory", "state"));
    assert!(found.memory.write_all(b"x").is_err(), "it is open for reading only");
    assert!(matches!(snapshots.make(&key), Err(MakeError::Exists)));
}

#[test]
fn facts_cannot_run_into_each_other() {
    let of = |facts: &[&str]| SnapshotKey::of(facts.iter().map(|fact| fact.as_bytes()));
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&["a"]), of(&["a", ""]));
    assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
    assert_eq!(of(&[]).as_str().len(), 64);
}

#[test]
fn each_damage_is_noticed_and_ends_the_snapshot() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 7] = [
        ("memory written to", |d| {
            // The kernel's clock for files ticks slowly: a change within the same tick cannot be told.
            let memory = d.join("memory");
            let changed = || fs::metadata(&memory).unwrap().ctime_nsec();
            let before = changed();
            while changed() == before {
                put(&memory, b"MEMORY");
            }
        }),
        ("memory truncated", |d| put(&d.join("memory"), b"mem")),
        ("memory gone", |d| fs::remove_file(d.join("memory")).unwrap()),
        ("memory of another file", |d| {
            put(&d.join("other"), b"memory");
            fs::rename(d.join("other"), d.join("memory")).unwrap();
        }),
        ("state changed", |d| put(&d.join("state"), b"statE")),
        ("state gone", |d| fs::remove_file(d.join("state")).unwrap()),
        ("record cut", |d| put(&d.join("snapshot.json"), b"{")),
    ];
    for (what, damage) in damages {
        let key = key(what);
        made(&snapshots, &key);
        damage(&base.path().join("snapshots").join(key.as_str()));
        let found = snapshots.find(&key);
        assert!(matches!(found, Err(FindError::Unusable { .. })), "{what}: {found:?}");
        assert!(matches!(snapshots.find(&key), Err(FindError::Missing)), "{what}");
        made(&snapshots, &key);
        snapshots.find(&key).unwrap();
    }
}

fn put(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_newer_format_is_not_used() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    made(&snapshots, &key("a"));
    let record = base.path().join("snapshots").join(key("a").as_str()).join("snapshot.json");
    let text = fs::read_to_string(&record).unwrap();
    put(&record, text.replace("\"format_version\": 2", "\"format_version\": 3").as_bytes());
    let error = snapshots.find(&key("a")).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot cannot be used: it has format 3");
}

#[test]
fn one_makes_it_at_a_time_and_what_is_given_up_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let key = key("a");
    let making = snapshots.make(&key).unwrap();
    assert!(matches!(snapshots.make(&key), Err(MakeError::Busy)));
    drop(snapshots.make(&SnapshotKey::of([b"b".as_slice()])).unwrap());
    making.memory().unwrap().write_all(b"half").unwrap();
    drop(making);
    assert!(names(base.path()).is_empty(), "{:?}", names(base.path()));
    assert!(matches!(snapshots.find(&key), Err(FindError::Missing)));
    made(&snapshots, &key);
}

#[test]
fn what_a_killed_maker_left_is_removed_by_the_next() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let key = key("a");
    let making = snapshots.make(&key).unwrap();
    making.memory().unwrap().write_all(b"half").unwrap();
    // As if the process had been killed: the lock goes, the files stay.
    let Making { directory, .. } = &making;
    let left = base.path().join("kept");
    fs::rename(directory, &left).unwrap();
    let directory = directory.clone();
    drop(making);
    fs::rename(&left, &directory).unwrap();
    assert_eq!(names(base.path()).len(), 1);
    made(&snapshots, &key);
    assert_eq!(names(base.path()), [key.as_str()]);
}

#[test]
fn those_used_longest_ago_go_first_and_the_last_stays() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    for (at, name) in ["old", "middle", "new"].into_iter().enumerate() {
        made(&snapshots, &key(name));
        let record = base.path().join("snapshots").join(key(name).as_str()).join(RECORD);
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(at as u64);
        File::open(record).unwrap().set_modified(when).unwrap();
    }
    let keys = || snapshots.list().into_iter().map(|of| of.key).collect::<Vec<_>>();
    assert_eq!(keys(), [key("new"), key("middle"), key("old")]);
    snapshots.find(&key("old")).unwrap();
    assert_eq!(keys(), [key("old"), key("new"), key("middle")]);
    let one = snapshots.list()[0].bytes;
    assert!(one > 0);
    let removed = snapshots.prune(2 * one);
    assert_eq!(removed.iter().map(|of| of.key.clone()).collect::<Vec<_>>(), [key("middle")]);
    assert_eq!(snapshots.prune(0).len(), 1);
    assert_eq!(keys(), [key("old")]);
}

#[test]
fn a_failure_is_remembered_for_a_while_and_until_it_works() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let hour = Duration::from_secs(3600);
    let key = key("a");
    assert!(!snapshots.failed_within(&key, hour));
    snapshots.note_failure(&key, "the guest did not get ready");
    assert!(snapshots.failed_within(&key, hour));
    assert!(!snapshots.failed_within(&key, Duration::ZERO));
    assert!(!snapshots.failed_within(&SnapshotKey::of([b"b".as_slice()]), hour));
    made(&snapshots, &key);
    assert!(!snapshots.failed_within(&key, hour));
}

fn keys(of: &[SnapshotUse]) -> Vec<&str> {
    of.iter().map(|of| of.key.as_str()).collect()
}

#[test]
fn a_snapshot_goes_when_what_it_stands_on_is_gone_unless_a_vm_runs_on_it() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let image = base.path().join("image");
    put(&image, b"x");
    let (stands, free) = (key("stands"), key("free"));
    let making = snapshots.make(&stands).unwrap();
    drop((making.memory().unwrap(), making.state().unwrap()));
    making.publish(vec![HostPath::new(&image).unwrap()]).unwrap();
    made(&snapshots, &free);
    assert!(snapshots.unneeded(Unneeded::Stale).is_empty());
    assert_eq!(snapshots.unneeded(Unneeded::All).len(), 2);

    fs::remove_file(&image).unwrap();
    let running = snapshots.find(&stands).unwrap().memory;
    crate::lock::mark_used(&running).unwrap();
    assert!(snapshots.remove_unneeded(Unneeded::Stale).is_empty());
    assert_eq!(keys(&snapshots.unneeded(Unneeded::All)), [free.as_str()]);
    drop(running);
    assert_eq!(keys(&snapshots.remove_unneeded(Unneeded::Stale)), [stands.as_str()]);
    assert_eq!(keys(&snapshots.remove_unneeded(Unneeded::All)), [free.as_str()]);
    assert!(snapshots.list().is_empty());
}

#[test]
fn one_of_another_version_is_stale_and_still_listed() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    made(&snapshots, &key("old"));
    let record = base.path().join("snapshots").join(key("old").as_str()).join(RECORD);
    put(&record, br#"{"format_version":1}"#);
    assert_eq!(snapshots.unneeded(Unneeded::Stale).len(), 1);
    fs::remove_file(&record).unwrap();
    assert_eq!(keys(&snapshots.remove_unneeded(Unneeded::Stale)), [key("old").as_str()]);
}

#[test]
fn leftovers_of_dead_makers_go_and_those_of_the_living_stay() {
    let base = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(base.path());
    let directory = base.path().join("snapshots");
    let left = || {
        let mut left: Vec<_> = snapshots
            .leftovers()
            .into_iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        left.sort();
        left
    };
    let (dead, living) = (key("dead"), key("living"));
    let half = format!("{MAKING}{}-x", dead.as_str());
    drop(snapshots.make(&dead).unwrap());
    fs::create_dir(directory.join(&half)).unwrap();
    put(&directory.join(&half).join("memory"), &[1; 5000]);
    put(&directory.join("notes"), b"not ours");
    let making = snapshots.make(&living).unwrap();
    drop((making.memory().unwrap(), making.state().unwrap()));
    snapshots.note_failure(&living, "no");
    let lock = format!("{}.lock", dead.as_str());
    assert_eq!(left(), [half, lock]);
    assert!(snapshots.remove_leftovers() >= 5000);
    assert_eq!(left(), Vec::<String>::new());
    making.publish(Vec::new()).unwrap();
    let entries = fs::read_dir(&directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected =
        [living.as_str().to_owned(), format!("{}.lock", living.as_str()), "notes".into()];
    assert_eq!(names, expected);
}
