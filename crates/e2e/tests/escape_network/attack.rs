//! An attack as the table has it, and what became of it.

use serde_json::{Value, json};

/// Something a hostile program in the sandbox does.
#[derive(Debug)]
pub(crate) struct Attack {
    /// Unlike every other.
    pub(crate) name: &'static str,
    /// What it does: see `attacker.py`.
    pub(crate) steps: Value,
    /// The host that the denial is logged for; `None` = it does not come as far as a host.
    pub(crate) logged: Option<&'static str>,
}

/// What came back.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) answer: String,
    #[expect(dead_code, reason = "a test that fails prints it")]
    pub(crate) error: String,
    pub(crate) seconds: f64,
}

/// Bytes to the explicit proxy.
pub(crate) fn proxy(name: &'static str, bytes: impl Into<String>) -> Attack {
    Attack { name, steps: json!([["proxy"], ["send", bytes.into()]]), logged: None }
}

/// A whole request to the explicit proxy for a URL.
pub(crate) fn get(name: &'static str, url: &str) -> Attack {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    proxy(name, format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// `CONNECT`, then bytes in what it opened.
pub(crate) fn connect(name: &'static str, authority: &str, bytes: &str) -> Attack {
    Attack {
        name,
        steps: json!([["proxy"], ["connect", authority], ["send", bytes]]),
        logged: None,
    }
}

/// `CONNECT`, TLS with this name, then bytes.
pub(crate) fn tls(
    name: &'static str,
    authority: &str,
    server_name: Option<&str>,
    bytes: impl Into<String>,
) -> Attack {
    let steps = json!([
        ["proxy"],
        ["connect", authority],
        ["tls", server_name, ["http/1.1"]],
        ["send", bytes.into()]
    ]);
    Attack { name, steps, logged: None }
}

/// A connection that knows no proxy, then bytes.
pub(crate) fn captured(name: &'static str, host: &str, port: u16, bytes: &str) -> Attack {
    Attack { name, steps: json!([["open", host, port], ["send", bytes]]), logged: None }
}

/// A program.
pub(crate) fn run(name: &'static str, words: &[&str]) -> Attack {
    let step: Vec<&str> = [&["run"], words].concat();
    Attack { name, steps: json!([step]), logged: None }
}

impl Attack {
    /// It runs a program instead of speaking itself.
    pub(crate) fn is_program(&self) -> bool {
        self.steps[0][0] == "run"
    }

    /// Expects that the log has a denial for this host.
    pub(crate) fn logged(mut self, host: &'static str) -> Self {
        self.logged = Some(host);
        self
    }
}

/// A request in bytes to a host that is allowed: the first line, and the lines after it.
pub(crate) fn request(host: &str, lines: &str, body: &str) -> String {
    format!("POST /forbidden HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{body}")
}

/// The same in absolute form.
pub(crate) fn absolute(host: &str, lines: &str, body: &str) -> String {
    format!("POST http://{host}/forbidden HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{body}")
}
