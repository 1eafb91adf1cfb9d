//! `proxy-config.json`: the policy of one sandbox as a file, in the schema of `docker sandbox`, and changes to it.
//!
//! Old files are read as they are: a key that is absent has its default value, `null` is an empty list (as Go writes
//! one), and keys that we do not know are kept when the file is written again. What is there and cannot be understood
//! is an error, never an open network.

use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::pattern::{Cidr, CidrError, HostPattern, PatternError};

/// What happens to a host that no rule covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicy {
    /// It may be connected to, unless its address is in a blocked range.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

impl DefaultPolicy {
    /// `allow` or `deny`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "allow" => Some(Self::Allow),
            "deny" => Some(Self::Deny),
            _ => None,
        }
    }

    /// `allow` or `deny`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Hosts that are blocked by default: metadata services that have names.
pub const DEFAULT_BLOCKED_DOMAINS: [&str; 3] = [
    "metadata.azure.internal",
    "metadata.google.internal",
    "kube-dns.kube-system.svc.cluster.local",
];
/// Ranges that are blocked by default: private networks, loopback, link-local with the metadata services.
pub const DEFAULT_BLOCKED_CIDRS: [&str; 8] = [
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// Why a policy file, or a change to one, is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not of this shape.
    #[error("the policy file cannot be read: {problem}")]
    Syntax {
        /// What is wrong, and where. Not a source, as in the variants below: each is one sentence for people.
        problem: serde_json::Error,
    },
    /// A host pattern is none.
    #[error("`{key}`: {problem}")]
    Pattern {
        /// The key, or the flag.
        key: String,
        /// What is wrong with its value.
        problem: PatternError,
    },
    /// A range is none.
    #[error("`{key}`: {problem}")]
    Cidr {
        /// The key, or the flag.
        key: String,
        /// What is wrong with its value.
        problem: CidrError,
    },
    /// Neither of the two policies.
    #[error("`{key}`: {value:?} is not a policy: `allow` and `deny` are")]
    Default {
        /// The key, or the flag.
        key: String,
        /// Its value.
        value: String,
    },
    /// One change says two things.
    #[error("`{value}` is given to both `{one}` and `{other}`")]
    Contradiction {
        /// What was given twice.
        value: String,
        /// A flag.
        one: &'static str,
        /// Another one.
        other: &'static str,
    },
    /// More than a file may hold.
    #[error("`{key}` has more than {} entries", ProxyConfig::MOST_RULES)]
    TooMany {
        /// The key.
        key: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProxyConfig {
    /// What holds for all hosts.
    #[serde(default)]
    pub policy: PolicySection,
    /// Rules.
    #[serde(default)]
    pub network: NetworkSection,
    /// Keys that we do not know.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The key `policy`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PolicySection {
    /// What happens to a host that no rule covers.
    #[serde(default, deserialize_with = "default_policy")]
    pub default: DefaultPolicy,
    /// Kept for old files; everything is logged.
    #[serde(default, rename = "logBlocked")]
    pub log_blocked: bool,
    /// Kept for old files; everything is logged.
    #[serde(default, rename = "logAllowed")]
    pub log_allowed: bool,
    /// Keys that we do not know.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The key `network`: lists of patterns and ranges, as they were written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkSection {
    /// Hosts that may be connected to, wherever their addresses are.
    #[serde(default, rename = "allowedDomains", deserialize_with = "list")]
    pub allowed_domains: Vec<String>,
    /// Hosts that may not.
    #[serde(
        default = "default_blocked_domains",
        rename = "blockedDomains",
        deserialize_with = "list"
    )]
    pub blocked_domains: Vec<String>,
    /// Ranges that may not be connected to, unless the host is allowed.
    #[serde(default = "default_blocked_cidrs", rename = "blockedCIDRs", deserialize_with = "list")]
    pub blocked_cidrs: Vec<String>,
    /// Hosts whose TLS is never terminated.
    #[serde(default, rename = "bypassDomains", deserialize_with = "list")]
    pub bypass_domains: Vec<String>,
    /// Ranges to which TLS is never terminated.
    #[serde(default, rename = "bypassCIDRs", deserialize_with = "list")]
    pub bypass_cidrs: Vec<String>,
    /// Keys that we do not know.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for NetworkSection {
    fn default() -> Self {
        Self {
            allowed_domains: Vec::new(),
            blocked_domains: default_blocked_domains(),
            blocked_cidrs: default_blocked_cidrs(),
            bypass_domains: Vec::new(),
            bypass_cidrs: Vec::new(),
            rest: Map::new(),
        }
    }
}

fn default_blocked_domains() -> Vec<String> {
    DEFAULT_BLOCKED_DOMAINS.map(String::from).to_vec()
}

fn default_blocked_cidrs() -> Vec<String> {
    DEFAULT_BLOCKED_CIDRS.map(String::from).to_vec()
}

fn default_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DefaultPolicy, D::Error> {
    let value = String::deserialize(deserializer)?;
    DefaultPolicy::parse(&value).ok_or_else(|| {
        let key = "policy.default".to_owned();
        serde::de::Error::custom(ConfigError::Default { key, value })
    })
}

fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Changes to a policy: the flags of `network proxy`, each value as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edit {
    /// `--policy`.
    pub policy: Option<String>,
    /// `--allow-host`.
    pub allow_hosts: Vec<String>,
    /// `--block-host`.
    pub block_hosts: Vec<String>,
    /// `--bypass-host`.
    pub bypass_hosts: Vec<String>,
    /// `--allow-cidr`.
    pub allow_cidrs: Vec<String>,
    /// `--block-cidr`.
    pub block_cidrs: Vec<String>,
    /// `--bypass-cidr`.
    pub bypass_cidrs: Vec<String>,
}

impl ProxyConfig {
    /// The most entries of one list.
    pub const MOST_RULES: usize = 100_000;

    /// Reads and validates a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        // Go's files may begin with what Windows editors put there.
        let config: Self = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|problem| ConfigError::Syntax { problem })?;
        config.validate()?;
        Ok(config)
    }

    /// The file's text: the known keys in the schema's order, two spaces deep, a newline at the end.
    pub fn to_text(&self) -> String {
        // Strings and maps with string keys: nothing here that JSON cannot say.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Checks every entry; the error names the key and the value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let network = &self.network;
        for (key, list) in [
            ("network.allowedDomains", &network.allowed_domains),
            ("network.blockedDomains", &network.blocked_domains),
            ("network.bypassDomains", &network.bypass_domains),
        ] {
            patterns(key, list)?;
        }
        for (key, list) in [
            ("network.blockedCIDRs", &network.blocked_cidrs),
            ("network.bypassCIDRs", &network.bypass_cidrs),
        ] {
            cidrs(key, list)?;
        }
        Ok(())
    }

    /// Changes the policy, on top of what it is; either all of the edit holds or nothing of it.
    ///
    /// The last command wins over the same pattern: allowing takes it from the blocked ones and the reverse. An allowed
    /// range is taken from the blocked and the bypassed ones, and that is all that it does. Returns what had no effect,
    /// a sentence each.
    pub fn apply(&mut self, edit: &Edit) -> Result<Vec<String>, ConfigError> {
        let policy = match &edit.policy {
            Some(value) => Some(DefaultPolicy::parse(value).ok_or_else(|| {
                ConfigError::Default { key: "--policy".to_owned(), value: value.clone() }
            })?),
            None => None,
        };
        let allow = patterns("--allow-host", &edit.allow_hosts)?;
        let block = patterns("--block-host", &edit.block_hosts)?;
        let bypass = patterns("--bypass-host", &edit.bypass_hosts)?;
        let allow_cidrs = cidrs("--allow-cidr", &edit.allow_cidrs)?;
        let block_cidrs = cidrs("--block-cidr", &edit.block_cidrs)?;
        let bypass_cidrs = cidrs("--bypass-cidr", &edit.bypass_cidrs)?;
        consistent(&allow, "--allow-host", &block, "--block-host")?;
        consistent(&allow_cidrs, "--allow-cidr", &block_cidrs, "--block-cidr")?;
        consistent(&allow_cidrs, "--allow-cidr", &bypass_cidrs, "--bypass-cidr")?;

        let mut changed = self.clone();
        let network = &mut changed.network;
        changed.policy.default = policy.unwrap_or(changed.policy.default);
        remove(&mut network.blocked_domains, &allow);
        remove(&mut network.allowed_domains, &block);
        add(&mut network.allowed_domains, &allow);
        add(&mut network.blocked_domains, &block);
        add(&mut network.bypass_domains, &bypass);
        let mut removed = remove(&mut network.blocked_cidrs, &allow_cidrs);
        removed.extend(remove(&mut network.bypass_cidrs, &allow_cidrs));
        let missing: Vec<&Cidr> =
            allow_cidrs.iter().filter(|cidr| !removed.contains(cidr)).collect();
        let notes = no_such_ranges(&missing, &network.blocked_cidrs);
        add(&mut network.blocked_cidrs, &block_cidrs);
        add(&mut network.bypass_cidrs, &bypass_cidrs);
        changed.validate()?;
        *self = changed;
        Ok(notes)
    }
}

fn no_such_ranges(missing: &[&Cidr], blocked: &[String]) -> Vec<String> {
    if missing.is_empty() {
        return Vec::new();
    }
    let blocked: Vec<Cidr> = blocked.iter().filter_map(|entry| Cidr::parse(entry).ok()).collect();
    let note = |cidr: &&Cidr| match blocked.iter().find(|wider| wider.contains(cidr)) {
        Some(wider) => {
            format!("`{cidr}` is not listed; it stays blocked by `{wider}`, which is")
        }
        None => format!("`{cidr}` is neither blocked nor bypassed"),
    };
    missing.iter().map(note).collect()
}

/// Reads a list of patterns; an error names the entry.
pub(crate) fn patterns(key: &str, list: &[String]) -> Result<Vec<HostPattern>, ConfigError> {
    parsed(key, list, HostPattern::parse, |key, problem| ConfigError::Pattern { key, problem })
}

/// Reads a list of ranges; an error names the entry.
pub(crate) fn cidrs(key: &str, list: &[String]) -> Result<Vec<Cidr>, ConfigError> {
    parsed(key, list, Cidr::parse, |key, problem| ConfigError::Cidr { key, problem })
}

fn parsed<T, E>(
    key: &str,
    list: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
    wrap: impl Fn(String, E) -> ConfigError,
) -> Result<Vec<T>, ConfigError> {
    if list.len() > ProxyConfig::MOST_RULES {
        return Err(ConfigError::TooMany { key: key.to_owned() });
    }
    let named = |index: usize| {
        // A flag has no positions.
        if key.starts_with('-') { key.to_owned() } else { format!("{key}[{index}]") }
    };
    list.iter()
        .enumerate()
        .map(|(index, text)| parse(text).map_err(|error| wrap(named(index), error)))
        .collect()
}

fn consistent<T: Eq + Hash + std::fmt::Display>(
    one: &[T],
    one_flag: &'static str,
    other: &[T],
    other_flag: &'static str,
) -> Result<(), ConfigError> {
    let others: HashSet<&T> = other.iter().collect();
    match one.iter().find(|value| others.contains(value)) {
        Some(value) => Err(ConfigError::Contradiction {
            value: value.to_string(),
            one: one_flag,
            other: other_flag,
        }),
        None => Ok(()),
    }
}

/// Takes the entries that mean the same as one of `values`, however they are spelled; returns what was taken.
fn remove<T: Eq + Hash + std::str::FromStr>(list: &mut Vec<String>, values: &[T]) -> HashSet<T> {
    let mut removed = HashSet::new();
    let values: HashSet<&T> = values.iter().collect();
    if !values.is_empty() {
        list.retain(|entry| match entry.parse::<T>() {
            Ok(entry) if values.contains(&entry) => {
                removed.insert(entry);
                false
            }
            _ => true,
        });
    }
    removed
}

/// Adds, in their one form, the values that no entry means yet.
fn add<T: Eq + Hash + Clone + std::str::FromStr + std::fmt::Display>(
    list: &mut Vec<String>,
    values: &[T],
) {
    if values.is_empty() {
        return;
    }
    let mut present: HashSet<T> = list.iter().filter_map(|entry| entry.parse().ok()).collect();
    let new = values.iter().filter(|value| present.insert((*value).clone()));
    list.extend(new.map(ToString::to_string));
}

#[cfg(test)]
mod tests;
