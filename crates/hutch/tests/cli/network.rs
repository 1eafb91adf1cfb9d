//! What is said about the network of sandboxes that do not run, and about words that make no sense.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hutch_policy::log::{How, Record};
use hutch_policy::policy::Decision;

use super::world::World;

/// 2026-03-22T20:33:18Z
const TIME: u64 = 1_774_211_598_000;

/// A sandbox that ran once, as far as its network is concerned.
fn once_run(world: &World, name: &str) -> PathBuf {
    world.sandbox(name, &world.project(name));
    let directory = world.path("home/.local/state/hutch/sandboxes").join(name);
    std::fs::create_dir(directory.join("network")).expect("it is ours");
    write(
        &directory.join("proxy-config.json"),
        &hutch_policy::config::ProxyConfig::default().to_text(),
    );
    directory.join("network")
}

fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).expect("the world is writable");
    file.write_all(text.as_bytes()).expect("the world is writable");
}

fn append(path: &Path, text: &str) {
    let file = std::fs::File::options().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the world is writable");
}

fn record(sandbox: &str, second: u64, decision: Decision, host: &str) -> Record {
    Record {
        rule: "<default policy>".to_owned(),
        reason: "for a reason".to_owned(),
        host: host.to_owned(),
        port: 443,
        ..Record::new(TIME + second * 1000, sandbox, How::Tunnel, decision)
    }
}

fn request(sandbox: &str, second: u64, url: &str) -> Record {
    Record {
        method: Some("GET".to_owned()),
        url: Some(url.to_owned()),
        status: Some(200),
        received: 12,
        ..record(sandbox, second, Decision::Allowed, "api.example.com")
    }
}

#[test]
fn the_log_of_stopped_sandboxes_is_shown_in_each_form() {
    let world = World::new();
    let one = once_run(&world, "one");
    let two = once_run(&world, "two");
    world.sandbox("never-ran", &world.project("never"));
    append(&one.join("log.jsonl.1"), &request("one", 0, "https://api.example.com/a").to_line());
    append(&one.join("log.jsonl"), &record("one", 2, Decision::Denied, "example.com").to_line());
    append(&one.join("log.jsonl"), &request("one", 3, "https://api.example.com/b").to_line());
    append(&one.join("log.jsonl"), "garbage\n{\"time_ms\":1");
    // Whose file it is decides, whatever is in it.
    append(&two.join("log.jsonl"), &record("one", 1, Decision::Denied, "second.example").to_line());
    insta::assert_snapshot!("log", world.hutch(&["network", "log"]).seen());
    insta::assert_snapshot!("log_quiet", world.hutch(&["network", "log", "-q", "one"]).seen());
    insta::assert_snapshot!("log_requests", world.hutch(&["network", "log", "--requests"]).seen());
    insta::assert_snapshot!(
        "log_json",
        world.docker_sandbox(&["network", "log", "--json", "--limit", "2"]).seen()
    );
    assert_eq!(
        world.hutch(&["network", "log", "--requests", "--limit", "1"]).stdout.lines().count(),
        1
    );
    let none = world.hutch(&["network", "log", "never-ran"]);
    assert_eq!(
        (none.code, none.stdout.as_str(), none.stderr.as_str()),
        (0, "", "No requests yet.\n")
    );
    let none = world.hutch(&["network", "log", "--json", "never-ran"]);
    assert_eq!(none.stdout, "{\n  \"format_version\": 1,\n  \"entries\": []\n}\n");
    assert_eq!(world.hutch(&["network", "log", "nobody"]).code, 1);
}

#[test]
fn what_a_guest_asked_for_moves_no_cursor() {
    let world = World::new();
    let log = once_run(&world, "one");
    let line = serde_json::json!({
        "time_ms": TIME, "sandbox": "one", "how": "plain", "decision": "allowed",
        "rule": "*", "reason": "\u{1b}[2J", "host": "a\u{1b}]0;title\u{7}", "port": 80,
        "method": "G\u{1b}[1mET", "url": "http://a/\u{9b}31m\u{202e}",
    });
    append(&log.join("log.jsonl"), &format!("{line}\n"));
    for words in
        [&["network", "log"][..], &["network", "log", "--requests"], &["network", "log", "--json"]]
    {
        let run = world.hutch(words);
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("1b"), "it is shown: {}", run.stdout);
        assert!(
            !run.stdout.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')),
            "{:?}",
            run.stdout
        );
    }
}

#[test]
fn the_log_is_followed_over_rotations_until_the_sandbox_is_gone() {
    let world = World::new();
    let log = once_run(&world, "one");
    let current = log.join("log.jsonl");
    append(&current, &request("one", 0, "https://api.example.com/old").to_line());
    let hutch = Path::new(env!("CARGO_BIN_EXE_hutch"));
    let mut child = world
        .command(hutch)
        .args(["network", "log", "--follow", "--json", "one"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || -> serde_json::Value {
        let line = lines.next().expect("there is more").expect("it is text");
        serde_json::from_str(&line).expect("each line is an object")
    };
    assert_eq!(next()["url"], "https://api.example.com/old");
    append(&current, &request("one", 1, "https://api.example.com/new").to_line());
    assert_eq!(next()["url"], "https://api.example.com/new");
    std::fs::rename(&current, log.join("log.jsonl.1")).expect("it is ours");
    append(&current, &record("one", 2, Decision::Denied, "blocked.example").to_line());
    let entry = next();
    assert_eq!(entry["host"], "blocked.example");
    assert_eq!(entry["action"], "denied");
    assert_eq!(world.hutch(&["rm", "one"]).code, 0);
    assert!(lines.next().is_none());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn the_policy_of_a_stopped_sandbox_is_shown_and_cannot_be_changed() {
    let world = World::new();
    once_run(&world, "one");
    world.sandbox("never-ran", &world.project("never"));
    insta::assert_snapshot!("policy", world.hutch(&["network", "proxy", "one"]).seen());
    insta::assert_snapshot!(
        "policy_json",
        world.hutch(&["network", "proxy", "one", "--json"]).seen()
    );
    for (name, words) in [
        ("policy_never_ran", &["network", "proxy", "never-ran"][..]),
        ("edit_stopped", &["network", "proxy", "one", "--policy", "deny"]),
        ("edit_unknown", &["network", "proxy", "on", "--policy", "deny"]),
        ("edit_wrong_policy", &["network", "proxy", "one", "--policy", "open"]),
        ("edit_wrong_host", &["network", "proxy", "one", "--allow-host", "https://example.com/"]),
        ("edit_wrong_cidr", &["network", "proxy", "one", "--block-cidr", "10.0.0.0/33"]),
        (
            "edit_contradiction",
            &["network", "proxy", "one", "--allow-host", "a.b", "--block-host", "A.b."],
        ),
        ("check_stopped", &["network", "check", "one", "example.com"]),
        ("check_wrong_host", &["network", "check", "one", "*.example.com"]),
    ] {
        insta::assert_snapshot!(name, world.hutch(words).seen());
    }
    let inspected = world.hutch(&["inspect", "one", "never-ran"]).stdout;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected[0]["network"]["policy"], "allow");
    assert_eq!(inspected[0]["network"]["inspect"], "credentials");
    assert_eq!(inspected[1].get("network"), None);
}

#[test]
fn a_policy_file_that_is_damaged_is_told_and_not_taken_for_another() {
    let world = World::new();
    let log = once_run(&world, "one");
    write(&log.with_file_name("proxy-config.json"), "{");
    assert_eq!(world.hutch(&["network", "proxy", "one"]).code, 1);
    let inspect = world.hutch(&["inspect", "one"]);
    assert_eq!(inspect.code, 0);
    assert!(
        inspect.stderr.starts_with("warning: the network of the sandbox `one` is not known"),
        "{}",
        inspect.stderr
    );
}

/// A `hutch-proxy` that says what it was called with and what it was told.
fn played_proxy(world: &World) -> Command {
    let libexec = world.path("libexec");
    std::fs::create_dir_all(&libexec).expect("the world is writable");
    let program = libexec.join("hutch-proxy");
    write(
        &program,
        "#!/bin/sh\necho \"$@\"\n[ \"$4\" = rm ] && exit 3\n[ \"$4\" = set ] && cat\nexit 0\n",
    );
    let runnable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, runnable).expect("it is ours");
    let mut command = world.command(Path::new(env!("CARGO_BIN_EXE_hutch")));
    command.env("HUTCH_LIBEXEC", &libexec);
    command
}

#[test]
fn secrets_go_to_the_program_that_keeps_them() {
    let world = World::new();
    world.config("[[network.services]]\nname = \"ours\"\nhosts = [\"api.example.com\"]\nheader = \"x-key\"\n");
    let run =
        |words: &[&str]| world.run(played_proxy(&world).arg("secret").args(words), b"the-key\n");
    let place = "secret --config WORLD/home/.config/hutch";
    let set = run(&["set", "ours"]);
    assert_eq!((set.code, set.stdout), (0, format!("{place} set ours\nthe-key\n")));
    assert_eq!(run(&["set", "openai"]).code, 0);
    assert_eq!(run(&["ls", "--json"]).stdout, format!("{place} ls --json\n"));
    let rm = run(&["rm", "a", "b"]);
    assert_eq!((rm.code, rm.stdout, rm.stderr.as_str()), (1, format!("{place} rm a b\n"), ""));
    insta::assert_snapshot!("secret_unknown", run(&["set", "something"]).seen());
    insta::assert_snapshot!("secret_misspelt", run(&["set", "opnai"]).seen());
}

#[test]
fn a_key_in_a_workspace_is_warned_of() {
    let world = World::new();
    let project = world.project("app");
    let text = project.display().to_string();
    // Without the other programs nothing is made.
    let warned = || {
        let mut command = world.command(Path::new(env!("CARGO_BIN_EXE_hutch")));
        command.env("HUTCH_LIBEXEC", world.path("nowhere")).args(["create", "shell", &text]);
        world.run(&mut command, b"").stderr.contains(".claude.json holds an API key")
    };
    assert!(!warned());
    for (content, expected) in [
        ("{\"primaryApiKey\": \"sk-ant-1\", \"other\": [1]}", true),
        ("{\"primaryApiKey\": \"\"}", false),
        ("{\"primaryApiKey\": null}", false),
        ("{\"other\": \"primaryApiKey\"}", false),
        ("{\"primaryApiKey\"", false),
    ] {
        write(&project.join(".claude.json"), content);
        assert_eq!(warned(), expected, "{content}");
    }
}

#[test]
fn a_wrong_network_setting_is_told_before_anything_is_made() {
    let world = World::new();
    world.config("[network]\ninspect = \"everything\"\n");
    insta::assert_snapshot!("config_wrong_inspect", world.hutch(&["ls"]).seen());
    world.config("[network]\ninspcet = \"all\"\n");
    insta::assert_snapshot!("config_unknown_network_key", world.hutch(&["ls"]).seen());
}
