use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use super::*;
use crate::spawn;

/// Runs the example `jailed`, which enters the jail itself and tries to get out.
fn attempts(filter: &str) -> BTreeMap<String, bool> {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::File::create(directory.path().join("outside")).unwrap();
    symlink(directory.path().join("outside"), inside.join("link")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();

    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/jailed");
    let output = spawn::command(program).arg(&inside).args([&port, filter]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, did)| (name.to_owned(), did == "YES"))
        .collect()
}

fn names(attempts: &BTreeMap<String, bool>, did: bool) -> Vec<&str> {
    attempts
        .iter()
        .filter(|&(_, &succeeded)| succeeded == did)
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn nothing_outside_the_allowed_directory_can_be_reached() {
    let attempts = attempts("none");
    assert_eq!(attempts.len(), 17);
    // Landlock alone knows TCP and not UDP.
    let mut expected = vec!["udp", "write-inside"];
    if attempts["complete"] {
        expected.insert(0, "complete");
    }
    assert_eq!(
        names(&attempts, true),
        expected,
        "on a kernel without Landlock this fails: the jail is not complete"
    );
}

#[test]
fn with_the_filter_there_is_no_network_of_any_kind() {
    let attempts = attempts("filter");
    assert!(!names(&attempts, true).contains(&"udp"), "{attempts:?}");
    assert!(!names(&attempts, true).contains(&"tcp-connect"), "{attempts:?}");
}

#[test]
fn a_process_with_threads_is_refused() {
    let parked = std::thread::spawn(std::thread::park);
    let error = Jail::new().enter().unwrap_err();
    assert!(matches!(error, JailError::Threads { threads } if threads > 1), "{error}");
    parked.thread().unpark();
    parked.join().unwrap();
}

/// What a launched program's kernel-side state says after the jail.
fn status_of_jailed_cat(jail: Jail) -> BTreeMap<String, String> {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut launch = spawn::Launch::new("/bin/cat");
    let jail = ["/bin", "/lib", "/lib64", "/usr"]
        .iter()
        .fold(jail, |jail, path| jail.allow_path_if_present(path, FileAccess::Execute))
        .allow_path("/proc", FileAccess::Read);
    launch.arg("/proc/self/status").stdout(writer).jail(jail);
    launch.start().unwrap().child.wait().unwrap();
    let mut said = String::new();
    io::Read::read_to_string(&mut reader, &mut said).unwrap();
    let field = |line: &str| {
        line.split_once(":\t").map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    said.lines().filter_map(field).collect()
}

#[test]
fn a_launched_program_has_no_capability_and_can_gain_none() {
    let status = status_of_jailed_cat(Jail::new());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(status["CapBnd"], "0000000000000000");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

#[test]
fn capabilities_that_are_kept_are_the_only_ones() {
    if !Identity::can_be_changed() {
        // An ordinary user has none that could be kept.
        let status = status_of_jailed_cat(Jail::new().keep_capabilities(Capabilities::CHOWN));
        assert_eq!(status["CapEff"], "0000000000000000");
        return;
    }
    let status = status_of_jailed_cat(Jail::new().keep_capabilities(Capabilities::CHOWN));
    assert_eq!(status["CapEff"], "0000000000000001");
    assert_eq!(status["CapBnd"], "0000000000000001");
}

#[test]
fn root_becomes_another_user_without_groups_and_nobody_else_does() {
    if Identity::can_be_changed() {
        let status = status_of_jailed_cat(Jail::new().run_as(Identity::NOBODY));
        assert_eq!(status["Uid"], "65534\t65534\t65534\t65534");
        assert_eq!(status["Gid"], "65534\t65534\t65534\t65534");
        assert_eq!(status["Groups"].trim(), "");
        assert_eq!(status["CapEff"], "0000000000000000");
    } else {
        let mut launch = spawn::Launch::new("/bin/true");
        launch.jail(Jail::new().allow_path("/", FileAccess::Execute).run_as(Identity::NOBODY));
        match launch.start() {
            // The child told at which stage it failed.
            Err(spawn::LaunchError::Jail { source: JailError::Enter { stage, .. }, .. }) => {
                assert_eq!(stage, Stage::Identity);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_filter_is_in_force_in_a_launched_program() {
    let status = status_of_jailed_cat(Jail::new().system_calls(SystemCalls::AllBut(networking())));
    assert_eq!(status["Seccomp"], "2");
}

#[test]
fn an_allow_list_kills_what_it_does_not_list() {
    use std::os::unix::process::ExitStatusExt as _;
    let mut launch = spawn::Launch::new("/bin/true");
    launch.jail(
        Jail::new()
            .allow_path("/", FileAccess::Execute)
            .system_calls(SystemCalls::Only(vec![libc::SYS_execve])),
    );
    let status = launch.start().unwrap().child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

#[test]
fn stages_have_numbers_that_come_back() {
    for stage in [Stage::Identity, Stage::Files, Stage::SystemCalls, Stage::NotDumpable] {
        assert_eq!(Stage::from_number(stage.number()), Some(stage));
    }
    assert_eq!(Stage::from_number(200), None);
}
