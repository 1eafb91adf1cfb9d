//! What the keeper and the proxy worker say to each other: postcard messages ([`hutch_wire::message`]) over a socket.
//!
//! The keeper sends one [`Start`], the worker answers [`Reply::Ready`]; then one reply to each [`Request`], in order.

use std::collections::BTreeMap;

use hutch_policy::settings::{Inspect, NetworkSettings};
use serde::{Deserialize, Serialize};

/// The first message: everything the worker needs to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Name of the sandbox, for the log.
    pub sandbox: String,
    /// What the command line resolved.
    pub settings: NetworkSettings,
    /// The sandbox's policy.
    pub policy: PolicyState,
}

/// The part of the settings that changes while the sandbox runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyState {
    /// Text of the sandbox's `proxy-config.json`.
    pub proxy_config: String,
    /// Which connections have their TLS terminated.
    pub inspect: Inspect,
}

/// A later message to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// From now on, and for the connections there are: those that no longer pass are cut. Answered by
    /// [`Reply::Configured`] when that is done.
    Configure(PolicyState),
    /// What would happen to a connection. Answered by [`Reply::Checked`].
    Check {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Where the credentials of the settings' services are found, as the broker says. Answered by [`Reply::Services`].
    Services,
}

/// An answer of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It serves.
    Ready {
        /// The sandbox's CA certificate, PEM.
        ca_pem: String,
    },
    /// The policy holds.
    Configured {
        /// The CA certificate, PEM; another one than before when more hosts are terminated than it was made for.
        ca_pem: String,
        /// Connections that were cut.
        cut: u32,
    },
    /// What would happen, as far as can be known.
    Checked(Checked),
    /// Each service's name, and where its credential was found (`secret store`, `environment OPENAI_API_KEY`,
    /// `login shell OPENAI_API_KEY`), never what it is.
    Services(Vec<(String, Option<String>)>),
    /// It did not work: one sentence. After [`Start`] the worker ends.
    Failed {
        /// What failed and why.
        reason: String,
    },
}

/// What would happen to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Whether it would be made.
    pub allowed: bool,
    /// The pattern or range that decides, or `<default policy>`.
    pub rule: String,
    /// One sentence.
    pub reason: String,
    /// Whether TLS would be terminated.
    pub inspected: bool,
    /// The service whose credential a request would be given.
    pub credential: Option<String>,
    /// Addresses that the name has now, as the host resolves it.
    pub addresses: Vec<String>,
}

/// What the keeper tells the credential broker, whenever a command line brings it: one message each.
///
/// The values are secrets: they go nowhere but into the broker's memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerEnvironment {
    /// Those of the caller's variables that services of the sandbox name.
    pub variables: BTreeMap<String, String>,
}

impl std::fmt::Debug for CallerEnvironment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.variables.keys().collect();
        f.debug_struct("CallerEnvironment").field("variables", &names).finish()
    }
}
