//! N9: what was asked for, and what was decided.

use std::time::Duration;

use hutch_testkit::{TestEnvironment, TestSandbox, eventually};
use serde_json::Value;

use crate::guest::{fetch, proxy};

/// The entries of `network log --json`.
#[track_caller]
fn entries(environment: &TestEnvironment, words: &[&str]) -> Vec<Value> {
    let log = environment.hutch(["network", "log", "--json"]).args(words).run().success().json();
    log["entries"].as_array().unwrap_or_else(|| panic!("entries in {log}")).clone()
}

fn one_of_each(environment: &TestEnvironment, sandbox: &TestSandbox<'_>) {
    proxy(environment, sandbox, &["--block-host", "blocked.test"]);
    let urls = [
        "http://plain.test/path?token=abc-secret-in-query&x=1",
        "https://tunnel.test/invisible",
        "https://api.openai.com/v1/models?key=abc-secret-in-query",
        "http://blocked.test/data",
        "https://blocked.test/data",
        "http://private.test/",
    ];
    drop(fetch(
        environment,
        sandbox,
        &["--header", "Authorization: Bearer abc-secret-in-header"],
        &urls,
    ));
}

#[test]
fn requests_are_logged_with_what_was_decided_and_why() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("logged");
    one_of_each(&environment, &sandbox);
    let all = eventually("all are logged", Duration::from_secs(10), || {
        Some(entries(&environment, &[])).filter(|entries| entries.len() >= 6)
    });
    for (url, method, action) in [
        ("http://plain.test/path", "GET", "allowed"),
        ("https://api.openai.com/v1/models", "GET", "allowed"),
        ("http://blocked.test/data", "GET", "denied"),
        ("http://private.test/", "GET", "denied"),
    ] {
        let entry = all
            .iter()
            .find(|entry| entry["url"].as_str().is_some_and(|own| own.starts_with(url)))
            .unwrap_or_else(|| panic!("{url} in {all:#?}"));
        assert_eq!(entry["method"], method, "{entry}");
        assert_eq!(entry["action"], action, "{entry}");
        assert_eq!(entry["sandbox"], "logged", "{entry}");
        assert_eq!(entry["type"], "request", "{entry}");
        let time = entry["timestamp"].as_str().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{entry}");
        assert!(entry["rule"].as_str().is_some_and(|rule| !rule.is_empty()), "{entry}");
    }
    // Of a tunnel host and port are known, its path is not.
    let text = format!("{all:?}");
    assert!(text.contains("tunnel.test") && !text.contains("invisible"), "{text}");

    let table = environment.hutch(["network", "log"]).run().success().text();
    for words in ["Blocked requests:", "Allowed requests:", "SANDBOX", "LAST SEEN", "COUNT"] {
        assert!(table.contains(words), "`{words}` in\n{table}");
    }
    assert!(table.contains("blocked.test:443") && table.contains("plain.test:80"), "{table}");
    let quiet = environment.hutch(["network", "log", "-q"]).run().success().text();
    assert!(!quiet.contains("SANDBOX") && quiet.contains("blocked.test"), "{quiet}");
    assert_eq!(entries(&environment, &["--limit", "2"]).len(), 2);
    assert_eq!(entries(&environment, &["--limit", "2"]), all[all.len() - 2..]);
    assert_eq!(entries(&environment, &["logged"]), all);
    environment.hutch(["network", "log", "nobody"]).run().failure();

    // No secrets; still there when the sandbox has stopped.
    sandbox.stop();
    let raw = std::fs::read_to_string(sandbox.directory().join("network/log.jsonl"))
        .expect("it is there");
    assert!(!raw.contains("abc-secret"), "{raw}");
    assert!(!table.contains("abc-secret") && !format!("{all:?}").contains("abc-secret"));
    assert_eq!(entries(&environment, &[]), all);
}

#[test]
fn the_log_can_be_followed_and_survives_a_crash() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("followed");
    let mut follow = environment.hutch(["network", "log", "--follow", "followed"]).converse();
    drop(fetch(&environment, &sandbox, &[], &["http://first.test/one"]));
    let line = follow.hear();
    assert!(line.contains("first.test") && line.contains("allowed"), "{line}");
    environment.process("hutch-keeper").signal(rustix::process::Signal::KILL);
    sandbox.becomes("stopped", Duration::from_secs(20));
    assert_eq!(entries(&environment, &["followed"]).len(), 1);
    drop(fetch(&environment, &sandbox, &[], &["http://second.test/two"]));
    let line = follow.hear();
    assert!(line.contains("second.test"), "{line}");
    assert_eq!(entries(&environment, &["followed"]).len(), 2);
}
