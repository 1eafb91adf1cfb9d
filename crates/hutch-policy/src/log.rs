//! The log of a sandbox's network: one JSON object a line for each request or connection, and the table made of them.
//!
//! The proxy worker writes the lines, the command line reads them, also of sandboxes that are stopped. A line never
//! holds a header, a body, or what may be a credential in a URL; it holds no control characters, so that a guest
//! cannot write to the terminal on which the log is shown; and it is at most [`LONGEST_LINE`] long.

use serde::{Deserialize, Serialize};

use crate::policy::Decision;

mod redact;
mod table;

pub use redact::{REDACTED, clean, redact_url};
pub use table::{Row, Table};

/// The longest line, its newline included.
pub const LONGEST_LINE: usize = 16 * 1024;
/// The longest URL that is kept; what was longer ends in `…`.
pub const LONGEST_URL: usize = 2048;
/// The longest of the other texts.
const LONGEST_TEXT: usize = 512;

/// How a request or connection went through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// A request over plain HTTP.
    Plain,
    /// A request in TLS that the proxy terminated.
    Terminated,
    /// A connection whose TLS was passed on unread.
    Tunnel,
    /// A connection that a bypass rule keeps from being looked at.
    Bypass,
    /// It went nowhere: refused before anything was sent.
    Refused,
    /// What a newer proxy writes.
    #[serde(other)]
    Other,
}

/// One request, or one connection whose requests are not seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it began, in milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// Name of the sandbox.
    pub sandbox: String,
    /// How it went.
    pub how: How,
    /// What was decided.
    pub decision: Decision,
    /// The pattern or range that decided, or `<default policy>`.
    pub rule: String,
    /// Why, as a phrase.
    pub reason: String,
    /// Host name or address, as it was judged; an IPv6 address in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Method of a request that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// URL of a request that was seen, without what may be a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Protocol of a request or connection: `http/1.1`, `h2`, `websocket`, `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The address that was connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The service whose credential was put in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Bytes from the sandbox: of the body when a request was seen, else of the connection.
    #[serde(default)]
    pub sent: u64,
    /// Bytes to the sandbox.
    #[serde(default)]
    pub received: u64,
    /// From its beginning to its end, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// What went wrong after it was allowed: the server could not be reached, an answer broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// A record of something that just began, with nothing known but the decision.
    pub fn new(time_ms: u64, sandbox: &str, how: How, decision: Decision) -> Self {
        Self {
            time_ms,
            sandbox: sandbox.to_owned(),
            how,
            decision,
            rule: String::new(),
            reason: String::new(),
            host: String::new(),
            port: 0,
            method: None,
            url: None,
            protocol: None,
            status: None,
            address: None,
            credential: None,
            sent: 0,
            received: 0,
            duration_ms: 0,
            error: None,
        }
    }

    /// The line, with its newline. Every text is made fit for it, the URL redacted, whatever the caller did before.
    pub fn to_line(&self) -> String {
        // Strings and numbers: nothing here that JSON cannot say.
        let mut fit = self.clone();
        fit.url = fit.url.map(|url| redact_url(&url));
        let mut line = serde_json::to_string(&fit.cleaned()).unwrap_or_default();
        line.push('\n');
        line
    }

    /// Reads a line; [`None`] for one that is torn, too long, or not ours. Texts are made fit to be shown again: the
    /// file is only as good as who could write to it.
    pub fn from_line(line: &str) -> Option<Self> {
        if line.len() > LONGEST_LINE {
            return None;
        }
        serde_json::from_str::<Self>(line.trim_end()).ok().map(Self::cleaned)
    }

    /// Host and port, as the table shows them.
    pub fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn cleaned(mut self) -> Self {
        for text in [&mut self.sandbox, &mut self.rule, &mut self.reason, &mut self.host] {
            *text = clean(text, LONGEST_TEXT);
        }
        self.url = self.url.map(|url| clean(&url, LONGEST_URL));
        for text in [
            &mut self.method,
            &mut self.protocol,
            &mut self.address,
            &mut self.credential,
            &mut self.error,
        ] {
            *text = text.take().map(|text| clean(&text, LONGEST_TEXT));
        }
        self
    }
}

#[cfg(test)]
mod tests;
