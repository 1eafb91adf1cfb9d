//! The conversation of the command line with a keeper: types only.
//!
//! A client connects to the sandbox's socket and speaks [`hutch-wire`'s] multiplexed connection as the client. The
//! payload of an open request is one [`Open`] in postcard. A [`Open::Call`] stream carries one [`Request`] and one
//! [`Response`] as wire messages. [`Open::Exec`] and [`Open::Stdio`] streams are relayed to the guest as they are: their
//! bytes are those of `hutch_wire::guest`, so a client must treat what it reads there as said by a hostile guest.
//!
//! [`hutch-wire`'s]: ../hutch_wire/index.html

use serde::{Deserialize, Serialize};

/// Version of this interface, told in [`Response::Status`].
pub const API_VERSION: u16 = 1;

/// What a new stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// One request, one response.
    Call,
    /// A session in the guest.
    Exec,
    /// A byte stream of the session whose exec stream (of this connection) has this number.
    Stdio {
        /// Number of the exec stream.
        exec: u32,
        /// 0 stdin, 1 stdout, 2 stderr, 3 tty.
        which: u8,
    },
    /// What the sandbox has changed of its template, as the archive of a layer. It is whole where the stream ends, and not
    /// where it is reset.
    Changes,
}

/// A request to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What is the sandbox doing.
    Status,
    /// Waits until the sandbox is ready, or cannot become so any more. [`Phase::Failed`] then means that it could not
    /// start; [`Phase::Stopping`] that it did and is on its way down, after which it can be started again.
    WaitReady,
    /// Stops the sandbox: clean power-off, then force after `timeout_ms`. Answers when everything has ended.
    Stop {
        /// How long a clean power-off may take.
        timeout_ms: u64,
    },
    /// What the sandbox may reach, and changes to it.
    Network(NetworkRequest),
}

/// A request about the sandbox's network.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkRequest {
    /// The policy that holds. Answered by [`Response::NetworkPolicy`].
    Policy,
    /// Changes the policy: written down first, then in force for new and live connections, then answered by
    /// [`Response::NetworkPolicy`].
    Edit(NetworkEdit),
    /// What would happen to a connection. Answered by [`Response::NetworkChecked`].
    Check {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The caller's variables that may hold credentials of the sandbox's services. Secrets: kept in memory alone, and
    /// never said again. Answered by [`Response::Done`].
    Credentials {
        /// Name and value.
        variables: Vec<(String, String)>,
    },
    /// Where the credentials of the sandbox's services were found. Answered by [`Response::NetworkServices`].
    Services,
}

impl std::fmt::Debug for NetworkRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy => f.write_str("Policy"),
            Self::Edit(edit) => f.debug_tuple("Edit").field(edit).finish(),
            Self::Check { host, port } => {
                f.debug_struct("Check").field("host", host).field("port", port).finish()
            }
            Self::Credentials { variables } => {
                f.debug_struct("Credentials").field("variables", &variables.len()).finish()
            }
            Self::Services => f.write_str("Services"),
        }
    }
}

/// Changes to a policy, on top of what holds; the fields are the flags of `network proxy`, each value as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkEdit {
    /// `allow` or `deny`.
    pub policy: Option<String>,
    /// `credentials` or `all`.
    pub inspect: Option<String>,
    /// Host patterns to allow.
    pub allow_hosts: Vec<String>,
    /// Host patterns to block.
    pub block_hosts: Vec<String>,
    /// Host patterns never to terminate TLS for.
    pub bypass_hosts: Vec<String>,
    /// Ranges to take from the blocked and the bypassed ones.
    pub allow_cidrs: Vec<String>,
    /// Ranges to block.
    pub block_cidrs: Vec<String>,
    /// Ranges never to terminate TLS for.
    pub bypass_cidrs: Vec<String>,
}

/// The keeper's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Answer to [`Request::Status`] and [`Request::WaitReady`].
    Status(Status),
    /// The sandbox has stopped. The keeper's lock is released an instant later, when its process ends.
    Stopped,
    /// It did not work: one sentence.
    Failed {
        /// What failed and why.
        reason: String,
    },
    /// The policy that holds.
    NetworkPolicy(NetworkPolicy),
    /// Answer to [`NetworkRequest::Check`].
    NetworkChecked(NetworkChecked),
    /// The services whose credentials the sandbox may use, in their order.
    NetworkServices(Vec<NetworkService>),
    /// It worked, and there is nothing to say.
    Done,
}

/// The policy of a sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Text of the sandbox's `proxy-config.json`.
    pub proxy_config: String,
    /// `credentials` or `all`.
    pub inspect: String,
    /// Live connections that were cut by the change that this answers.
    pub cut: u32,
    /// What of that change had no effect, or not everywhere: a sentence each.
    pub notes: Vec<String>,
}

/// A service whose credential the sandbox may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkService {
    /// `anthropic`, `openai`, …
    pub name: String,
    /// Where its credential was found, in words a person knows: `secret store`, `variable OPENAI_API_KEY`, `login shell`;
    /// nothing where there is none. Never what it is.
    pub found: Option<String>,
}

/// What would happen to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChecked {
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
    /// Addresses that the name has now.
    pub addresses: Vec<String>,
}

/// What a keeper knows of its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the keeper's interface.
    pub api_version: u16,
    /// Where in its life the sandbox is.
    pub phase: Phase,
    /// Sessions that run now, detached ones included.
    pub sessions: u32,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// The keeper's process number.
    pub keeper_pid: u32,
    /// The VMM's process number, while there is one.
    pub vmm_pid: Option<u32>,
    /// The workspace worker's process number, while there is one.
    pub workspace_pid: Option<u32>,
    /// The proxy worker's process number, while there is one.
    pub proxy_pid: Option<u32>,
    /// Whether the VM was resumed from a snapshot.
    pub resumed: bool,
    /// Milliseconds from the keeper's start to ready.
    pub ready_ms: Option<u64>,
    /// Pings in a row that the guest has not answered; 0 for a healthy guest.
    pub unanswered_pings: u32,
}

/// The life of a sandbox as its keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The VM starts.
    Booting,
    /// Sessions can start.
    Ready,
    /// On its way down.
    Stopping,
    /// It could not start or ended badly: one sentence. The keeper ends after this.
    Failed {
        /// What failed and why.
        reason: String,
    },
}
