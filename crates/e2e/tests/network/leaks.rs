//! C10: after use of every service's key, the key is nowhere in the sandbox, and in none of our files.

use std::fs;
use std::time::Duration;

use hutch_testkit::{Account, Invocation, TestEnvironment};

use crate::credentials::{SERVICES, key, with_keys};
use crate::guest::{expect, fetch};

/// Looks into files and memory: a debug build of Rust would take minutes for a guest's.
const SEARCH: &str = include_str!("search.py");

/// What every key of these tests ends with, so that one search finds any of them.
const NEEDLE: &str = "-of-the-host-7f3a91";

#[test]
fn as_root_no_key_is_anywhere_in_the_sandbox_or_in_our_files() {
    let environment = with_keys();
    let sandbox = environment.boot("leaks");
    // Something that must be found, so that not finding the keys means something.
    let mark = format!("mark-that-{}-is-in-memory", "only");
    let file_mark = format!("mark-that-{}-is-on-disk", "only");
    sandbox.shell(&format!("echo {file_mark} > /home/agent/mark; sync")).run().success();
    sandbox.exec_with(["-d", "-e", &format!("MARK={mark}")], ["sleep", "600"]).run().success();
    // Used in every way: as a request, and reflected by the server in body, header, trailer and error page.
    let mut urls = Vec::new();
    for (_, host, ..) in SERVICES {
        for path in ["", "reflect", "reflect-error", "reflect-trailer", "reflect-chunks"] {
            urls.push(format!("https://{host}/{path}"));
        }
    }
    let (broken, working): (Vec<&str>, Vec<&str>) =
        urls.iter().map(String::as_str).partition(|url| url.ends_with("reflect-error"));
    expect(&environment, &sandbox, &[], &working, &[]);
    drop(fetch(&environment, &sandbox, &["--output", "/tmp/kept"], &broken));
    sandbox.shell("for u in groq.com x.ai; do curl -s https://api.$u/reflect; done > /home/agent/kept; sync")
        .run().success();

    let seen = environment.internet().report().text();
    for (variable, ..) in SERVICES {
        assert!(key(variable).ends_with(NEEDLE));
        assert!(seen.contains(&key(variable)), "{variable} was used");
    }

    // The command's variables went through the keeper.
    let keeper = format!("mem:{}", environment.process("hutch-keeper").pid);
    assert_eq!(search(&[NEEDLE], &[&keeper]), [""; 0]);

    // Its memory, as the host sees it; before anything inside is told what to look for.
    let vmm = format!("mem:{}", environment.process("qemu-system").pid);
    assert_eq!(search(&[&mark, NEEDLE], &[&vmm]), [format!("{vmm} {mark}")]);

    // As the guest's root sees it.
    // Not with the very words: the search would find its own command line.
    let pattern = NEEDLE.replacen('-', "[-]", 1);
    let look = format!(
        "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -a -e '{pattern}'; \
         grep -ra -l -e '{pattern}' /etc /home /root /run /tmp /var /usr/local {} 2>/dev/null; echo end",
        sandbox.workspace().display()
    );
    let privileged = sandbox.exec_with(["--privileged", "-u", "root"], ["sh", "-c", &look]);
    privileged.limit(Duration::from_secs(240)).run().success().says("end");

    // The disk and every file of ours; the command lines and variables of our processes.
    let disk = sandbox.directory().join("data.img");
    let disk = disk.to_string_lossy();
    assert_eq!(search(&[&file_mark, NEEDLE], &[&disk]), [format!("{disk} {file_mark}")]);
    assert_eq!(search(&[NEEDLE], &our_files(&environment)), [""; 0]);
    for process in environment.processes() {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(NEEDLE), "{file} of {}", process.program);
        }
    }
    sandbox.stop();
    assert_eq!(search(&[NEEDLE], &our_files(&environment)), [""; 0]);
    assert_eq!(search(&[NEEDLE], &[&disk]), [""; 0]);
}

/// Every file of the world: state, logs, configuration, runtime directory.
fn our_files(environment: &TestEnvironment) -> Vec<String> {
    hutch_testkit::environment::files(environment.root())
        .into_iter()
        .filter(|file| fs::metadata(file).is_ok_and(|metadata| metadata.is_file()))
        .map(|file| file.to_string_lossy().into_owned())
        .collect()
}

/// `PLACE WORD` for every word that is in a place.
#[track_caller]
fn search<S: AsRef<str>>(words: &[&str], places: &[S]) -> Vec<String> {
    let search = Invocation::new("/usr/bin/python3", Account::root()).args(["-c", SEARCH]);
    let search = search.args(words).args(["--"]).args(places.iter().map(AsRef::as_ref));
    let mut lines = search.run().success().lines();
    assert_eq!(lines.pop().as_deref(), Some("end"));
    lines
}
