//! The checks that the tests with virtual machines run in the guest, on a mount of this machine: minutes shorter.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use hutch_sys::spawn::command;
use hutch_workspace::WorkspaceSpec;

use crate::harness::{HOST_USER, Mount, can_mount};

const SEMANTICS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/tests/guest/semantics.py"));
const STEPS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/tests/guest/steps.py"));
/// The sandbox's user.
const AGENT: u32 = 1000;

fn can_run() -> bool {
    let python = Path::new("/usr/bin/python3").exists();
    if !python {
        writeln!(std::io::stderr(), "skipped: needs python3").ok();
    }
    python && can_mount()
}

#[test]
fn programs_of_the_agent_find_what_they_expect() {
    if !can_run() {
        return;
    }
    let mount = Mount::of_a_user(|host| vec![WorkspaceSpec::new(host, false)]);
    let mut python = command("python3");
    python.args(["-c", SEMANTICS]).current_dir(mount.guest("")).uid(AGENT).gid(AGENT);
    let output = python.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with(" 0 failed\n") && said.lines().count() == 1, "{output:?}\n{said}");
}

/// One side of the conversation with the steps script.
struct Side {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Side {
    fn start(directory: &Path, user: u32) -> Self {
        let mut child = command("python3")
            .args(["-u", "-c", STEPS])
            .current_dir(directory)
            .uid(user)
            .gid(user)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it works");
        let (to, from) =
            (child.stdin.take().expect("it works"), child.stdout.take().expect("it works"));
        Self { child, to, from: BufReader::new(from) }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("it works");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it works");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn agree(host: &mut Side, guest: &mut Side, question: &str, when: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (there, here) = (host.ask(question), guest.ask(question));
        if there == here {
            return;
        }
        assert!(Instant::now() < deadline, "{when}, {question}: {}", difference(&there, &here));
    }
}

#[test]
fn each_step_of_one_side_is_seen_by_the_other() {
    if !can_run() {
        return;
    }
    let mount = Mount::of_a_user(|host| vec![WorkspaceSpec::new(host, false)]);
    let mut host = Side::start(&mount.host(""), HOST_USER);
    let mut guest = Side::start(&mount.guest(""), AGENT);
    for seed in 0..800 {
        let actor = if seed % 2 == 0 { &mut host } else { &mut guest };
        let touched = actor.ask(&format!("change {seed}"));
        let touched = touched.trim_matches(['[', ']']);
        for path in touched.split(", ") {
            let path: String = serde_json::from_str(path).unwrap();
            agree(&mut host, &mut guest, &format!("look {path}"), &format!("step {seed}"));
        }
    }
    agree(&mut host, &mut guest, "tree", "at the end");
}

#[test]
fn thousands_of_steps_on_both_sides_at_once_end_with_identical_trees() {
    if !can_run() {
        return;
    }
    let mount = Mount::of_a_user(|host| vec![WorkspaceSpec::new(host, false)]);
    let mut host = Side::start(&mount.host(""), HOST_USER);
    let mut guest = Side::start(&mount.guest(""), AGENT);
    for round in 0..12 {
        host.say(&format!("steps {} 500", 2 * round));
        guest.say(&format!("steps {} 500", 2 * round + 1));
        for succeeded in [host.hear(), guest.hear()] {
            // Either side may lock both out of most directories early on.
            assert!(succeeded.parse::<u32>().unwrap() > 0, "{succeeded}");
        }
        agree(&mut host, &mut guest, "tree", &format!("round {round}"));
    }
}

/// Where two long answers part.
fn difference(there: &str, here: &str) -> String {
    let at = there.bytes().zip(here.bytes()).take_while(|(a, b)| a == b).count();
    let part = |text: &str| {
        let bytes = text.as_bytes();
        let around = bytes.get(at.saturating_sub(100)..bytes.len().min(at + 60));
        String::from_utf8_lossy(around.unwrap_or_default()).into_owned()
    };
    format!("\nhost  …{}…\nguest …{}…", part(there), part(here))
}
