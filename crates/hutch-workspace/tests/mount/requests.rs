//! How many requests an operation costs: the part of the benchmark that is the same on every machine.

#![expect(clippy::disallowed_methods, reason = "these files are for the moment of a test")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use hutch_workspace::abi::opcode;

use crate::harness::{Mount, can_mount, within};

const FILES: u64 = 100;

fn paths(mount: &Mount, directory: &str) -> Vec<PathBuf> {
    (0..FILES).map(|number| mount.guest(directory).join(format!("file-{number:05}"))).collect()
}

fn look_at(paths: &[PathBuf]) {
    for path in paths {
        fs::symlink_metadata(path).expect("it is there");
    }
}

/// What was asked of the worker while `act` ran, beside what the kernel forgets.
fn asked(mount: &Mount, act: impl FnOnce()) -> u64 {
    let count = || {
        let counts = mount.counts();
        counts.all() - counts.of(opcode::FORGET) - counts.of(opcode::BATCH_FORGET)
    };
    let before = count();
    act();
    count() - before
}

fn make_on_host(mount: &Mount, directory: &str) {
    fs::create_dir(mount.host(directory)).expect("a directory");
    for path in paths(mount, directory) {
        let path = mount.host(directory).join(path.file_name().expect("a name"));
        fs::write(path, [b'x'; 4096]).expect("a file");
    }
}

#[test]
fn files_looked_at_one_by_one_are_listed_and_asked_for_no_more() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    make_on_host(&mount, "d");
    let paths = paths(&mount, "d");
    let cold = asked(&mount, || look_at(&paths));
    assert!(mount.counts().of(opcode::READDIRPLUS) > 0, "{cold}: {}", mount.counts());
    // The last listing ahead may still be on its way when the first look is over.
    within("a look that asks nothing", || (asked(&mount, || look_at(&paths)) == 0).then_some(()));
}

#[test]
fn files_that_were_read_are_listed_again_before_anyone_asks() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    make_on_host(&mount, "d");
    let paths = paths(&mount, "d");
    look_at(&paths);
    paths.iter().for_each(|path| drop(fs::read(path).unwrap()));
    // When the reading has come to rest, nothing is asked one by one; until then it may be.
    within("a listing", || (asked(&mount, || look_at(&paths)) == 0).then_some(()));
    let before = mount.counts().of(opcode::READDIRPLUS);
    let read_again = asked(&mount, || paths.iter().for_each(|path| drop(fs::read(path).unwrap())));
    assert_eq!((read_again, mount.counts().of(opcode::READDIRPLUS)), (0, before));
}

#[test]
fn a_new_file_in_a_new_directory_costs_two_requests_and_its_removal_one() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    // The first opening tells the kernel that opening, and thus closing, needs nobody.
    fs::write(mount.host("file"), "").unwrap();
    fs::read(mount.guest("file")).unwrap();
    fs::create_dir(mount.guest("made")).unwrap();
    let paths = paths(&mount, "made");
    let made = asked(&mount, || {
        for path in &paths {
            fs::File::create_new(path).unwrap().write_all(&[b'x'; 4096]).unwrap();
        }
    });
    // Some more where the host's event for a change of the guest itself comes between.
    assert!((2 * FILES..2 * FILES + FILES / 2).contains(&made), "{made}: {}", mount.counts());
    let removed = asked(&mount, || paths.iter().for_each(|path| fs::remove_file(path).unwrap()));
    assert!((FILES..FILES + FILES / 2).contains(&removed), "{removed}: {}", mount.counts());
}

#[test]
fn what_the_host_makes_in_a_directory_of_the_guest_is_found() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    for round in 0..50 {
        let (directory, file) = (format!("d{round}"), format!("d{round}/file"));
        fs::create_dir(mount.guest(&directory)).unwrap();
        assert_eq!(fs::metadata(mount.guest(&file)).unwrap_err().kind(), ErrorKind::NotFound);
        // By every way that a name can come.
        match round % 3 {
            0 => fs::write(mount.host(&file), "host").unwrap(),
            1 => {
                fs::write(mount.host("other"), "host").unwrap();
                fs::rename(mount.host("other"), mount.host(&file)).unwrap();
            }
            _ => {
                fs::write(mount.host("first"), "host").unwrap();
                fs::hard_link(mount.host("first"), mount.host(&file)).unwrap();
            }
        }
        within("the file", || {
            (fs::read_to_string(mount.guest(&file)).ok()? == "host").then_some(())
        });
        fs::remove_file(mount.host(&file)).unwrap();
        within("its removal", || (!mount.guest(&file).exists()).then_some(()));
        if round % 3 == 2 {
            fs::remove_file(mount.host("first")).unwrap();
        }
    }
}

#[test]
fn a_directory_shows_the_times_of_each_change_at_once() {
    if !can_mount() {
        return;
    }
    use std::os::unix::fs::MetadataExt as _;
    let mount = Mount::new();
    fs::create_dir(mount.guest("d")).unwrap();
    let same = || {
        let (there, here) =
            (fs::metadata(mount.host("d")).unwrap(), fs::metadata(mount.guest("d")).unwrap());
        (there.mtime_nsec(), there.ctime_nsec(), there.nlink(), there.mode())
            == (here.mtime_nsec(), here.ctime_nsec(), here.nlink(), here.mode())
    };
    for round in 0..50 {
        let name = mount.guest(format!("d/{round}"));
        fs::write(&name, "x").unwrap();
        assert!(same(), "created, {round}");
        fs::rename(&name, mount.guest("d/renamed")).unwrap();
        assert!(same(), "renamed, {round}");
        fs::remove_file(mount.guest("d/renamed")).unwrap();
        assert!(same(), "removed, {round}");
        fs::create_dir(mount.guest("d/directory")).unwrap();
        assert!(same(), "directory, {round}");
        let mode = rustix::fs::Mode::from_raw_mode(0o700 + round % 8);
        rustix::fs::chmod(mount.guest("d"), mode).unwrap();
        fs::remove_dir(mount.guest("d/directory")).unwrap();
        assert!(same(), "removed directory, {round}");
        fs::write(mount.host("d/by host"), "x").unwrap();
        within("the host's change", || same().then_some(()));
        fs::remove_file(mount.host("d/by host")).unwrap();
        within("the host's removal", || same().then_some(()));
    }
}
