//! What is said about the network of sandboxes that do not run, and about words that make no sense.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hutch_api::{
    NetworkChecked, NetworkEdit, NetworkPolicy, NetworkRequest, NetworkService, Request, Response,
};
use hutch_policy::log::{How, Record};
use hutch_policy::policy::Decision;

use super::keeper::PlayedKeeper;
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

/// A sandbox that runs, as far as its network is concerned.
fn running(world: &World, cut: u32, notes: &[&str]) -> PlayedKeeper {
    let record = world.sandbox("one", &world.project("one"));
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    PlayedKeeper::start(world, &record, move |request| match request {
        Request::Network(NetworkRequest::Policy | NetworkRequest::Edit(_)) => {
            Response::NetworkPolicy(NetworkPolicy {
                proxy_config: hutch_policy::config::ProxyConfig::default().to_text(),
                inspect: "all".to_owned(),
                cut,
                notes: notes.clone(),
            })
        }
        Request::Network(NetworkRequest::Services) => Response::NetworkServices(vec![
            NetworkService { name: "openai".to_owned(), found: Some("secret store".to_owned()) },
            NetworkService { name: "xai".to_owned(), found: None },
        ]),
        Request::Network(NetworkRequest::Check { host, .. }) if host == "broken.example" => {
            Response::Failed { reason: "the proxy is away\u{1b}[2J".to_owned() }
        }
        Request::Network(NetworkRequest::Check { host, .. }) => {
            Response::NetworkChecked(NetworkChecked {
                allowed: host != "blocked.example",
                rule: "<default policy>".to_owned(),
                reason: "no rule covers it".to_owned(),
                inspected: true,
                credential: None,
                addresses: vec!["192.0.2.1".to_owned()],
            })
        }
        other => Response::Failed { reason: format!("{other:?} was not expected") },
    })
}

#[test]
fn a_change_reaches_the_keeper_whole_and_is_told_in_a_line() {
    let world = World::new();
    let keeper = running(&world, 2, &["`10.1.0.0/16` is not listed\u{1b}"]);
    let flags = [
        "--policy",
        "deny",
        "--inspect",
        "credentials",
        "--allow-host",
        "*.a.example",
        "--allow-host",
        "b.example:443",
        "--block-host",
        "c.example",
        "--bypass-host",
        "localhost",
        "--allow-cidr",
        "10.1.0.0/16",
        "--block-cidr",
        "203.0.113.0/24",
        "--bypass-cidr",
        "127.0.0.0/8",
    ];
    let run = world.docker_sandbox(&[&["network", "proxy", "one"], &flags[..]].concat());
    insta::assert_snapshot!("edited", run.seen());
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let edit = NetworkEdit {
        policy: Some("deny".to_owned()),
        inspect: Some("credentials".to_owned()),
        allow_hosts: texts(&["*.a.example", "b.example:443"]),
        block_hosts: texts(&["c.example"]),
        bypass_hosts: texts(&["localhost"]),
        allow_cidrs: texts(&["10.1.0.0/16"]),
        block_cidrs: texts(&["203.0.113.0/24"]),
        bypass_cidrs: texts(&["127.0.0.0/8"]),
    };
    assert_eq!(keeper.asked(), [Request::Network(NetworkRequest::Edit(edit))]);
    // Something that can never be is not even asked.
    assert_eq!(world.hutch(&["network", "proxy", "one", "--allow-host", "a/b"]).code, 1);
    assert!(keeper.asked().is_empty());
    let json = world.hutch(&["network", "proxy", "one", "--policy", "allow", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["services"][0]["credential"], "secret store");
}

#[test]
fn the_policy_of_a_running_sandbox_is_what_its_keeper_says() {
    let world = World::new();
    let _keeper = running(&world, 0, &[]);
    let table = world.hutch(&["network", "proxy", "one"]).stdout;
    assert!(table.contains("INSPECTED         all"), "{table}");
    assert!(
        table.contains(
            "CREDENTIALS       openai  secret store\n                  none found for xai\n"
        ),
        "{table}"
    );
    let inspected = world.hutch(&["inspect", "one"]).stdout;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(
        inspected[0]["network"]["services"][1],
        serde_json::json!({"name": "xai", "credential": null})
    );
}

#[test]
fn a_check_says_what_would_happen_in_words_and_in_its_code() {
    let world = World::new();
    let keeper = running(&world, 0, &[]);
    insta::assert_snapshot!(
        "check_allowed",
        world.hutch(&["network", "check", "one", "A.example."]).seen()
    );
    let denied = world.hutch(&["network", "check", "one", "blocked.example:80", "--json"]);
    insta::assert_snapshot!("check_denied_json", denied.seen());
    insta::assert_snapshot!(
        "check_failed",
        world.hutch(&["network", "check", "one", "broken.example"]).seen()
    );
    let check =
        |host: &str, port| Request::Network(NetworkRequest::Check { host: host.to_owned(), port });
    assert_eq!(
        keeper.asked(),
        [check("a.example", 443), check("blocked.example", 80), check("broken.example", 443)]
    );
}

#[test]
fn the_variables_of_services_are_told_and_no_others() {
    let world = World::new();
    let record = world.sandbox("one", &world.project("one"));
    let keeper = PlayedKeeper::start(&world, &record, |request| match request {
        Request::Network(NetworkRequest::Credentials { .. }) => Response::Done,
        other => panic!("{other:?} was not expected"),
    });
    let run = |variables: &[(&str, &str)]| {
        let mut command = world.command(Path::new(env!("CARGO_BIN_EXE_hutch")));
        command.args(["run", "--detached", "one"]).envs(variables.iter().copied());
        world.run(&mut command, b"")
    };
    let done =
        run(&[("OPENAI_API_KEY", "the-key"), ("UNRELATED_SECRET", "other"), ("XAI_API_KEY", "")]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "one\n", ""));
    let variables = vec![("OPENAI_API_KEY".to_owned(), "the-key".to_owned())];
    assert_eq!(keeper.asked(), [Request::Network(NetworkRequest::Credentials { variables })]);
    assert_eq!(run(&[]).code, 0);
    assert!(keeper.asked().is_empty());
}

#[test]
fn credentials_that_cannot_be_told_are_no_reason_not_to_run() {
    let world = World::new();
    let record = world.sandbox("one", &world.project("one"));
    let _keeper = PlayedKeeper::start(&world, &record, |_| Response::Failed {
        reason: "the broker has ended".to_owned(),
    });
    let mut command = world.command(Path::new(env!("CARGO_BIN_EXE_hutch")));
    command.args(["run", "--detached", "one"]).env("OPENAI_API_KEY", "the-key");
    let run = world.run(&mut command, b"");
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n"));
    assert_eq!(
        run.stderr,
        "warning: the credentials of this shell are not used: the broker has ended\n"
    );
}
