//! Requests from inside a sandbox.

use std::time::Duration;

use hutch_testkit::{TestEnvironment, TestSandbox};

/// How one transfer of curl ended.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "a test that fails prints all of it")]
pub(crate) struct Transfer {
    /// What was asked for.
    pub(crate) url: String,
    /// Status of the answer; 0 = there was none.
    pub(crate) status: u16,
    /// Status of the proxy's answer to `CONNECT`; 0 = there was none.
    pub(crate) connect: u16,
    /// curl's own exit code.
    pub(crate) code: u16,
    /// How long it took.
    pub(crate) seconds: f64,
}

impl Transfer {
    /// The server answered.
    pub(crate) fn allowed(&self) -> bool {
        self.status == 200
    }

    /// The proxy said no, or the connection was reset at once.
    pub(crate) fn denied(&self) -> bool {
        let refused_to_connect = self.status == 0 && [7, 35, 52, 56].contains(&self.code);
        (self.status == 403 || self.connect == 403 || refused_to_connect) && self.seconds < 15.0
    }
}

/// Fetches all of them in one run of curl, one after the other.
#[track_caller]
pub(crate) fn fetch(
    environment: &TestEnvironment,
    sandbox: &TestSandbox<'_>,
    options: &[&str],
    urls: &[&str],
) -> Vec<Transfer> {
    let list = sandbox.workspace().join("urls");
    let entry = |url: &&str| format!("url = \"{url}\"\noutput = \"/dev/null\"\n");
    environment.write(&list, urls.iter().map(entry).collect::<String>());
    let format = "%{http_code} %{http_connect} %{exitcode} %{time_total}\\n";
    let run = sandbox
        .exec(["curl", "--silent", "--globoff", "--max-time", "30", "--write-out", format])
        .args(options)
        .args(["--config"])
        .args([&list])
        .limit(Duration::from_secs(240))
        .run();
    let lines = run.lines();
    assert_eq!(lines.len(), urls.len(), "a line for each transfer: {run:?}");
    let transfer = |(url, line): (&&str, &String)| {
        let mut fields = line.split(' ');
        let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(999);
        Transfer {
            url: (*url).to_owned(),
            status: number(),
            connect: number(),
            code: number(),
            seconds: line.rsplit(' ').next().and_then(|field| field.parse().ok()).unwrap_or(1e9),
        }
    };
    urls.iter().zip(&lines).map(transfer).collect()
}

/// Expects of every URL that the server answers, or that it is refused at once.
#[track_caller]
pub(crate) fn expect(
    environment: &TestEnvironment,
    sandbox: &TestSandbox<'_>,
    options: &[&str],
    allowed: &[&str],
    denied: &[&str],
) {
    let all: Vec<&str> = allowed.iter().chain(denied).copied().collect();
    let transfers = fetch(environment, sandbox, options, &all);
    let wrong: Vec<&Transfer> = transfers
        .iter()
        .enumerate()
        .filter(
            |(at, transfer)| {
                if *at < allowed.len() { !transfer.allowed() } else { !transfer.denied() }
            },
        )
        .map(|(_, transfer)| transfer)
        .collect();
    assert!(wrong.is_empty(), "with {options:?} it went otherwise: {wrong:#?}");
}

/// `hutch network proxy NAME` with these words.
#[track_caller]
pub(crate) fn proxy(environment: &TestEnvironment, sandbox: &TestSandbox<'_>, words: &[&str]) {
    environment.hutch(["network", "proxy", sandbox.name()]).args(words).run().success();
}
