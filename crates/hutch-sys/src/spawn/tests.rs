use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use super::*;
use crate::jail::FileAccess;
use crate::process::ProcessIdentity;

/// Runs a shell script in a launch that the caller adds to, and gives what it wrote.
fn shell(script: &str, add: impl FnOnce(&mut Launch)) -> String {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut launch = Launch::new("/bin/bash");
    launch.args(["-c", script]).stdout(writer.try_clone().unwrap()).stderr(writer);
    add(&mut launch);
    let mut child = launch.start().unwrap().child;
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said.trim_end().to_owned()
}

#[test]
fn a_command_has_path_and_lang_and_nothing_else() {
    let output = command("/usr/bin/env").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<_> =
        said.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["LANG", "PATH"]);
}

#[test]
fn a_launch_has_an_empty_environment() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut launch = Launch::new("/usr/bin/env");
    launch.env("ONLY", "this").stdout(writer);
    launch.start().unwrap().child.wait().unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ONLY=this\n");
}

#[test]
fn only_named_descriptors_are_inherited_in_order() {
    let mut first = tempfile::tempfile().unwrap();
    first.write_all(b"first").unwrap();
    let mut second = tempfile::tempfile().unwrap();
    second.write_all(b"second").unwrap();
    // A descriptor without the close-on-exec mark, as a careless library or a parent leaves them.
    let stray = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();

    let said =
        shell("cat /proc/self/fd/3 /proc/self/fd/4; echo; ls -m /proc/$$/fd; true", |launch| {
            assert_eq!(launch.inherit(first), 3);
            assert_eq!(launch.inherit(second), 4);
        });
    assert_eq!(said, "firstsecond\n0, 1, 2, 3, 4");
    drop(stray);
}

#[test]
fn descriptors_whose_numbers_overlap_reach_the_right_places() {
    // Ours have low numbers too, in an order that a naive dup2 would clobber.
    let files: Vec<File> = (0..8)
        .map(|number| {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "{number}").unwrap();
            file
        })
        .collect();
    let said = shell("for n in 3 4 5 6 7 8 9 10; do cat /proc/self/fd/$n; done", |launch| {
        for file in files.into_iter().rev() {
            launch.inherit(file);
        }
    });
    assert_eq!(said, "76543210");
}

#[test]
fn limits_and_the_session_are_its_own() {
    let said = shell(
        "ulimit -c; ulimit -Hn; test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo leader",
        |launch| {
            launch.limit(Resource::Core, 0).limit(Resource::Nofile, 77).new_session();
        },
    );
    assert_eq!(said, "0\n77\nleader");
}

#[test]
fn a_missing_program_is_named() {
    let error = Launch::new("/nonexistent/program").start().unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/program could not be started");
}

#[test]
fn a_jail_around_nothing_does_not_even_let_the_program_start() {
    let mut launch = Launch::new("/bin/true");
    launch.jail(Jail::new());
    match launch.start() {
        // The jail held before the first instruction: the program's own file cannot be executed.
        Err(LaunchError::Start { source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_jail_that_cannot_be_prepared_starts_nothing() {
    let mut launch = Launch::new("/bin/true");
    launch.jail(Jail::new().allow_path("/nonexistent", FileAccess::Read));
    assert!(matches!(
        launch.start(),
        Err(LaunchError::Jail { source: JailError::Path { .. }, .. })
    ));
}

/// A program of ours starts a sleeper and is killed: the sleeper must die with it. The program in between is a shell
/// whose parent death cannot be asked for from here, so the example does it.
#[test]
fn a_child_dies_with_its_parent() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut launch = Launch::new(example("launches"));
    launch.stdout(writer);
    let mut parent = launch.start().unwrap().child;
    let mut line = [0; 11];
    reader.read_exact(&mut line).unwrap();
    let pid: u32 = std::str::from_utf8(&line).unwrap().trim().parse().unwrap();
    let sleeper = ProcessIdentity::of(pid).unwrap().open().unwrap();
    assert!(!sleeper.wait_ended(Duration::ZERO).unwrap());
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(sleeper.wait_ended(Duration::from_secs(10)).unwrap());
}

/// The death signal comes when the thread that forked ends: launches must not be tied to their caller's thread.
#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let mut child = std::thread::spawn(|| {
        let mut launch = Launch::new("/bin/sleep");
        launch.arg("1000").die_with_parent();
        launch.start().unwrap().child
    })
    .join()
    .unwrap();
    let process = crate::process::Process::of_child(&child).unwrap();
    assert!(!process.wait_ended(Duration::from_millis(300)).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Where Cargo puts this crate's examples, beside the tests.
fn example(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is built with the tests", path.display());
    path
}
