//! Everything a sandbox's network is started with, as the command line resolved it and the keeper passes it on.
//!
//! Holds no secret: where credentials are looked for is here, what they are is not.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What the proxy of one sandbox is started with, beside the sandbox's own policy file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// Which connections have their TLS terminated, unless the sandbox says otherwise.
    pub inspect: Inspect,
    /// The services whose credentials this sandbox may use: those of its agent, and the user's own.
    pub services: Vec<Service>,
    /// Hosts that are really somewhere else: a gateway in front of a provider, a server of a test.
    pub upstreams: Vec<Upstream>,
    /// Certificates, PEM, that upstream servers may be verified with beside the host's trust store.
    pub extra_roots_pem: String,
    /// The proxy that the host itself must use.
    pub upstream_proxy: Option<UpstreamProxy>,
}

/// Which connections have their TLS terminated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inspect {
    /// Only those to hosts that a credential belongs to.
    #[default]
    Credentials,
    /// All that no rule bypasses.
    All,
}

/// A service that requests are given a credential for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `anthropic`, `openai`, …, or the user's own: lower-case letters, digits, `-`.
    pub name: String,
    /// Exact host names, in lower case; a port other than 443 follows a colon.
    pub hosts: Vec<String>,
    /// The header that carries the credential, in lower case: `authorization`, `x-api-key`.
    pub header: String,
    /// The header's value with `%s` in the credential's place: `Bearer %s`.
    pub format: String,
    /// Names that the credential has on the host (variables, in the order of preference).
    pub variables: Vec<String>,
    /// Variables that hold the placeholder in the sandbox.
    pub placeholder_variables: Vec<String>,
    /// What they hold.
    pub placeholder: String,
    /// Other headers that a client may authenticate itself with to these hosts, in lower case: removed when the
    /// credential is put in.
    pub replaces: Vec<String>,
    /// Git over HTTPS to these hosts is given the credential as HTTP Basic.
    pub git_basic: bool,
    /// How sign-in tokens of this service are kept on the host.
    pub oauth: Option<OAuth>,
}

/// A service's OAuth token endpoint and what stands for tokens in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuth {
    /// Host of the token endpoint.
    pub token_host: String,
    /// Path of the token endpoint.
    pub token_path: String,
    /// Further hosts where the access token is sent as a bearer.
    pub resource_hosts: Vec<String>,
    /// Stands for the access token.
    pub access_sentinel: String,
    /// Stands for the refresh token.
    pub refresh_sentinel: String,
}

/// A host that is really somewhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Host name as clients ask for it, lower case.
    pub host: String,
    /// Where to connect instead, whatever the port asked for; exempt from the test of addresses.
    pub address: SocketAddr,
    /// Certificates, PEM, that this server alone is verified with; none = as any other.
    pub roots_pem: Option<String>,
}

/// The proxy that the host itself must use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamProxy {
    /// `http://[user:password@]host:port`, `https://…` or `socks5://…`.
    pub url: String,
    /// Hosts, domains and ranges reached without it, as in `NO_PROXY`.
    pub except: Vec<String>,
}
