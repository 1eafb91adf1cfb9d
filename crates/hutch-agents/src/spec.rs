//! A resolved agent, and what is to be done to start it in one sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;

use hutch_policy::services;
use hutch_policy::settings::Service;
use serde::Serialize;

use crate::config::{AgentConfig, ConfigError, CredentialConfig, Origin, SeedConfig};
use crate::recipe::Recipe;
use crate::seed::{self, Seed, SeedAction, SeedFormat, Situation};

/// What every agent is told about where it is, unless the user has such a file already.
const INSTRUCTIONS: &str = include_str!("instructions.md");
/// Longest text of a file for an agent.
const CONTENT_MAX: usize = 64 << 10;

/// An AI program, or a plain shell, that `run` starts in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSpec {
    /// What people type.
    pub word: String,
    /// Other words for the same.
    pub aliases: Vec<String>,
    /// One line about it.
    pub about: String,
    /// What is started.
    pub command: Vec<String>,
    /// What follows the command, unless a subcommand takes its place.
    pub flags: Vec<String>,
    /// First words after `--` that take the place of the flags: `login`.
    pub subcommands: Vec<String>,
    /// Its own template.
    pub template: String,
    /// The file, below the home directory, that it reads hints from in every project.
    pub instructions: Option<String>,
    /// Variables of its sessions.
    pub environment: BTreeMap<String, String>,
    /// The services whose credentials it is given, as it needs them.
    pub services: Vec<Service>,
    /// Where this comes from.
    pub origin: Origin,
    seeds: Vec<SeedConfig>,
}

/// What is known about the credential of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialState {
    /// There is none.
    Missing,
    /// There is a key.
    Key,
    /// The host holds the tokens of a sign-in.
    SignedIn,
}

/// How an agent's session begins in one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables of the session.
    pub environment: Vec<(String, String)>,
    /// Files, in this order.
    pub seeds: Vec<Seed>,
}

impl AgentSpec {
    /// Reads the text of an agent's file.
    pub(crate) fn parse(word: &str, text: &str, origin: Origin) -> Result<Self, ConfigError> {
        Self::resolve(word, AgentConfig::parse(text)?, origin)
    }

    fn resolve(word: &str, config: AgentConfig, origin: Origin) -> Result<Self, ConfigError> {
        let wrong = |key, what: String| Err(ConfigError::Value { key, what });
        if config.command.first().is_none_or(String::is_empty) {
            return wrong("command", "the program that is started is missing".to_owned());
        }
        if config.template.is_empty() {
            return wrong("template", "it must not be empty".to_owned());
        }
        for alias in &config.aliases {
            if !is_word(alias) {
                return wrong("aliases", format!("`{alias}` is not a word like `claude`"));
            }
        }
        for name in config.environment.keys() {
            if !is_variable(name) {
                return wrong("environment", format!("`{name}` is not the name of a variable"));
            }
        }
        let services: Vec<Service> =
            config.credentials.iter().map(service).collect::<Result<_, _>>()?;
        for seed in &config.seeds {
            check_seed(seed, &services)?;
        }
        let instructions = config.instructions.as_deref().map(below_home).transpose();
        let instructions =
            instructions.map_err(|what| ConfigError::Value { key: "instructions", what })?;
        Ok(Self {
            word: word.to_owned(),
            aliases: config.aliases,
            about: config.about,
            command: config.command,
            flags: config.flags,
            subcommands: config.subcommands,
            template: config.template,
            instructions: instructions.map(str::to_owned),
            environment: config.environment,
            services,
            origin,
            seeds: config.seeds,
        })
    }

    /// Program and arguments, with those after `--`.
    pub fn argv(&self, arguments: &[OsString]) -> Vec<OsString> {
        let subcommand = arguments
            .first()
            .and_then(|first| first.to_str())
            .is_some_and(|first| self.subcommands.iter().any(|word| word == first));
        let flags: &[String] = if subcommand { &[] } else { &self.flags };
        let own = self.command.iter().chain(flags).map(OsString::from);
        own.chain(arguments.iter().cloned()).collect()
    }

    /// The program that the template must have.
    pub fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Whether [`AgentSpec::launch`] depends on which credentials there are.
    pub fn asks_for_credentials(&self) -> bool {
        self.word != SHELL && !self.services.is_empty()
    }

    /// How its template is made, where that is known here.
    pub fn recipe(&self) -> Option<Recipe> {
        Recipe::of(&self.template)
    }

    /// How it is started: `state` tells of each service what is known.
    pub fn launch(
        &self,
        arguments: &[OsString],
        workspaces: &[&str],
        state: impl Fn(&str) -> CredentialState,
    ) -> Launch {
        let mut environment: Vec<(String, String)> =
            self.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if self.asks_for_credentials() {
            // A placeholder without a key behind it would keep the agent from its own sign-in.
            let missing =
                self.services.iter().filter(|one| state(&one.name) == CredentialState::Missing);
            for name in missing.flat_map(|service| &service.placeholder_variables) {
                if !self.has_placeholder(name, &state) {
                    environment.push((name.clone(), String::new()));
                }
            }
        }
        let mut seeds: Vec<Seed> = Vec::new();
        if let Some(path) = &self.instructions {
            seeds.extend(instructions(path, workspaces));
        }
        seeds.extend(self.seeds.iter().filter_map(|seed| self.seed(seed, workspaces, &state)));
        // What is taken back must not take what another seed puts there.
        seeds.sort_by_key(|seed| seed.action == SeedAction::Merge);
        Launch { argv: self.argv(arguments), environment, seeds }
    }

    /// Whether another service with a credential has the same variable.
    fn has_placeholder(&self, name: &str, state: &impl Fn(&str) -> CredentialState) -> bool {
        self.services.iter().any(|service| {
            state(&service.name) != CredentialState::Missing
                && service.placeholder_variables.iter().any(|variable| variable == name)
        })
    }

    fn seed(
        &self,
        config: &SeedConfig,
        workspaces: &[&str],
        state: &impl Fn(&str) -> CredentialState,
    ) -> Option<Seed> {
        let service = config.service.as_deref();
        let service = service.or_else(|| self.services.first().map(|first| first.name.as_str()));
        let state = service.map_or(CredentialState::Missing, state);
        let holds = match config.when {
            Situation::Always => true,
            Situation::Key => state == CredentialState::Key,
            Situation::SignedIn => state == CredentialState::SignedIn,
            Situation::Credential => state != CredentialState::Missing,
        };
        Some(Seed {
            path: below_home(&config.path).ok()?.to_owned(),
            format: config.format,
            action: if holds { SeedAction::Merge } else { SeedAction::TakeBack },
            content: seed::fill(config.format, &config.content, workspaces)?,
        })
    }

    /// What a person may want to know of it.
    pub fn description(&self) -> impl Serialize + '_ {
        Description {
            name: &self.word,
            aliases: &self.aliases,
            about: &self.about,
            command: self
                .argv(&[])
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            template: &self.template,
            credentials: self
                .services
                .iter()
                .map(|service| Credential { service: &service.name, variables: &service.variables })
                .collect(),
            environment: &self.environment,
            files: self.files(),
            origin: self.origin.to_string(),
        }
    }

    /// The files of its home that it finds.
    pub fn files(&self) -> Vec<String> {
        let mut files: Vec<String> =
            self.instructions.iter().map(|path| format!("~/{path}")).collect();
        files.extend(self.seeds.iter().map(|seed| seed.path.clone()));
        files.dedup();
        files
    }
}

/// The agent that is none.
const SHELL: &str = "shell";

#[derive(Serialize)]
struct Description<'a> {
    name: &'a str,
    aliases: &'a [String],
    about: &'a str,
    command: Vec<String>,
    template: &'a str,
    credentials: Vec<Credential<'a>>,
    environment: &'a BTreeMap<String, String>,
    files: Vec<String>,
    origin: String,
}

#[derive(Serialize)]
struct Credential<'a> {
    service: &'a str,
    variables: &'a [String],
}

fn instructions(path: &str, workspaces: &[&str]) -> Option<Seed> {
    Some(Seed {
        path: path.to_owned(),
        format: SeedFormat::Text,
        action: SeedAction::Merge,
        content: seed::fill(SeedFormat::Text, INSTRUCTIONS, workspaces)?,
    })
}

fn service(config: &CredentialConfig) -> Result<Service, ConfigError> {
    let mut service = services::service(&config.service).ok_or_else(|| {
        let all = services::all();
        let names = all.iter().map(|service| service.name.as_str());
        let advice = crate::nearest(&config.service, names.clone()).map_or_else(
            || format!("the services are {}", names.collect::<Vec<_>>().join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        ConfigError::Value {
            key: "credentials.service",
            what: format!("there is no service `{}`; {advice}", config.service),
        }
    })?;
    if let Some(variables) = &config.placeholder_variables {
        if let Some(name) = variables.iter().find(|name| !is_variable(name)) {
            return Err(ConfigError::Value {
                key: "credentials.placeholder_variables",
                what: format!("`{name}` is not the name of a variable"),
            });
        }
        service.placeholder_variables.clone_from(variables);
    }
    if let Some(first) = &config.prefer {
        // The key that the host has for this very agent comes first.
        service.variables.sort_by_key(|variable| variable != first);
    }
    service.hosts.retain(|host| !config.without_hosts.contains(host));
    Ok(service)
}

fn check_seed(config: &SeedConfig, services: &[Service]) -> Result<(), ConfigError> {
    let wrong = |key, what: String| Err(ConfigError::Value { key, what });
    if let Err(what) = below_home(&config.path) {
        return wrong("seeds.path", what);
    }
    if config.content.len() > CONTENT_MAX {
        return wrong("seeds.content", format!("it is longer than {CONTENT_MAX} bytes"));
    }
    if seed::fill(config.format, &config.content, &[]).is_none() {
        return wrong(
            "seeds.content",
            format!("the text for {} is not {:?}", config.path, config.format),
        );
    }
    if let Some(name) = &config.service
        && !services.iter().any(|service| service.name == *name)
    {
        return wrong("seeds.service", format!("`{name}` is not among the agent's credentials"));
    }
    Ok(())
}

/// A path like `~/.claude.json` without the home.
fn below_home(path: &str) -> Result<&str, String> {
    let inside = path.strip_prefix("~/").unwrap_or("");
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if inside.split('/').all(plain) {
        Ok(inside)
    } else {
        Err(format!("`{path}` is not a path like `~/.config/agent.json`"))
    }
}

/// What can be typed as an agent, and begin the name of a sandbox.
pub(crate) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
