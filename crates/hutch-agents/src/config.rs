//! What a person wrote about an agent, read strictly: an unknown key is an error that names the nearest one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use toml::{Table, Value};

use crate::nearest::nearest;
use crate::seed::{SeedFormat, Situation};

/// Where an agent comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This program.
    BuiltIn,
    /// A file of the user's.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What is wrong with the text of an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a value of the wrong kind.
    #[error("line {line}: {what}")]
    Toml {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// A key that there is not.
    #[error("there is no setting `{key}` for an agent; {advice}")]
    Unknown {
        /// The key with those of its tables.
        key: String,
        /// The nearest key, or all of them.
        advice: String,
    },
    /// A value that makes no sense.
    #[error("`{key}`: {what}")]
    Value {
        /// The key with those of its tables.
        key: &'static str,
        /// Why not.
        what: String,
    },
}

/// One agent's file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct AgentConfig {
    pub(crate) about: String,
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) subcommands: Vec<String>,
    pub(crate) template: String,
    #[serde(default)]
    pub(crate) instructions: Option<String>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) credentials: Vec<CredentialConfig>,
    #[serde(default)]
    pub(crate) seeds: Vec<SeedConfig>,
}

/// A service whose credential the agent is given.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CredentialConfig {
    pub(crate) service: String,
    /// Variables that hold the placeholder, where they are not the service's own.
    pub(crate) placeholder_variables: Option<Vec<String>>,
    /// Variable of the host that is looked at before the service's others.
    pub(crate) prefer: Option<String>,
    /// Hosts of the service that this agent has nothing to do with.
    #[serde(default)]
    pub(crate) without_hosts: Vec<String>,
}

/// A file that the agent finds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct SeedConfig {
    pub(crate) path: String,
    pub(crate) format: SeedFormat,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) when: Situation,
    /// The service that `when` is about; the agent's first one unless it is named.
    pub(crate) service: Option<String>,
}

const KEYS: &[&str] = &[
    "about",
    "aliases",
    "command",
    "credentials",
    "environment",
    "flags",
    "instructions",
    "seeds",
    "subcommands",
    "template",
];
const CREDENTIAL_KEYS: &[&str] = &["placeholder_variables", "prefer", "service", "without_hosts"];
const SEED_KEYS: &[&str] = &["content", "format", "path", "service", "when"];

impl AgentConfig {
    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |error: toml::de::Error| ConfigError::Toml {
            line: error.span().map_or(1, |span| {
                text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
            }),
            what: error.message().trim().replace('\n', ", "),
        };
        let table: Table = text.parse().map_err(wrong)?;
        check_keys("", &table, KEYS)?;
        check_list("credentials", &table, CREDENTIAL_KEYS)?;
        check_list("seeds", &table, SEED_KEYS)?;
        toml::from_str(text).map_err(wrong)
    }
}

fn check_list(name: &str, table: &Table, keys: &[&str]) -> Result<(), ConfigError> {
    let Some(Value::Array(list)) = table.get(name) else { return Ok(()) };
    let prefix = format!("{name}.");
    list.iter().filter_map(Value::as_table).try_for_each(|table| check_keys(&prefix, table, keys))
}

fn check_keys(prefix: &str, table: &Table, keys: &[&str]) -> Result<(), ConfigError> {
    let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) else { return Ok(()) };
    let advice = nearest(key, keys.iter().copied()).map_or_else(
        || format!("the keys are {}", keys.join(", ")),
        |near| format!("did you mean `{prefix}{near}`?"),
    );
    Err(ConfigError::Unknown { key: format!("{prefix}{key}"), advice })
}
