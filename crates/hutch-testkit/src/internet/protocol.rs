//! What a test and its stand-in for the internet say to each other: one JSON value a line, one answer a command.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a test asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Everything that was seen since the last `Forget`; answered by a [`Report`].
    Report,
    /// Forgets what was seen; answered by an empty report.
    Forget,
    /// From now on `name` has these addresses; answered by an empty report.
    ///
    /// Each query takes the next list, and the last one stays. An empty list is "no such name".
    Name {
        /// Lower case, without a dot at the end.
        name: String,
        /// Answer after answer.
        answers: Vec<Vec<IpAddr>>,
    },
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Every TCP connection, also those on which nothing came.
    pub connections: Vec<Connection>,
    /// Every HTTP request that was understood.
    pub requests: Vec<Request>,
    /// What came on ports that do not speak HTTP, one entry a connection.
    pub raw: Vec<String>,
    /// Every name that was asked for.
    pub queries: Vec<String>,
}

/// A TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Address and port that it was made to.
    pub server: String,
    /// The name that the client asked for in TLS.
    pub sni: Option<String>,
    /// The protocol that TLS agreed on.
    pub alpn: Option<String>,
}

/// An HTTP request as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The connection that it came on.
    pub connection: Connection,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: String,
    /// Its method.
    pub method: String,
    /// The host that it is for: `Host` or `:authority`.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Header fields in the order they came.
    pub headers: Vec<(String, String)>,
    /// The first bytes of its body, where the answer does not need them.
    pub body: String,
    /// Fields after the body.
    pub trailers: Vec<(String, String)>,
}

impl Request {
    /// The values of a header field.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }
}

impl Report {
    /// The requests for this host.
    #[must_use]
    pub fn of(&self, host: &str) -> Vec<&Request> {
        self.requests.iter().filter(|request| request.host == host).collect()
    }

    /// Everything in one text, to look for what must not be there.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{self:?}")
    }
}
