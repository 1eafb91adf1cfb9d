//! N11: the tools that people use work through the proxy with nothing configured by hand.
//!
//! The first test has local servers in the place of every registry. The second uses the real ones where this machine
//! reaches them: the same command is tried on the host first, with the host's own configuration.

use std::time::Duration;

use hutch_testkit::{Account, Invocation, Stage, TestEnvironment, TestSandbox};

use crate::credentials::repository_at;
use crate::guest::proxy;

const REGISTRIES: &str = include_str!("registries.py");

/// One tool: its name, what it runs, and the last line of what that prints.
type Tool<'a> = (&'a str, &'a str, &'a str);

const LOCAL: &[Tool<'_>] = &[
    ("curl", "curl -sSf https://tool.test/", "hello from tool.test"),
    ("wget", "wget -qO- https://tool.test/", "hello from tool.test"),
    (
        "git",
        "rm -rf clone; git clone -q https://git.test/me/thing.git clone && cat clone/file",
        "content",
    ),
    (
        "python",
        "python3 -c \"import urllib.request as u; print(u.urlopen('https://tool.test/').read().decode(), end='')\"",
        "hello from tool.test",
    ),
    (
        "node https",
        "node -e \"fetch('https://tool.test/').then(r => r.text()).then(t => process.stdout.write(t))\"",
        "hello from tool.test",
    ),
    (
        "pip",
        "python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check hutchdemo && venv/bin/python -m hutchdemo",
        "python works",
    ),
    (
        "uv",
        "uv venv -q uv && uv pip install -q -p uv/bin/python hutchdemo && uv/bin/python -m hutchdemo",
        "python works",
    ),
    ("go, static", "./fetch https://tool.test/", "hello from tool.test"),
    (
        "npm",
        "mkdir -p npm && cd npm && npm install --silent --no-audit --no-fund hutchdemo-node >/dev/null && node -e \"require('hutchdemo-node')\"",
        "node works",
    ),
    (
        "cargo",
        "mkdir -p crate/src && cd crate && touch src/lib.rs && printf '[package]\\nname = \"a\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\nhutchdemo-rust = \"1\"\\n' > Cargo.toml && ../cargo vendor -q >/dev/null && echo cargo works",
        "cargo works",
    ),
    (
        // Not compiled: the standard library takes minutes on an emulated processor.
        "go module",
        "mkdir -p module && cd module && printf 'module a\\ngo 1.20\\n' > go.mod && GONOSUMDB=* GOFLAGS=-mod=mod go get example.test/demo@v1.0.0 2>/dev/null && grep -o 'go works' $(go env GOMODCACHE)/example.test/demo@v1.0.0/demo.go",
        "go works",
    ),
    (
        "apt",
        "echo 'deb [trusted=yes] https://apt.test/debian ./' | sudo tee /etc/apt/sources.list.d/demo.list >/dev/null; \
         sudo apt-get -qq update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/demo.list -o Dir::Etc::sourceparts=/dev/null && \
         sudo apt-get -qq -y install hutchdemo >/dev/null && hutchdemo",
        "apt works",
    ),
    (
        "openssl",
        "openssl s_client -connect tool.test:443 -servername tool.test -verify_return_error </dev/null 2>/dev/null | grep -o 'Verify return code: 0'",
        "Verify return code: 0",
    ),
];

/// Runs all and reports every failure, because a boot costs more than a tool.
#[track_caller]
fn run_all(sandbox: &TestSandbox<'_>, tools: &[&Tool<'_>]) {
    let mut failed = Vec::new();
    for (name, script, expected) in tools.iter().copied() {
        let run = sandbox.exec(["bash", "-c", script]).limit(Duration::from_secs(240)).run();
        if run.lines().last().map(String::as_str) != Some(*expected) {
            failed.push(format!("{name}: {run:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// Cargo is not part of the template: the one that builds the tests is lent to the sandbox.
fn lend_cargo(environment: &TestEnvironment, sandbox: &TestSandbox<'_>) {
    let cargo = std::fs::read(env!("CARGO")).expect("cargo is readable");
    let place = sandbox.workspace().join("cargo");
    environment.write(&place, cargo);
    environment.program("chmod").args(["755"]).args([&place]).run().success();
}

/// A program of Go without the system's libraries, so with a resolver and a trust store of its own.
fn lend_go(environment: &TestEnvironment, sandbox: &TestSandbox<'_>) {
    let program = std::fs::read(Stage::find().guest_program("fetch")).expect("it was prepared");
    let place = sandbox.workspace().join("fetch");
    environment.write(&place, program);
    environment.program("chmod").args(["755"]).args([&place]).run().success();
}

fn local_world() -> TestEnvironment {
    let environment = TestEnvironment::with_internet();
    let any = environment.internet().files(hutch_testkit::internet::ANY_HOST);
    environment
        .program("/usr/bin/python3")
        .args(["-c", REGISTRIES])
        .args([&any])
        .variable("PATH", "/usr/bin:/bin")
        .run()
        .success();
    repository_at(&environment, &environment.internet().files("git.test").join("me/thing.git"));
    environment
}

#[test]
fn every_tool_trusts_the_sandboxs_ca() {
    let environment = local_world();
    let sandbox = environment.boot("tools");
    lend_cargo(&environment, &sandbox);
    lend_go(&environment, &sandbox);
    proxy(&environment, &sandbox, &["--inspect", "all"]);
    run_all(&sandbox, &LOCAL.iter().collect::<Vec<_>>());
    // All of it was seen in plain: nothing went around the proxy.
    let log = environment.hutch(["network", "log", "--json"]).run().success().json();
    let urls: Vec<&str> = log["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|entry| entry["url"].as_str())
        .collect();
    for part in [
        "https://tool.test/",
        "/simple/hutchdemo/",
        "/hutchdemo-node",
        "/example.test/demo/@v/",
        "/debian/",
        "/me/thing.git/info/refs",
    ] {
        assert!(urls.iter().any(|url| url.contains(part)), "{part} in {urls:#?}");
    }
}

/// Those that are tried where nothing is terminated.
fn some() -> impl Iterator<Item = &'static Tool<'static>> {
    const NAMES: [&str; 8] =
        ["curl", "git", "python", "pip", "uv", "go, static", "npm", "node https"];
    LOCAL.iter().filter(|(name, ..)| NAMES.contains(name))
}

#[test]
fn tools_work_the_same_where_nothing_is_terminated() {
    let environment = local_world();
    let sandbox = environment.boot("tunnels");
    lend_go(&environment, &sandbox);
    run_all(&sandbox, &some().collect::<Vec<_>>());
}

#[test]
fn tools_that_know_no_proxy_are_captured() {
    let environment = local_world();
    let sandbox = environment.boot("captured");
    lend_go(&environment, &sandbox);
    let bare: Vec<_> = some()
        .map(|(name, script, expected)| {
            (
                *name,
                format!("unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy; {script}"),
                *expected,
            )
        })
        .collect();
    let bare: Vec<Tool<'_>> =
        bare.iter().map(|(name, script, expected)| (*name, script.as_str(), *expected)).collect();
    run_all(&sandbox, &bare.iter().collect::<Vec<_>>());
}

/// What to run on the host to know whether it reaches the registry, and in the sandbox.
const REAL: &[(&str, &str, &str)] = &[
    (
        "pip",
        "python3 -m pip download -q --no-deps --disable-pip-version-check -d $(mktemp -d) six",
        "python3 -m venv v && v/bin/pip install -q --disable-pip-version-check six && v/bin/python -c 'import six; print(six.__name__)'",
    ),
    (
        "npm",
        "cd $(mktemp -d) && npm view is-odd version",
        "mkdir -p n && cd n && npm install --silent --no-audit --no-fund is-odd >/dev/null && node -e \"console.log(require('is-odd')(3))\"",
    ),
    (
        "cargo",
        "cd $(mktemp -d) && mkdir src && touch src/lib.rs && printf '[package]\\nname = \"a\"\\nversion = \"0.1.0\"\\n[dependencies]\\nhex = \"0.4\"\\n' > Cargo.toml && CARGO_HOME=$PWD/home cargo fetch -q",
        "mkdir -p c/src && cd c && touch src/lib.rs && printf '[package]\\nname = \"a\"\\nversion = \"0.1.0\"\\n[dependencies]\\nhex = \"0.4\"\\n' > Cargo.toml && ../cargo vendor -q >/dev/null && echo fetched",
    ),
    (
        "apt",
        "cd $(mktemp -d) && apt-get download -qq hello",
        "sudo apt-get -qq update && sudo apt-get -qq -y install hello >/dev/null && hello",
    ),
];

#[test]
fn real_registries_work_where_the_machine_reaches_them() {
    let environment = TestEnvironment::new();
    environment.configure("[network]\ninspect = \"all\"\n");
    let reached: Vec<_> = REAL.iter().filter(|(_, probe, _)| on_the_host(probe)).collect();
    let sandbox = environment.boot("real");
    lend_cargo(&environment, &sandbox);
    let mut failed = Vec::new();
    for (name, _, script) in &reached {
        let run = sandbox.exec(["bash", "-c", script]).limit(Duration::from_secs(280)).run();
        if !run.status.success() {
            failed.push(format!("{name}: {run:?}"));
        }
    }
    let names: Vec<_> = reached.iter().map(|(name, ..)| *name).collect();
    assert!(failed.is_empty(), "of {names:?} failed: {}", failed.join("\n\n"));
}

/// Whether a command works on the host, with the environment and configuration that the tests were given.
fn on_the_host(script: &str) -> bool {
    let mut probe = Invocation::new("bash", Account::own()).args(["-c", script]);
    for (name, value) in std::env::vars_os() {
        if let Some(name) = name.to_str() {
            probe = probe.variable(name, value);
        }
    }
    probe.limit(Duration::from_secs(60)).run().status.success()
}
