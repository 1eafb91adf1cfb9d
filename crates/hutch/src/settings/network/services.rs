//! `[[network.services]]`: services of the user's own, which work like those that are built in.

use hutch_agents::{Agents, nearest};
use hutch_policy::host::{Authority, Port};
use hutch_policy::services::{PLACEHOLDER, validate};
use hutch_policy::settings::Service;
use toml::Value;

use crate::settings::fields::{Fields, Wrong};

/// Every key of a service.
const KEYS: &[&str] = &[
    "agents",
    "format",
    "git_basic",
    "header",
    "hosts",
    "name",
    "placeholder",
    "placeholder_variables",
    "replaces",
    "variables",
];
/// A service of the user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CustomService {
    /// What the proxy is told.
    pub(crate) service: Service,
    /// The agents whose sandboxes may use it; none = all.
    agents: Vec<String>,
}

impl CustomService {
    /// Says whether sandboxes of this agent may use it.
    pub(crate) fn is_for(&self, agent: &str) -> bool {
        self.agents.is_empty() || self.agents.iter().any(|word| word == agent)
    }
}

/// Reads the list.
pub(super) fn parse(network: &Fields<'_>, agents: &Agents) -> Result<Vec<CustomService>, Wrong> {
    let Some(value) = network.value("services") else { return Ok(Vec::new()) };
    let at = network.at("services");
    let list = value
        .as_array()
        .ok_or_else(|| (format!("`{at}` must be a list: write `[[{at}]]` above each one"), None))?;
    let mut services: Vec<CustomService> = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        // As a person counts.
        let at = format!("{at}[{}]", index + 1);
        let custom = one(&at, value, agents)?;
        if services.iter().any(|other| other.service.name == custom.service.name) {
            return Err((
                format!("`{at}.name`: there is another service `{}`", custom.service.name),
                None,
            ));
        }
        services.push(custom);
    }
    Ok(services)
}

fn one(at: &str, value: &Value, agents: &Agents) -> Result<CustomService, Wrong> {
    let fields = Fields::of(at, value, KEYS)?;
    let needed = |key: &str, example: &str| (format!("`{at}` needs `{key}`, like {example}"), None);
    let name = fields.text("name")?.ok_or_else(|| needed("name", "\"example\""))?;
    let hosts = fields.texts("hosts")?.filter(|hosts| !hosts.is_empty());
    let hosts = hosts.ok_or_else(|| needed("hosts", "[\"api.example.com\"]"))?;
    let header = fields.text("header")?.ok_or_else(|| needed("header", "\"authorization\""))?;
    let header = header.to_ascii_lowercase();
    let usual = if header == "authorization" { "Bearer %s" } else { "%s" };
    let format = fields.text("format")?.unwrap_or(usual);
    let texts = |key: &str| -> Result<Option<Vec<String>>, Wrong> {
        Ok(fields.texts(key)?.map(|texts| texts.into_iter().map(str::to_owned).collect()))
    };
    let variables = texts("variables")?.unwrap_or_default();
    let mut replaces = texts("replaces")?.unwrap_or_default();
    for other in &mut replaces {
        other.make_ascii_lowercase();
    }
    replaces.retain(|other| *other != header);
    let service = Service {
        name: name.to_owned(),
        hosts: hosts.into_iter().map(|text| host(&fields, text)).collect::<Result<_, _>>()?,
        format: format.to_owned(),
        placeholder_variables: texts("placeholder_variables")?.unwrap_or_else(|| variables.clone()),
        placeholder: fields.text("placeholder")?.unwrap_or(PLACEHOLDER).to_owned(),
        replaces,
        git_basic: fields.flag("git_basic")?.unwrap_or_default(),
        oauth: None,
        variables,
        header,
    };
    validate(&service).map_err(|error| (format!("`{at}`: {error}"), None))?;
    Ok(CustomService { service, agents: agents_of(&fields, agents)? })
}

/// A host name, with its port where it is not the usual one.
fn host(fields: &Fields<'_>, text: &str) -> Result<String, Wrong> {
    let place =
        Authority::parse_or(text, Port::HTTPS).map_err(|error| fields.wrong("hosts", error))?;
    Ok(if place.port == Port::HTTPS { place.host.to_string() } else { place.to_string() })
}

fn agents_of(fields: &Fields<'_>, agents: &Agents) -> Result<Vec<String>, Wrong> {
    let words = fields.texts("agents")?.unwrap_or_default();
    let known = |word: &str| match agents.find(word) {
        // The older words of an agent mean the same one.
        Some(agent) => Ok(agent.word.clone()),
        None => {
            let (what, _) = fields.wrong("agents", format_args!("there is no agent `{word}`"));
            let hint = nearest(word, agents.words()).map_or_else(
                || format!("the agents are {}", agents.list()),
                |near| format!("did you mean `{near}`?"),
            );
            Err((what, Some(hint)))
        }
    };
    words.into_iter().map(known).collect()
}
