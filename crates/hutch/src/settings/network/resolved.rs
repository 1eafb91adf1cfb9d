//! From what a person wrote to what a keeper is given: files are read, the environment is asked, services are collected.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hutch_agents::{AgentSpec, Agents};
use hutch_policy::services;
use hutch_policy::settings::{Inspect, NetworkSettings, Service, Upstream, UpstreamProxy};

use super::{NetworkConfig, ProxyChoice};
use crate::failure::Failure;
use crate::settings::upstream_proxy::{exceptions_of_environment, of_environment};
use crate::settings::{Environment, Settings};

/// No file of certificates is larger.
const PEM_MAX: u64 = 4 << 20;
/// How each certificate in such a file begins (RFC 7468, section 5).
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

impl Settings {
    /// The file that people configure.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.layout.config.join("config.toml")
    }

    /// Whose TLS is terminated, unless a sandbox says otherwise.
    pub(crate) fn inspect(&self) -> Inspect {
        self.network.inspect.unwrap_or_default()
    }

    /// The services whose credentials sandboxes of this agent may use: the user's own come first, and one with the name
    /// of a built-in one takes its place.
    pub(crate) fn services(&self, agent: &AgentSpec) -> Vec<Service> {
        services_for(&self.network, agent)
    }

    /// What holds for the sandbox of a build: the same without any agent and anybody's credentials.
    pub(crate) fn of_builder(&self) -> Self {
        let mut settings = Self { agents: Agents::builder(), ..self.clone() };
        settings.network.services.clear();
        settings
    }

    /// The names of all services, built in or the user's own.
    pub(crate) fn service_names(&self) -> Vec<String> {
        let own = self.network.services.iter().map(|custom| custom.service.name.clone());
        let mut names: Vec<String> =
            services::all().into_iter().map(|service| service.name).chain(own).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What the keeper of a sandbox of this agent is given.
    pub(crate) fn network(&self, agent: &AgentSpec) -> Result<NetworkSettings, Failure> {
        let config = &self.network;
        let pem = |key: &str, path: &Path| {
            certificates(path).map_err(|what| {
                Failure::user(format!("{}: `network.{key}`: {what}", self.config_file().display()))
            })
        };
        let mut extra_roots_pem = String::new();
        for path in &config.ca_files {
            extra_roots_pem.push_str(&pem("ca_files", path)?);
            extra_roots_pem.push('\n');
        }
        let mut upstreams = Vec::with_capacity(config.upstreams.len());
        for upstream in &config.upstreams {
            let key = format!("upstreams.\"{}\".ca_file", upstream.host);
            let roots = upstream.ca_file.as_deref().map(|path| pem(&key, path)).transpose()?;
            upstreams.push(Upstream {
                host: upstream.host.clone(),
                address: upstream.address,
                roots_pem: roots,
            });
        }
        Ok(NetworkSettings {
            inspect: self.inspect(),
            services: self.services(agent),
            upstreams,
            extra_roots_pem,
            upstream_proxy: upstream_proxy(config, &self.environment)?,
        })
    }

    /// Those variables of ours that may hold a credential of one of the services.
    pub(crate) fn credentials(&self, services: &[Service]) -> Vec<(String, String)> {
        let mut names: Vec<&str> = services
            .iter()
            .flat_map(|service| service.variables.iter().map(String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        let found = names.into_iter().filter_map(|name| {
            // What is not text cannot stand in a header.
            let value = self.environment.filled(name)?.to_str()?;
            Some((name.to_owned(), value.to_owned()))
        });
        found.collect()
    }
}

fn services_for(config: &NetworkConfig, agent: &AgentSpec) -> Vec<Service> {
    let own = config.services.iter().filter(|custom| custom.is_for(&agent.word));
    let mut all: Vec<Service> = own.map(|custom| custom.service.clone()).collect();
    let own = all.len();
    for service in &agent.services {
        if !all[..own].iter().any(|custom| custom.name == service.name) {
            all.push(service.clone());
        }
    }
    all
}

fn upstream_proxy(
    config: &NetworkConfig,
    environment: &Environment,
) -> Result<Option<UpstreamProxy>, Failure> {
    let url = match &config.upstream_proxy {
        ProxyChoice::None => return Ok(None),
        ProxyChoice::Url(url) => url.clone(),
        ProxyChoice::FromEnvironment => match of_environment(environment) {
            None => return Ok(None),
            Some((_, Ok(url))) => url,
            Some((name, Err(error))) => {
                return Err(Failure::user(format!("the variable {name}: {error}")).hint(
                    "`upstream_proxy = \"none\"` below `[network]` in config.toml leaves it out",
                ));
            }
        },
    };
    let except = config.no_proxy.clone().unwrap_or_else(|| exceptions_of_environment(environment));
    Ok(Some(UpstreamProxy { url, except }))
}

/// The text of a file that holds certificates.
fn certificates(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(PEM_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(format!("{} cannot be read: {error}", path.display()));
    }
    if text.len() as u64 > PEM_MAX {
        return Err(format!("{} is larger than {} MiB", path.display(), PEM_MAX >> 20));
    }
    if !text.contains(CERTIFICATE) {
        return Err(format!("{} holds no certificate in PEM form", path.display()));
    }
    // A key that is in the same file is nobody's business.
    Ok(only_certificates(&text))
}

/// The certificates of a file, without what stands between them.
fn only_certificates(text: &str) -> String {
    let mut within = false;
    let mut kept = String::new();
    for line in text.lines() {
        within |= line.trim() == CERTIFICATE;
        if within {
            kept.push_str(line.trim());
            kept.push('\n');
        }
        within &= line.trim() != "-----END CERTIFICATE-----";
    }
    kept
}
