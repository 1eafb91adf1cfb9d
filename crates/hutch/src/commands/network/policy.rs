//! The policy of one sandbox as it is shown: in JSON, as a table, and in `inspect`.

use std::fmt::Write as _;

use hutch_api::{NetworkPolicy, NetworkRequest, NetworkService, Response};
use hutch_policy::config::ProxyConfig;
use hutch_policy::settings::Inspect;
use hutch_store::{SandboxRecord, Store, atomic};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Blame, Failure};
use crate::keeper_client::{Keeper, another_question};
use crate::printer::{escaped_line, guest_sentence};

/// No policy file is larger.
const POLICY_MAX: u64 = 16 << 20;
/// Width of the first column.
const LABEL_WIDTH: usize = 18;

/// A policy.
#[derive(Debug, Serialize)]
pub(crate) struct Policy {
    policy: &'static str,
    inspect: &'static str,
    allowed_hosts: Vec<String>,
    blocked_hosts: Vec<String>,
    bypassed_hosts: Vec<String>,
    blocked_cidrs: Vec<String>,
    bypassed_cidrs: Vec<String>,
    /// Known while the sandbox runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<Service>>,
}

/// A service, and where its credential was found.
#[derive(Debug, Serialize)]
struct Service {
    name: String,
    credential: Option<String>,
}

impl Policy {
    /// What a keeper says.
    pub(crate) fn new(
        policy: &NetworkPolicy,
        services: Vec<NetworkService>,
    ) -> Result<Self, Failure> {
        let inspect = if policy.inspect == "all" { Inspect::All } else { Inspect::Credentials };
        let one = |NetworkService { name, found }| Service { name, credential: found };
        let services = services.into_iter().map(one).collect();
        Self::parse(&policy.proxy_config, inspect, Some(services))
    }

    /// What a keeper says when it is asked; a sentence where it does not.
    pub(crate) async fn ask(keeper: &Keeper) -> Result<Self, Failure> {
        let failed = |what: String| Failure::host(what);
        let answer = async |request| match keeper.network(request).await {
            Ok(Response::Failed { reason }) => Err(failed(guest_sentence(&reason))),
            Ok(response) => Ok(response),
            Err(error) => Err(failed(error.to_string())),
        };
        let policy = answer(NetworkRequest::Policy).await?;
        let services = answer(NetworkRequest::Services).await?;
        match (policy, services) {
            (Response::NetworkPolicy(policy), Response::NetworkServices(services)) => {
                Self::new(&policy, services)
            }
            _ => Err(failed(another_question().to_string())),
        }
    }

    /// What holds when a stopped sandbox is started again; nothing where it never ran.
    pub(crate) fn of_stopped(
        context: &Context,
        store: &Store,
        record: &SandboxRecord,
    ) -> Result<Option<Self>, Failure> {
        let path = store.paths(&record.name).proxy_config();
        if !path.exists() {
            return Ok(None);
        }
        let text = atomic::read(&path, POLICY_MAX)
            .map_err(|error| Failure::from_error(Blame::Host, &error))?;
        let inspect = record.inspect.unwrap_or_else(|| context.settings.inspect());
        Self::parse(&String::from_utf8_lossy(&text), inspect, None).map(Some)
    }

    fn parse(
        text: &str,
        inspect: Inspect,
        services: Option<Vec<Service>>,
    ) -> Result<Self, Failure> {
        let config =
            ProxyConfig::parse(text).map_err(|error| Failure::from_error(Blame::Host, &error))?;
        Ok(Self {
            policy: config.policy.default.as_str(),
            inspect: match inspect {
                Inspect::Credentials => "credentials",
                Inspect::All => "all",
            },
            allowed_hosts: config.network.allowed_domains,
            blocked_hosts: config.network.blocked_domains,
            bypassed_hosts: config.network.bypass_domains,
            blocked_cidrs: config.network.blocked_cidrs,
            bypassed_cidrs: config.network.bypass_cidrs,
            services,
        })
    }

    /// The policy for people.
    pub(crate) fn table(&self) -> String {
        let policy = match self.policy {
            "deny" => "deny: only hosts that are allowed",
            _ => "allow: every host that is not blocked",
        };
        let inspect = match self.inspect {
            "all" => "all: TLS of every host that is not bypassed",
            _ => "credentials: TLS of hosts that a credential is for",
        };
        let mut text = String::new();
        let mut add = |label: &str, lines: &[String]| {
            let none = ["-".to_owned()];
            let lines = if lines.is_empty() { &none } else { lines };
            for (index, line) in lines.iter().enumerate() {
                let label = if index == 0 { label } else { "" };
                // Infallible: a String can always grow.
                let _: std::fmt::Result =
                    writeln!(text, "{label:<LABEL_WIDTH$}{}", escaped_line(line));
            }
        };
        add("POLICY", &[policy.to_owned()]);
        add("INSPECTED", &[inspect.to_owned()]);
        add("ALLOWED HOSTS", &self.allowed_hosts);
        add("BLOCKED HOSTS", &self.blocked_hosts);
        add("BYPASSED HOSTS", &self.bypassed_hosts);
        add("BLOCKED RANGES", &self.blocked_cidrs);
        add("BYPASSED RANGES", &self.bypassed_cidrs);
        if let Some(services) = &self.services {
            add("CREDENTIALS", &credentials(services));
        }
        text
    }
}

/// A line for each service that has a credential, and one for all that have none.
fn credentials(services: &[Service]) -> Vec<String> {
    let found = services
        .iter()
        .filter_map(|service| Some((service.name.as_str(), service.credential.as_deref()?)));
    let width = found.clone().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut lines: Vec<String> =
        found.map(|(name, place)| format!("{name:<width$}  {place}")).collect();
    let without: Vec<&str> = services
        .iter()
        .filter(|service| service.credential.is_none())
        .map(|service| service.name.as_str())
        .collect();
    if !without.is_empty() {
        lines.push(format!("none found for {}", without.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str, inspect: &str) -> NetworkPolicy {
        NetworkPolicy {
            proxy_config: text.to_owned(),
            inspect: inspect.to_owned(),
            cut: 0,
            notes: Vec::new(),
        }
    }

    fn service(name: &str, found: Option<&str>) -> NetworkService {
        NetworkService { name: name.to_owned(), found: found.map(str::to_owned) }
    }

    #[test]
    fn everything_that_holds_is_in_the_table() {
        let text = ProxyConfig::default().to_text();
        let services = vec![
            service("anthropic", Some("variable ANTHROPIC_API_KEY")),
            service("openai", None),
            service("xai", Some("secret store")),
            service("groq", None),
        ];
        let shown = Policy::new(&policy(&text, "credentials"), services).unwrap();
        insta::assert_snapshot!(shown.table(), @r"
        POLICY            allow: every host that is not blocked
        INSPECTED         credentials: TLS of hosts that a credential is for
        ALLOWED HOSTS     -
        BLOCKED HOSTS     metadata.azure.internal
                          metadata.google.internal
                          kube-dns.kube-system.svc.cluster.local
        BYPASSED HOSTS    -
        BLOCKED RANGES    10.0.0.0/8
                          127.0.0.0/8
                          169.254.0.0/16
                          172.16.0.0/12
                          192.168.0.0/16
                          ::1/128
                          fc00::/7
                          fe80::/10
        BYPASSED RANGES   -
        CREDENTIALS       anthropic  variable ANTHROPIC_API_KEY
                          xai        secret store
                          none found for openai, groq
        ");
    }

    #[test]
    fn what_a_file_says_moves_no_cursor() {
        let text =
            r#"{"policy":{"default":"deny"},"network":{"blockedCIDRs":[],"blockedDomains":[]}}"#;
        let services = vec![service("own\u{1b}[2J", Some("a\nb"))];
        let table = Policy::new(&policy(text, "all"), services).unwrap().table();
        insta::assert_snapshot!(table, @r"
        POLICY            deny: only hosts that are allowed
        INSPECTED         all: TLS of every host that is not bypassed
        ALLOWED HOSTS     -
        BLOCKED HOSTS     -
        BYPASSED HOSTS    -
        BLOCKED RANGES    -
        BYPASSED RANGES   -
        CREDENTIALS       own\x1b[2J  a\nb
        ");
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_not_shown_as_another_one() {
        assert!(Policy::new(&policy("{", "all"), Vec::new()).is_err());
    }
}
