use hutch_sys::spawn::Launch;

use super::*;

fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_log_stops_growing_at_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut log = BoundedLog::open(&path, 10).unwrap();
    log.append(b"123456");
    log.append(b"7890ab");
    log.append(b"more");
    assert_eq!(content(&path), b"1234567890");
}

#[test]
fn a_new_run_appends_and_an_old_flood_leaves_it_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    BoundedLog::open(&path, 16).unwrap().append(b"first\n");
    BoundedLog::open(&path, 16).unwrap().append(b"second");
    assert_eq!(content(&path), b"first\nsecond");
    let mut log = BoundedLog::open(&path, 16).unwrap();
    assert_eq!(content(&path), b"cond");
    log.append(&[b'x'; 100]);
    assert_eq!(content(&path), b"condxxxxxxxxxxxx");
}

#[test]
fn a_log_is_private_and_no_link_is_followed() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    drop(BoundedLog::open(&path, 10).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(BoundedLog::open(&link, 10).is_err());
}

#[test]
fn last_words_are_few_and_clean() {
    let tail = Tail::default();
    for number in 0..10_000 {
        tail.append(format!("line {number}\n").as_bytes());
    }
    tail.append(b"\x1b[31mred\xff\n\n");
    assert_eq!(tail.last_lines(), "line 9997; line 9998; line 9999; [31mred\u{fffd}");
    assert_eq!(Tail::default().last_lines(), "");
    assert_eq!(first_line(b"\n  one\x07\ntwo"), "one");
    assert_eq!(first_line(b""), "");
}

#[tokio::test]
async fn everything_said_is_written_before_the_end_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (errors, errors_theirs) = io::pipe().unwrap();
    let mut launch = Launch::new("/bin/sh");
    launch.args([
        "-c",
        "echo console; echo trouble >&2; exec >&- 2>&-; read -r line <&3; echo $line >&3",
    ]);
    launch.stdout(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap())).stderr(errors_theirs);
    launch.inherit(theirs);
    let mut child = launch.start().unwrap().child;
    // The program waits for this before it ends.
    (&ours).write_all(b"last\n").unwrap();
    let tail = Tail::default();
    let watch = Watch {
        serial: ours,
        serial_log: BoundedLog::open(&place("serial"), 1000).unwrap(),
        errors,
        vmm_log: BoundedLog::open(&place("vmm"), 1000).unwrap(),
        tail: tail.clone(),
        process: Process::of_child(&child).unwrap(),
    };
    let mut ended = watch.start().unwrap();
    while ended.changed().await.is_ok() {}
    assert!(child.try_wait().unwrap().is_some());
    assert_eq!(content(&place("serial")), b"console\nlast\n");
    assert_eq!(content(&place("vmm")), b"trouble\n");
    assert_eq!(tail.last_lines(), "trouble");
}

#[tokio::test]
async fn the_end_of_the_process_counts_even_if_a_stream_stays_open() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _kept_open) = UnixStream::pair().unwrap();
    let (errors, _also_kept_open) = io::pipe().unwrap();
    let child = Launch::new("/bin/true").start().unwrap().child;
    let watch = Watch {
        serial: ours,
        serial_log: BoundedLog::open(&directory.path().join("serial"), 1000).unwrap(),
        errors,
        vmm_log: BoundedLog::open(&directory.path().join("vmm"), 1000).unwrap(),
        tail: Tail::default(),
        process: Process::of_child(&child).unwrap(),
    };
    let mut ended = watch.start().unwrap();
    let told = async { while ended.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("the end is told");
    let mut child = child;
    child.wait().unwrap();
}
