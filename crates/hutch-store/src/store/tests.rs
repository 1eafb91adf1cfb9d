//! What happens to sandbox directories: alone, together, after crashes, on a full disk.

use std::collections::HashSet;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::sync::{Arc, Barrier};

use tempfile::TempDir;

use super::*;
use crate::record::{HostPath, TemplateReference, Workspace};

fn layout(base: &Path) -> Layout {
    Layout {
        state: base.join("state"),
        runtime: base.join("run"),
        config: base.join("config"),
        images: base.join("state/images"),
    }
}

fn store() -> (TempDir, Store) {
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(layout(base.path())).unwrap();
    (base, store)
}

fn draft() -> Draft {
    Draft {
        agent: "shell".to_owned(),
        template: TemplateReference { name: "shell".to_owned(), digest: "sha256:00".to_owned() },
        workspaces: vec![Workspace { path: HostPath::new("/srv/x").unwrap(), read_only: false }],
        cpus: 2,
        memory_mib: 1024,
        disk_bytes: 256 << 20,
        idle_timeout_s: 1800,
        docker: crate::DockerStart::Eager,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        environment: std::collections::BTreeMap::new(),
    }
}

fn name(text: &str) -> SandboxName {
    SandboxName::parse(text).unwrap()
}

fn no_disk(path: &Path) -> Result<(), DiskError> {
    fs::File::create(path).map_err(|error| FileError::new("make", path, error))?;
    Ok(())
}

fn create(store: &Store, text: &str) -> SandboxRecord {
    store.create_with(&draft(), [name(text)], no_disk).unwrap()
}

fn names_on_disk(store: &Store) -> Vec<OsString> {
    let mut names = store.entries(|_| true).unwrap();
    names.sort();
    names
}

#[test]
fn what_was_created_is_loaded_and_listed() {
    let (_base, store) = store();
    let made = store.create(&draft(), [name("one")]).unwrap();
    assert_eq!(store.load(&name("one")).unwrap(), made);
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].record.as_ref().unwrap(), &made);
    assert!(!listed[0].running);
    assert_eq!(made.machine_id.len(), 32);
    assert_eq!(names_on_disk(&store), ["one"]);
}

#[test]
fn the_data_disk_is_sparse_and_holds_ext4() {
    use std::os::unix::fs::MetadataExt as _;
    let (_base, store) = store();
    let draft = Draft { disk_bytes: 64 << 30, ..draft() };
    let started = std::time::Instant::now();
    store.create(&draft, [name("one")]).unwrap();
    println!("a sandbox with a data disk of 64 GiB took {:?}", started.elapsed());
    let path = store.paths(&name("one")).data();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 64 << 30);
    assert!(metadata.blocks() * 512 < 64 << 20, "{} bytes in use", metadata.blocks() * 512);
    let mut magic = [0; 2];
    let file = fs::File::open(&path).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 1024 + 56).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
}

#[test]
fn a_tiny_data_disk_is_refused_and_nothing_is_left() {
    let (_base, store) = store();
    let draft = Draft { disk_bytes: 1024, ..draft() };
    let error = store.create(&draft, [name("one")]).unwrap_err();
    assert!(matches!(error, CreateError::Disk(DiskError::TooSmall { bytes: 1024 })), "{error}");
    assert!(names_on_disk(&store).is_empty());
}

#[test]
fn everything_is_for_its_owner_alone() {
    fn check(path: &Path) {
        let metadata = fs::symlink_metadata(path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if metadata.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| check(&entry.unwrap().path()));
        }
    }
    let (base, store) = store();
    create(&store, "one");
    let end = LastEnd {
        format_version: FORMAT_VERSION,
        at: Timestamp::now(),
        clean: true,
        reason: "stopped".to_owned(),
        console: Vec::new(),
    };
    store.write_last_end(&name("one"), &end).unwrap();
    let lock = store.lock(&name("one"), Duration::ZERO).unwrap();
    // The disk of `no_disk` is not what a real one is.
    fs::remove_file(store.paths(&name("one")).data()).unwrap();
    check(&base.path().join("state"));
    drop(lock);
    assert_eq!(store.last_end(&name("one")).unwrap(), Some(end));
}

#[test]
fn a_taken_name_is_told_and_the_next_one_is_used() {
    let (_base, store) = store();
    create(&store, "one");
    let error = store.create_with(&draft(), [name("one")], no_disk).unwrap_err();
    assert!(matches!(error, CreateError::Exists { name: taken } if taken == name("one")));
    let next = store.create_with(&draft(), name("one").and_numbered(), no_disk).unwrap();
    assert_eq!(next.name, name("one-2"));
    assert_eq!(store.load(&next.name).unwrap(), next);
    assert_eq!(names_on_disk(&store), ["one", "one-2"]);
}

#[test]
fn a_name_taken_while_the_disk_is_made_is_passed_over() {
    let (_base, store) = store();
    let made = store
        .create_with(&draft(), name("one").and_numbered(), |path| {
            create(&store, "one");
            no_disk(path)
        })
        .unwrap();
    assert_eq!(made.name, name("one-2"));
}

#[test]
fn eight_threads_create_eight_sandboxes() {
    let (_base, store) = store();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (store, barrier) = (store.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                store.create_with(&draft(), name("one").and_numbered(), no_disk).unwrap().name
            })
        })
        .collect();
    let names: HashSet<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(store.list().unwrap().iter().filter(|one| one.record.is_ok()).count(), 8);
}

/// Not a test by itself: one of the processes of the test below, which gives it its own directory to work in.
#[test]
#[ignore = "run by eight_processes_create_eight_sandboxes"]
fn one_process_creates_a_sandbox() {
    let store = Store::open(layout(&std::env::current_dir().unwrap())).unwrap();
    let made = store.create(&draft(), name("one").and_numbered()).unwrap();
    assert_eq!(store.load(&made.name).unwrap(), made);
}

#[test]
fn eight_processes_create_eight_sandboxes() {
    let base = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..8)
        .map(|_| {
            hutch_sys::spawn::command(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "store::tests::one_process_creates_a_sandbox"])
                .current_dir(base.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
    let store = Store::open(layout(base.path())).unwrap();
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 8);
    assert!(listed.iter().all(|one| one.record.is_ok()));
    assert_eq!(names_on_disk(&store).len(), 8, "nothing half-made is left");
}

#[test]
fn damaged_records_are_listed_with_a_reason_and_can_be_removed() {
    let (_base, store) = store();
    let good = create(&store, "good");
    let content = fs::read(store.paths(&good.name).record()).unwrap();
    let mut damage: Vec<(String, Vec<u8>)> = vec![
        ("empty".to_owned(), Vec::new()),
        ("zeros".to_owned(), vec![0; 4096]),
        ("list".to_owned(), b"[]".to_vec()),
        ("huge".to_owned(), vec![b' '; 2 << 20]),
        ("deep".to_owned(), vec![b'['; 100_000]),
    ];
    for length in (1..content.len() - 1).step_by(37) {
        damage.push((format!("cut{length}"), content[..length].to_vec()));
    }
    for (text, content) in &damage {
        create(&store, text);
        let record = store.paths(&name(text)).record();
        fs::remove_file(&record).unwrap();
        atomic::write(&record, content).unwrap();
    }
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), damage.len() + 1);
    for one in &listed {
        assert_eq!(one.record.is_ok(), one.name == "good", "{}", one.name.display());
        assert!(!one.running);
        store.remove(&one.name, Duration::ZERO).unwrap();
    }
    assert!(names_on_disk(&store).is_empty());
}

#[test]
fn remains_of_every_kind_are_listed_and_removed() {
    let (_base, store) = store();
    let sandboxes = store.layout().sandboxes();
    fs::create_dir(sandboxes.join("no-record")).unwrap();
    fs::File::create(sandboxes.join("a-file")).unwrap();
    std::os::unix::fs::symlink("/", sandboxes.join("a-link")).unwrap();
    fs::create_dir(sandboxes.join("bad name")).unwrap();
    fs::create_dir(sandboxes.join(OsString::from_vec(vec![b'x', 0xff]))).unwrap();
    fs::create_dir(sandboxes.join("record-is-a-directory")).unwrap();
    fs::create_dir(sandboxes.join("record-is-a-directory/sandbox.json")).unwrap();
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 6);
    for one in listed {
        let error = one.record.unwrap_err();
        assert!(!error.to_string().is_empty());
        store.remove(&one.name, Duration::ZERO).unwrap();
    }
    assert!(names_on_disk(&store).is_empty());
    assert!(Path::new("/etc").exists(), "a link was followed");
}

#[test]
fn a_record_of_a_newer_version_says_so() {
    let (_base, store) = store();
    create(&store, "one");
    let record = store.paths(&name("one")).record();
    atomic::write(&record, br#"{"format_version": 2, "name": {"other": "shape"}}"#).unwrap();
    let error = store.load(&name("one")).unwrap_err();
    let LoadError::Format { source: FormatError::Newer { found: 2 }, .. } = &error else {
        panic!("{error:?}");
    };
    // Changing it would lose what we do not understand.
    assert!(matches!(store.update(&name("one"), |_| {}), Err(LoadError::Format { .. })));
    store.remove("one", Duration::ZERO).unwrap();
}

#[test]
fn a_record_under_another_name_is_refused() {
    let (_base, store) = store();
    create(&store, "one");
    let sandboxes = store.layout().sandboxes();
    fs::rename(sandboxes.join("one"), sandboxes.join("two")).unwrap();
    assert!(matches!(store.load(&name("two")), Err(LoadError::Format { .. })));
}

#[test]
fn an_update_keeps_identity() {
    let (_base, store) = store();
    let old = create(&store, "one");
    let new = store
        .update(&name("one"), |record| {
            record.cpus = 7;
            record.name = name("other");
            record.id = SandboxId::parse("000000000000").unwrap();
        })
        .unwrap();
    assert_eq!((new.cpus, &new.name, &new.id), (7, &old.name, &old.id));
    assert_eq!(store.load(&name("one")).unwrap(), new);
}

#[test]
fn updates_from_many_threads_are_all_there() {
    let (_base, store) = store();
    create(&store, "one");
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || {
                for _ in 0..5 {
                    store.update(&name("one"), |record| record.cpus += 1).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(store.load(&name("one")).unwrap().cpus, 42);
}

#[test]
fn a_running_sandbox_is_seen_and_not_removed() {
    let (_base, store) = store();
    create(&store, "one");
    assert!(!store.is_running(&name("one")).unwrap());
    let lock = store.lock(&name("one"), Duration::ZERO).unwrap();
    assert!(store.is_running(&name("one")).unwrap());
    assert!(store.list().unwrap()[0].running);
    let error = store.remove("one", Duration::from_millis(30)).unwrap_err();
    assert!(matches!(error, RemoveError::Running { .. }), "{error}");
    assert!(matches!(store.lock(&name("one"), Duration::ZERO), Err(LockError::Held { .. })));
    drop(lock);
    store.remove("one", Duration::ZERO).unwrap();
    assert!(!store.is_running(&name("one")).unwrap());
}

#[test]
fn removing_what_is_not_there_is_an_error() {
    let (base, store) = store();
    fs::create_dir(base.path().join("state/precious")).unwrap();
    for text in ["one", "", ".", "..", "../precious", "/", ".new-1", "a/b"] {
        let error = store.remove(text, Duration::ZERO).unwrap_err();
        assert!(matches!(error, RemoveError::NotFound { .. }), "{text}: {error}");
    }
    assert!(base.path().join("state/precious").exists());
}

#[test]
fn a_lock_of_a_removed_sandbox_locks_nothing() {
    let (_base, store) = store();
    create(&store, "one");
    let lock = store.lock(&name("one"), Duration::ZERO).unwrap();
    let waiter = std::thread::spawn({
        let store = store.clone();
        move || store.lock(&name("one"), Duration::from_secs(20))
    });
    // As `remove` does while it holds the lock.
    let sandboxes = store.layout().sandboxes();
    fs::rename(sandboxes.join("one"), sandboxes.join(".trash-0")).unwrap();
    drop(lock);
    assert!(matches!(waiter.join().unwrap(), Err(LockError::Gone { .. })));
}

#[test]
fn leftovers_of_crashes_are_swept_and_work_in_progress_is_not() {
    let (base, store) = store();
    let sandboxes = store.layout().sandboxes();
    for leftover in [".new-1/logs", ".trash-2/logs"] {
        fs::create_dir_all(sandboxes.join(leftover)).unwrap();
    }
    let unfinished = Unfinished::new(&store).unwrap();
    let store = Store::open(layout(base.path())).unwrap();
    let left = names_on_disk(&store);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(unfinished.paths.directory.ends_with(&left[0]));
    assert!(store.list().unwrap().is_empty());
    drop(unfinished);
    assert!(names_on_disk(&store).is_empty());
}

#[test]
fn directories_that_others_may_change_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let layout = layout(base.path());
    for (directory, mode) in [(&layout.state, 0o777), (&layout.runtime, 0o750)] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        let error = Store::open(layout.clone()).unwrap_err();
        assert!(
            matches!(&error, StoreError::Layout(LayoutError::Exposed { path, .. }) if path == directory),
            "{error:?}"
        );
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    Store::open(layout).unwrap();
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a file away; `/` then stands for a directory of another user.
        let layout = Layout { state: "/".into(), ..layout(Path::new("/nonexistent")) };
        assert!(Store::open(layout).is_err());
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let layout = layout(base.path());
    fs::create_dir(&layout.state).unwrap();
    std::os::unix::fs::chown(&layout.state, Some(12345), None).unwrap();
    let error = Store::open(layout).unwrap_err();
    assert!(
        matches!(error, StoreError::Layout(LayoutError::Owner { owner: 12345, .. })),
        "{error:?}"
    );
}

/// A small file system of its own, for root only.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(kib: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = hutch_sys::spawn::command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k,mode=0700"), "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = hutch_sys::spawn::command("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_the_old_state_intact() {
    let Some(disk) = SmallDisk::mount(1024) else {
        assert!(!rustix::process::geteuid().is_root(), "root can mount");
        return;
    };
    let store = Store::open(layout(disk.0.path())).unwrap();
    let old = create(&store, "old");
    // A file system for 64 GiB needs more than a MiB of its own.
    let draft = Draft { disk_bytes: 64 << 30, ..draft() };
    let error = store.create(&draft, [name("new")]).unwrap_err();
    assert!(
        matches!(error, CreateError::Disk(DiskError::File(FileError::DiskFull { .. }))),
        "{error:?}"
    );
    assert!(error.to_string().starts_with("no space is left on the disk that holds "));

    let filler = disk.0.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    let error = store.update(&name("old"), |record| record.cpus = 9).unwrap_err();
    let full = |error: &LoadError| {
        matches!(error, LoadError::Store(StoreError::File(FileError::DiskFull { .. })))
    };
    assert!(full(&error), "{error:?}");
    assert_eq!(store.load(&name("old")).unwrap(), old);
    assert!(store.create_with(&draft, [name("new")], no_disk).is_err());
    assert_eq!(names_on_disk(&store), ["old"]);
    // What needs no space still works.
    store.remove("old", Duration::ZERO).unwrap();
    assert!(names_on_disk(&store).is_empty());
}

#[test]
fn the_keeper_on_record_counts_only_while_it_lives() {
    let (_base, store) = store();
    create(&store, "one");
    assert_eq!(store.keeper(&name("one")).unwrap(), None);
    let own = hutch_sys::process::ProcessIdentity::own().unwrap();
    let mut keeper = KeeperRecord {
        format_version: FORMAT_VERSION,
        pid: own.pid,
        start_time: own.start_time,
        socket: HostPath::new("/run/x.sock").unwrap(),
    };
    store.write_keeper(&name("one"), &keeper).unwrap();
    assert_eq!(store.keeper(&name("one")).unwrap(), Some(keeper.clone()));
    keeper.start_time += 1;
    store.write_keeper(&name("one"), &keeper).unwrap();
    assert_eq!(store.keeper(&name("one")).unwrap(), None);
}

#[test]
fn a_record_from_before_there_was_a_network_is_read() {
    let (_base, store) = store();
    create(&store, "old");
    let path = store.paths(&name("old")).record();
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("inspect"), "{text}");
    assert_eq!(store.load(&name("old")).unwrap().inspect, None);
    let inspect = Some(hutch_policy::settings::Inspect::All);
    store.update(&name("old"), |record| record.inspect = inspect).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("\"inspect\": \"all\""));
    assert_eq!(store.load(&name("old")).unwrap().inspect, inspect);
}

#[test]
fn the_default_policy_is_the_users_own_or_made_once() {
    let (base, store) = store();
    let users = base.path().join("users.json");
    let ours = store.layout().default_proxy_config();
    assert_eq!(store.default_proxy_config(Some(&users), "first").unwrap(), ours);
    assert_eq!(store.default_proxy_config(None, "second").unwrap(), ours);
    assert_eq!(fs::read_to_string(&ours).unwrap(), "first");
    assert_eq!(fs::metadata(&ours).unwrap().permissions().mode() & 0o777, 0o600);
    atomic::write_new_file(&ours, b"third").unwrap();
    assert_eq!(fs::read_to_string(&ours).unwrap(), "first");
    assert_eq!(fs::read_dir(ours.parent().unwrap()).unwrap().count(), 1);
    atomic::write(&users, b"mine").unwrap();
    assert_eq!(store.default_proxy_config(Some(&users), "first").unwrap(), users);
    assert_eq!(fs::read_to_string(&users).unwrap(), "mine");
}

#[test]
fn what_a_killed_keeper_left_is_swept_by_a_list() {
    let (base, store) = store();
    let record = create(&store, "a");
    let other = base.path().join("other");
    fs::create_dir(&other).unwrap();
    // Where another environment had its runtime directory.
    let socket = other.join(store.layout().socket(&record.id).file_name().unwrap());
    let scratch = socket.with_extension("vm");
    let leave = || {
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        fs::create_dir(&scratch).unwrap();
        fs::File::create(scratch.join("x")).unwrap();
    };
    let mut keeper = KeeperRecord {
        format_version: FORMAT_VERSION,
        pid: 1,
        start_time: 0,
        socket: HostPath::new(&socket).unwrap(),
    };
    leave();
    store.write_keeper(&name("a"), &keeper).unwrap();
    let lock = store.lock(&name("a"), Duration::ZERO).unwrap();
    store.list().unwrap();
    assert!(socket.exists() && scratch.exists(), "one that runs keeps its files");
    drop(lock);
    store.list().unwrap();
    assert!(!socket.exists() && !scratch.exists());
    // A file that is no keeper's of this sandbox is none of its business.
    let stranger = other.join("000000000000.sock");
    fs::File::create(&stranger).unwrap();
    keeper.socket = HostPath::new(&stranger).unwrap();
    store.write_keeper(&name("a"), &keeper).unwrap();
    store.list().unwrap();
    assert!(stranger.exists());
}
