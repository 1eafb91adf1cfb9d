//! Nothing waits, nothing torn is read, nothing grows without bound.

use std::fs;
use std::path::Path;

use hutch_policy::log::LONGEST_LINE;

use super::*;

fn start(directory: &Path, file_max: u64) -> LogWriter {
    let directory = File::open(directory).unwrap();
    LogWriter::with_limit(directory.into(), "box", file_max).unwrap()
}

fn record(number: u64) -> Record {
    let mut record = Record::new(number, "box", How::Plain, Decision::Allowed);
    record.url = Some(format!("http://host/{number}"));
    record
}

fn read(directory: &Path, file: &str) -> Vec<Record> {
    let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
    text.lines().filter_map(Record::from_line).collect()
}

#[test]
fn records_are_lines_in_order() {
    let base = tempfile::tempdir().unwrap();
    let log = start(base.path(), FILE_MAX);
    for number in 0..200 {
        log.append(record(number));
    }
    log.flush();
    let times: Vec<u64> = read(base.path(), CURRENT).iter().map(|r| r.time_ms).collect();
    assert_eq!(times, (0..200).collect::<Vec<_>>());
    drop(log);
    // Continued by the next one.
    let log = start(base.path(), FILE_MAX);
    log.append(record(200));
    drop(log);
    assert_eq!(read(base.path(), CURRENT).len(), 201);
    let mode =
        std::os::unix::fs::MetadataExt::mode(&fs::metadata(base.path().join(CURRENT)).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what a crash left behind, not a file of ours")]
fn a_torn_line_is_ended_and_costs_no_other() {
    let base = tempfile::tempdir().unwrap();
    let whole = record(1).to_line();
    let torn = &whole[..whole.len() / 2];
    fs::write(base.path().join(CURRENT), format!("{whole}{torn}")).unwrap();
    let log = start(base.path(), FILE_MAX);
    log.append(record(2));
    drop(log);
    let times: Vec<u64> = read(base.path(), CURRENT).iter().map(|r| r.time_ms).collect();
    assert_eq!(times, [1, 2]);
}

#[test]
fn files_rotate_and_the_oldest_goes() {
    let base = tempfile::tempdir().unwrap();
    let log = start(base.path(), 1000);
    for number in 0..100 {
        log.append(record(number));
        // One batch each, so that each is a write.
        log.flush();
    }
    drop(log);
    let mut names: Vec<String> = fs::read_dir(base.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["log.jsonl", "log.jsonl.1", "log.jsonl.2", "log.jsonl.3"]);
    let mut times = Vec::new();
    for name in names.iter().rev() {
        assert!(fs::metadata(base.path().join(name)).unwrap().len() <= 1000, "{name}");
        times.extend(read(base.path(), name).iter().map(|r| r.time_ms));
    }
    let first = *times.first().unwrap();
    assert!(first > 0);
    assert_eq!(times, (first..100).collect::<Vec<_>>());
}

#[test]
fn a_flood_is_counted_and_not_kept() {
    let base = tempfile::tempdir().unwrap();
    let log = start(base.path(), FILE_MAX);
    let appended = 20_000;
    for number in 0..appended {
        log.append(record(number));
    }
    drop(log);
    let read = read(base.path(), CURRENT);
    let kept = read.iter().filter(|record| record.how == How::Plain).count() as u64;
    let dropped: u64 = read
        .iter()
        .filter(|record| record.how == How::Other)
        .map(|record| record.reason.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(dropped > 0 && kept > 0);
    assert_eq!(kept + dropped, appended);
}

#[test]
fn what_a_guest_writes_stays_on_its_line() {
    let base = tempfile::tempdir().unwrap();
    let log = start(base.path(), FILE_MAX);
    let mut evil = record(1);
    evil.host = "evil\n{\"time_ms\":9}\u{1b}[2J".to_owned();
    evil.url = Some(format!("http://h/{}", "x".repeat(100_000)));
    evil.error = Some("e\r\n".repeat(100_000));
    log.append(evil);
    log.append(record(2));
    drop(log);
    let text = fs::read_to_string(base.path().join(CURRENT)).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.lines().all(|line| line.len() < LONGEST_LINE));
    assert!(!text.contains('\u{1b}') && !text.contains('\r'));
}

#[test]
fn a_link_in_the_files_place_is_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let victim = base.path().join("victim");
    std::os::unix::fs::symlink(&victim, base.path().join(CURRENT)).unwrap();
    let log = start(base.path(), FILE_MAX);
    log.append(record(1));
    drop(log);
    assert!(!victim.exists());
    assert_eq!(read(base.path(), CURRENT).len(), 1);
}

#[test]
fn a_directory_that_goes_takes_nobody_with_it() {
    let base = tempfile::tempdir().unwrap();
    let log = start(base.path(), 10);
    fs::remove_dir_all(base.path()).unwrap();
    for number in 0..10 {
        log.append(record(number));
        log.flush();
    }
}
