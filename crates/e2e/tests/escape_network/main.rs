//! Attacks on the proxy and on the capture of connections, from inside a sandbox: one table, one VM.

#![expect(clippy::panic, reason = "an expectation of a test that fails is a panic")]

mod attack;
mod secrets;
mod table;

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use hutch_testkit::internet::{PRIVATE, SERVER};
use hutch_testkit::{TestEnvironment, TestSandbox};
use serde_json::Value;

use crate::attack::{Attack, Outcome};

const ATTACKER: &str = include_str!("attacker.py");

/// Carries out attacks and gives what came back, in their order.
#[track_caller]
fn carry_out(
    environment: &TestEnvironment,
    sandbox: &TestSandbox<'_>,
    attacks: &[Attack],
) -> Vec<Outcome> {
    let list: Vec<Value> = attacks
        .iter()
        .map(|attack| serde_json::json!({ "name": attack.name, "steps": attack.steps }))
        .collect();
    let file = sandbox.workspace().join("attacks.json");
    environment.write(&file, Value::from(list).to_string());
    let run = sandbox.exec(["python3", "-c", ATTACKER]).args([&file]);
    let run = run.limit(Duration::from_secs(280)).run().success();
    let outcomes: Vec<Outcome> = serde_json::from_slice(&run.stdout).expect("it prints JSON");
    assert_eq!(outcomes.len(), attacks.len());
    outcomes
}

/// The entries of the log.
#[track_caller]
fn entries(environment: &TestEnvironment) -> Vec<Value> {
    let log = environment.hutch(["network", "log", "--json"]).run().success().json();
    log["entries"].as_array().unwrap_or_else(|| panic!("entries in {log}")).clone()
}

#[test]
fn every_attack_is_refused_logged_and_reaches_nobody() {
    let environment =
        TestEnvironment::with_internet().variable("OPENAI_API_KEY", "key-of-the-host");
    let sandbox = environment.boot("attacked");
    environment.internet().name("rebind.test", &[&[SERVER], &["127.0.0.1"], &["10.0.0.5"]]);
    environment
        .hutch([
            "network",
            "proxy",
            "attacked",
            "--block-host",
            "blocked.test",
            "--block-host",
            "*.blocked.test",
        ])
        .run()
        .success();
    let attacks = table::attacks();
    assert!(attacks.len() >= 100, "{} attacks", attacks.len());
    let unique: HashSet<_> = attacks.iter().map(|attack| attack.name).collect();
    assert_eq!(unique.len(), attacks.len(), "names are unique");
    let outcomes = carry_out(&environment, &sandbox, &attacks);

    let mut failures = Vec::new();
    for outcome in &outcomes {
        let answer = &outcome.answer;
        // The server says hello to whoever reaches it, and tells what it got.
        let served = answer.contains("hello from") || answer.contains("forbidden\n");
        if served && !answer.contains("/first") && !first_is_fine(&outcome.name) {
            failures.push(format!("{}: it was served: {outcome:?}", outcome.name));
        }
        // The attacker itself listens for two seconds and a half to what stays open. Programs take seconds to begin on
        // an emulated processor.
        let is_program =
            attacks.iter().any(|attack| attack.name == outcome.name && attack.is_program());
        if outcome.seconds > if is_program { 45.0 } else { 15.0 } {
            failures.push(format!("{}: it hung: {outcome:?}", outcome.name));
        }
    }
    let report = environment.internet().report();
    for connection in &report.connections {
        let address = connection.server.rsplit_once(':').map_or("", |(address, _)| address);
        if PRIVATE.contains(&address.trim_matches(['[', ']'])) {
            failures.push(format!("a private server was reached: {connection:?}"));
        }
        if connection.sni.as_deref().is_some_and(|name| name.contains("blocked")) {
            failures.push(format!("a blocked name was asked for in TLS: {connection:?}"));
        }
    }
    for request in &report.requests {
        let text = format!("{request:?}");
        // A name that is public now may be reached; that it is private a moment later must not matter.
        let public_now = request.host == "rebind.test";
        if (text.contains("forbidden") || text.contains("blocked.test")) && !public_now {
            failures.push(format!("a request arrived: {request:?}"));
        }
    }
    for raw in &report.raw {
        if raw.contains("forbidden") {
            failures.push(format!("raw bytes arrived: {raw:?}"));
        }
    }
    let entries = entries(&environment);
    let denied: Vec<&Value> = entries.iter().filter(|entry| entry["action"] == "denied").collect();
    for attack in &attacks {
        let Some(host) = attack.logged else { continue };
        if !denied.iter().any(|entry| entry.to_string().contains(host)) {
            failures.push(format!("{}: no denial of {host} in the log", attack.name));
        }
    }
    if denied.len() < attacks.len() * 9 / 10 {
        failures.push(format!("{} denials logged of {} attacks", denied.len(), attacks.len()));
    }
    for entry in &entries {
        let text = entry.to_string();
        if text.contains("forged.test") && entry["action"] != "denied" {
            failures.push(format!("an entry was forged: {text}"));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));

    // The log is whole, and shown without a control character.
    let raw =
        fs::read_to_string(sandbox.directory().join("network/log.jsonl")).expect("it is there");
    for line in raw.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
    }
    for words in [&["network", "log"][..], &["network", "log", "-q"]] {
        let shown = environment.hutch(words).run().success().text();
        assert!(!shown.chars().any(|char| char.is_control() && char != '\n'), "{shown:?}");
    }
    // And the proxy still does its work.
    sandbox
        .exec(["curl", "-sf", "http://public.test/"])
        .run()
        .success()
        .says("hello from public.test");
}

/// Attacks whose first request is an ordinary one, or whose host is public at first.
fn first_is_fine(name: &str) -> bool {
    ["second", "coalesced", "rebinding"].iter().any(|word| name.contains(word))
}

#[test]
fn servers_cannot_confuse_the_proxy() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("confused");
    let script = "for path in both-lengths two-lengths bare-lf two-answers bad-chunks huge-head garbage cut; do \
        echo \"== $path\"; curl -s -m 20 http://raw.test:8081/$path http://raw.test:8081/$path/2 | head -c 300; echo; done";
    let run = sandbox.shell(script).limit(Duration::from_secs(200)).run();
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(!text.contains("forged"), "{text}");
    sandbox.exec(["curl", "-sf", "http://raw.test:8081/fine"]).run().success().says("raw");

    // Certificates are verified where the proxy is the one to do it.
    environment.hutch(["network", "proxy", "confused", "--inspect", "all"]).run().success();
    environment.internet().forget();
    for port in [9443, 9444] {
        let url = format!("https://public.test:{port}/forbidden");
        let answer =
            sandbox.exec(["curl", "-sk", "-w", "%{http_code}", "-o", "/dev/null", &url]).run();
        assert_eq!(answer.text(), "502", "{port}");
    }
    assert!(environment.internet().report().requests.is_empty());
}

#[test]
fn slow_and_many_connections_do_not_keep_others_out() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("slow");
    let hold = "import os, socket, sys, time\n\
        from urllib.parse import urlsplit\n\
        proxy = urlsplit(os.environ['HTTP_PROXY'])\n\
        held = []\n\
        for number in range(400):\n\
        \x20   sock = socket.create_connection((proxy.hostname, proxy.port), 30)\n\
        \x20   sock.sendall([b'G', b'CONNECT public.test:443 HTTP/1.1\\r\\n', b'POST http://public.test/echo HTTP/1.1\\r\\nHost: public.test\\r\\nContent-Length: 10\\r\\n\\r\\n'][number % 3])\n\
        \x20   held.append(sock)\n\
        print('held', flush=True)\n\
        time.sleep(600)\n";
    let mut holder = sandbox.exec(["python3", "-c", hold]).converse();
    assert_eq!(holder.hear(), "held");
    for url in ["http://public.test/", "https://public.test/", "https://api.openai.com/"] {
        sandbox.exec(["curl", "-sf", "-m", "20", url]).run().success();
    }
}
