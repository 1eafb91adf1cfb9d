//! The decision: may this connection be made, and may its TLS be terminated.
//!
//! The proxy asks in this order, for every request and again for live connections when the policy changes:
//!
//! 1. [`Policy::judge_host`]: the most specific rule, then the default policy. Denied: nothing is resolved.
//! 2. [`Policy::judge_address`] for each address that the host has, with the verdict of step 1: ranges are tested unless
//!    a rule allows the host. Only an address that passed may be connected to.
//! 3. [`Policy::bypass`]: a plain tunnel, or not.
//!
//! What holds beside the rules: at equal specificity a block wins; an address that a rule blocks is not connected to
//! under any name either; what [`address::special`] says; the names of the user's machine are `localhost`.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::{self, SpecialRange, Treatment};
use crate::config::{self, ConfigError, DefaultPolicy, ProxyConfig};
use crate::host::{Host, Port};
use crate::pattern::{Cidr, HostPart, HostPattern};

/// The name of the rule that decides when none does.
pub const DEFAULT_RULE: &str = "<default policy>";
/// The name of the rule that refuses special addresses.
pub const SPECIAL_RULE: &str = "<special address>";

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The connection is made.
    Allowed,
    /// It is not.
    Denied,
}

impl Decision {
    /// `allowed` or `denied`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// What kind of rule decided, and so what a user can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A host pattern.
    Rule,
    /// The default policy.
    Default,
    /// A blocked range; a rule for the host lifts it.
    Range,
    /// A special address; a rule for the host lifts it.
    Special,
    /// A special address that nothing lifts.
    Never,
    /// Something else than the policy: the request itself is not one that may pass.
    Request,
}

/// A decision with its grounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What is decided.
    pub decision: Decision,
    /// The pattern or range that decided, [`DEFAULT_RULE`] or [`SPECIAL_RULE`].
    pub rule: String,
    /// Why, as a phrase: `blocked by local rule for example.com`.
    pub reason: String,
    /// What kind of rule it was.
    pub cause: Cause,
}

impl Verdict {
    /// A refusal for another reason than the policy, by a named rule: `<domain fronting>`.
    pub fn refused(rule: &str, reason: impl Into<String>) -> Self {
        Self::new(Decision::Denied, rule, reason.into(), Cause::Request)
    }

    fn new(decision: Decision, rule: &str, reason: String, cause: Cause) -> Self {
        Self { decision, rule: rule.to_owned(), reason, cause }
    }

    fn denied(rule: &str, reason: String, cause: Cause) -> Self {
        Self::new(Decision::Denied, rule, reason, cause)
    }

    /// Whether the connection may be made.
    pub fn is_allowed(&self) -> bool {
        self.decision == Decision::Allowed
    }
}

/// What is known of a host before it is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostVerdict {
    /// No connection is made; nothing is resolved.
    Denied(Verdict),
    /// A rule allows it, wherever its addresses are.
    Explicit(Verdict),
    /// The default policy allows it, if its addresses pass.
    ByDefault(Verdict),
}

impl HostVerdict {
    /// The decision and its grounds.
    pub fn verdict(&self) -> &Verdict {
        match self {
            Self::Denied(verdict) | Self::Explicit(verdict) | Self::ByDefault(verdict) => verdict,
        }
    }

    /// The decision and its grounds.
    pub fn into_verdict(self) -> Verdict {
        match self {
            Self::Denied(verdict) | Self::Explicit(verdict) | Self::ByDefault(verdict) => verdict,
        }
    }

    /// Whether no connection is made.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

/// A policy, ready to judge: the time does not grow with the number of host rules.
#[derive(Debug, Clone)]
pub struct Policy {
    default: DefaultPolicy,
    rules: Rules,
    blocked: Vec<Cidr>,
    bypass_rules: Rules,
    bypassed: Vec<Cidr>,
}

impl Policy {
    /// Makes ready what a file says.
    pub fn new(config: &ProxyConfig) -> Result<Self, ConfigError> {
        let network = &config.network;
        let mut rules = Rules::default();
        for pattern in config::patterns("network.allowedDomains", &network.allowed_domains)? {
            rules.add(&pattern, Decision::Allowed);
        }
        for pattern in config::patterns("network.blockedDomains", &network.blocked_domains)? {
            rules.add(&pattern, Decision::Denied);
        }
        let mut bypass_rules = Rules::default();
        for pattern in config::patterns("network.bypassDomains", &network.bypass_domains)? {
            bypass_rules.add(&pattern, Decision::Allowed);
        }
        Ok(Self {
            default: config.policy.default,
            rules,
            blocked: config::cidrs("network.blockedCIDRs", &network.blocked_cidrs)?,
            bypass_rules,
            bypassed: config::cidrs("network.bypassCIDRs", &network.bypass_cidrs)?,
        })
    }

    /// The policy under which nothing passes: for when there is none.
    pub fn closed() -> Self {
        Self {
            default: DefaultPolicy::Deny,
            rules: Rules::default(),
            blocked: Vec::new(),
            bypass_rules: Rules::default(),
            bypassed: Vec::new(),
        }
    }

    /// Judges a host before it is resolved; for an address this is the whole judgement.
    pub fn judge_host(&self, host: &Host, port: Port) -> HostVerdict {
        let host = host.clone().rewritten();
        let judged = match (self.rules.find(&host, port), self.default) {
            (Some(rule), _) => match rule.decision {
                Decision::Denied => HostVerdict::Denied(rule.verdict()),
                Decision::Allowed => HostVerdict::Explicit(rule.verdict()),
            },
            (None, DefaultPolicy::Allow) => HostVerdict::ByDefault(Verdict::new(
                Decision::Allowed,
                DEFAULT_RULE,
                "allowed by default allow policy".to_owned(),
                Cause::Default,
            )),
            (None, DefaultPolicy::Deny) => HostVerdict::Denied(Verdict::denied(
                DEFAULT_RULE,
                "no matching allow rule - blocked by default deny policy".to_owned(),
                Cause::Default,
            )),
        };
        let Host::Address(address) = host else { return judged };
        let refused = Some(self.judge_address(&judged, address, port))
            .filter(|verdict| !verdict.is_allowed())
            .or_else(|| self.refused_literal(&judged, address));
        refused.map_or(judged, HostVerdict::Denied)
    }

    /// Judges one address of a host that was judged before; the port is the one that is connected to.
    pub fn judge_address(&self, host: &HostVerdict, address: IpAddr, port: Port) -> Verdict {
        if host.is_denied() {
            return host.verdict().clone();
        }
        let special = address::special(address);
        if let Some(range) = special
            && range.treatment == Treatment::Never
        {
            return refused_special(address, range, Cause::Never);
        }
        let faces = address::faces(address);
        for face in &faces {
            if let Some(rule) = self.rules.find_address(*face, port)
                && rule.decision == Decision::Denied
            {
                return rule.verdict();
            }
        }
        if matches!(host, HostVerdict::Explicit(_)) {
            return host.verdict().clone();
        }
        for face in &faces {
            if let Some(range) = self.blocked.iter().find(|range| range.covers(*face)) {
                let carries = if *face == faces[0] {
                    String::new()
                } else {
                    format!(" carries {face}, which")
                };
                let reason = format!("{}{carries} is in the blocked range {range}", faces[0]);
                return Verdict::denied(&range.to_string(), reason, Cause::Range);
            }
        }
        match special {
            Some(range) if range.treatment == Treatment::UnlessAllowed => {
                refused_special(address, range, Cause::Special)
            }
            _ => host.verdict().clone(),
        }
    }

    fn refused_literal(&self, judged: &HostVerdict, address: IpAddr) -> Option<Verdict> {
        let range = address::special(address)?;
        let by_default = matches!(judged, HostVerdict::ByDefault(_));
        (by_default && range.treatment == Treatment::LiteralUnlessAllowed)
            .then(|| refused_special(address, range, Cause::Special))
    }

    /// The pattern or range for which the TLS of a connection is never terminated, if there is one. Says nothing about
    /// whether the connection may be made.
    ///
    /// A disguised address is not bypassed for what it carries: a bypass grants, so it must be meant.
    pub fn bypass(&self, host: &Host, port: Port, address: Option<IpAddr>) -> Option<String> {
        let host = host.clone().rewritten();
        if let Some(rule) = self.bypass_rules.find(&host, port) {
            return Some(rule.pattern.clone());
        }
        let literal = match host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        };
        let address = address.or(literal)?;
        self.bypassed.iter().find(|range| range.covers(address)).map(Cidr::to_string)
    }
}

fn refused_special(address: IpAddr, range: &SpecialRange, cause: Cause) -> Verdict {
    let reason = format!("{} is {} ({range})", address::canonical(address), range.what);
    Verdict::denied(SPECIAL_RULE, reason, cause)
}

/// Host patterns with what each decides, by what they cover.
#[derive(Debug, Clone, Default)]
struct Rules {
    exact: HashMap<Host, Ports>,
    under: HashMap<String, Ports>,
    any: Ports,
}

/// The rules that cover the same hosts.
#[derive(Debug, Clone, Default)]
struct Ports {
    one: HashMap<Port, Rule>,
    all: Option<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    decision: Decision,
    pattern: String,
}

impl Rules {
    fn add(&mut self, pattern: &HostPattern, decision: Decision) {
        let ports = match pattern.host() {
            HostPart::Exact(host) => self.exact.entry(host.clone()).or_default(),
            HostPart::Under(domain) => self.under.entry(domain.to_string()).or_default(),
            HostPart::Any => &mut self.any,
        };
        let rule = Rule { decision, pattern: pattern.to_string() };
        let slot = match pattern.port() {
            Some(port) => ports.one.entry(port).or_insert_with(|| rule.clone()),
            None => ports.all.get_or_insert_with(|| rule.clone()),
        };
        // The same pattern on both lists: block wins, in whichever order they come.
        if decision == Decision::Denied {
            *slot = rule;
        }
    }

    /// The most specific rule for a host, which was rewritten before.
    fn find(&self, host: &Host, port: Port) -> Option<&Rule> {
        let exact = self.exact.get(host).and_then(|ports| ports.find(port));
        let under = || match host {
            Host::Name(name) => {
                name.parents().find_map(|domain| self.under.get(domain)?.find(port))
            }
            Host::Address(_) => None,
        };
        exact.or_else(under).or_else(|| self.any.find(port))
    }

    /// The rule for exactly this address.
    fn find_address(&self, address: IpAddr, port: Port) -> Option<&Rule> {
        self.exact.get(&Host::Address(address))?.find(port)
    }
}

impl Ports {
    fn find(&self, port: Port) -> Option<&Rule> {
        self.one.get(&port).or(self.all.as_ref())
    }
}

impl Rule {
    fn verdict(&self) -> Verdict {
        let reason = format!(
            "{} by local rule for {}",
            match self.decision {
                Decision::Allowed => "allowed",
                Decision::Denied => "blocked",
            },
            self.pattern
        );
        Verdict::new(self.decision, &self.pattern, reason, Cause::Rule)
    }
}

#[cfg(test)]
mod tests;
