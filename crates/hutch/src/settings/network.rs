//! `[network]` of `config.toml`: what a person wrote, checked as far as that is possible without touching a file.
//!
//! ```toml
//! [network]
//! inspect = "credentials"                 # or "all"
//! ca_files = ["/etc/ssl/company.pem"]
//! upstream_proxy = "http://proxy.company.example:3128"
//!
//! [network.upstreams]
//! "api.anthropic.com" = { address = "127.0.0.1:8443", ca_file = "/etc/ssl/gateway.pem" }
//!
//! [[network.services]]
//! name = "example"
//! hosts = ["api.example.com"]
//! header = "x-api-key"
//! variables = ["EXAMPLE_API_KEY"]
//! ```

mod resolved;
mod services;

use std::net::SocketAddr;
use std::path::PathBuf;

use hutch_agents::Agents;
use hutch_policy::host::Host;
use hutch_policy::settings::Inspect;
use toml::Value;

use super::fields::{Fields, Wrong};
use super::upstream_proxy::proxy_url;

pub(crate) use self::services::CustomService;

/// Every key of the table.
const KEYS: &[&str] =
    &["ca_files", "inspect", "no_proxy", "services", "upstream_proxy", "upstreams"];
/// Every key of an entry of `upstreams`.
const UPSTREAM_KEYS: &[&str] = &["address", "ca_file"];

/// What the file says about the network of sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    /// Which connections have their TLS terminated.
    pub(crate) inspect: Option<Inspect>,
    /// Certificates that servers may be verified with.
    pub(crate) ca_files: Vec<PathBuf>,
    /// The proxy that this machine must use.
    pub(crate) upstream_proxy: ProxyChoice,
    /// What is reached without it, instead of what the environment says.
    pub(crate) no_proxy: Option<Vec<String>>,
    /// Hosts that are really somewhere else.
    pub(crate) upstreams: Vec<UpstreamConfig>,
    /// Services beside those that are built in.
    pub(crate) services: Vec<CustomService>,
}

/// What the file says about the proxy that this machine must use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ProxyChoice {
    /// Nothing: the environment decides.
    #[default]
    FromEnvironment,
    /// There is none, whatever the environment says.
    None,
    /// This one.
    Url(String),
}

/// A host that is really somewhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpstreamConfig {
    /// Its name.
    pub(crate) host: String,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// What alone it is verified with.
    pub(crate) ca_file: Option<PathBuf>,
}

impl NetworkConfig {
    /// Reads the table.
    pub(super) fn parse(value: &Value, agents: &Agents) -> Result<Self, Wrong> {
        let fields = Fields::of("network", value, KEYS)?;
        let choice = match fields.text("upstream_proxy")? {
            None => ProxyChoice::FromEnvironment,
            Some("none") => ProxyChoice::None,
            Some(text) => ProxyChoice::Url(
                proxy_url(text).map_err(|error| fields.wrong("upstream_proxy", error))?,
            ),
        };
        let no_proxy = fields.texts("no_proxy")?;
        Ok(Self {
            inspect: inspect(&fields)?,
            ca_files: fields.paths("ca_files")?,
            upstream_proxy: choice,
            no_proxy: no_proxy.map(|hosts| hosts.into_iter().map(str::to_owned).collect()),
            upstreams: upstreams(&fields)?,
            services: services::parse(&fields, agents)?,
        })
    }
}

fn inspect(fields: &Fields<'_>) -> Result<Option<Inspect>, Wrong> {
    match fields.text("inspect")? {
        None => Ok(None),
        Some("credentials") => Ok(Some(Inspect::Credentials)),
        Some("all") => Ok(Some(Inspect::All)),
        Some(other) => {
            Err(fields
                .wrong("inspect", format_args!("it is `credentials` or `all`, not `{other}`")))
        }
    }
}

fn upstreams(fields: &Fields<'_>) -> Result<Vec<UpstreamConfig>, Wrong> {
    let Some(value) = fields.value("upstreams") else { return Ok(Vec::new()) };
    let at = fields.at("upstreams");
    let table = value.as_table().ok_or_else(|| (format!("`{at}` must be a table"), None))?;
    let mut upstreams: Vec<UpstreamConfig> = Vec::with_capacity(table.len());
    for (name, value) in table {
        let at = format!("{at}.\"{name}\"");
        let host = Host::parse(name).map_err(|error| (format!("`{at}`: {error}"), None))?;
        let host = host.to_string();
        if upstreams.iter().any(|other| other.host == host) {
            return Err((format!("`{at}`: the host is there twice"), None));
        }
        let entry = Fields::of(&at, value, UPSTREAM_KEYS)?;
        let Some(address) = entry.text("address")? else {
            return Err((format!("`{at}` needs an `address`, like \"127.0.0.1:8443\""), None));
        };
        let address: SocketAddr = address.parse().map_err(|_| {
            entry.wrong(
                "address",
                format_args!("`{address}` is not an address and a port, like `127.0.0.1:8443`"),
            )
        })?;
        if address.port() == 0 {
            return Err(entry.wrong("address", "the port must not be 0"));
        }
        upstreams.push(UpstreamConfig { host, address, ca_file: entry.path("ca_file")? });
    }
    Ok(upstreams)
}

#[cfg(test)]
mod tests;
