//! Where credentials are found: the secret store, then the caller's environment, then the login shell's.
//!
//! Nothing is taken for granted for longer than one request: each looks at the stamps of the files that an answer came
//! from, which costs microseconds, and reads again what changed. So a key that changes on the host is used by the next
//! request. What start files read in turn is not seen; for that the shell is asked again every few minutes, in the
//! background.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hutch_secrets::Secret;
use hutch_secrets::login_shell::{self, Login, Stamps};
use hutch_secrets::store::{Entry, ServiceName, Stamp, Store};

use super::{Found, SentSecret, SentTokens, Variables};
use crate::control::CallerEnvironment;
use crate::spawn::BrokerSpec;

/// The shell is asked again after so long, though no start file changed.
const SHELL_AGE_MAX: Duration = Duration::from_secs(5 * 60);
/// A shell that gave no answer is asked again after so long.
const SHELL_RETRY: Duration = Duration::from_secs(60);

/// Where a key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Store,
    Environment(String),
    LoginShell(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("secret store"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::LoginShell(variable) => write!(f, "login shell {variable}"),
        }
    }
}

/// All sources; see the module.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The variables of each service that is answered for, in the order of preference.
    services: BTreeMap<String, Vec<String>>,
    store: Store,
    /// What the store held at this stamp.
    stored: Mutex<Option<(Stamp, BTreeMap<String, Entry>)>>,
    /// What callers brought, the newest of each variable.
    environment: Mutex<Variables>,
    login: Option<Login>,
    /// Held while the shell runs: others wait for its answer rather than run another.
    shell: tokio::sync::Mutex<Option<Asked>>,
}

/// An answer of the login shell.
#[derive(Debug, Clone)]
struct Asked {
    stamps: Stamps,
    at: Instant,
    variables: Arc<Variables>,
    /// Why there was none.
    failed: Option<Arc<str>>,
}

impl Asked {
    fn is_old(&self) -> bool {
        let age_max = if self.failed.is_some() { SHELL_RETRY } else { SHELL_AGE_MAX };
        self.at.elapsed() >= age_max
    }
}

impl Sources {
    pub(crate) fn new(spec: &BrokerSpec) -> Self {
        let login = spec.shell.as_ref().map(|shell| Login {
            home: spec.home.clone(),
            user: spec.user.clone(),
            shell: shell.clone(),
        });
        Self {
            services: spec.services.iter().cloned().collect(),
            store: Store::new(&spec.store),
            stored: Mutex::new(None),
            environment: Mutex::new(Variables::new()),
            login,
            shell: tokio::sync::Mutex::new(None),
        }
    }

    /// Asks the login shell now, so that the first request need not wait for it.
    pub(crate) fn prefetch(self: &Arc<Self>) {
        let sources = Arc::clone(self);
        tokio::spawn(async move { sources.shell_variables().await });
    }

    /// Takes the variables that a caller brought. What it has not, stays; what it has empty, goes.
    pub(crate) fn caller(&self, environment: CallerEnvironment) {
        let mut known = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in environment.variables {
            if !self.services.values().flatten().any(|variable| *variable == name) {
                continue;
            }
            match Secret::parse(value) {
                Ok(secret) => drop(known.insert(name, secret)),
                Err(error) => {
                    tracing::debug!(name, %error, "a variable of the caller is no credential");
                    known.remove(&name);
                }
            }
        }
    }

    /// What there is for a service; none if it is not one of ours.
    pub(crate) async fn find(self: &Arc<Self>, service: &str) -> Option<Found> {
        let variables = self.services.get(service)?;
        let entry = self.entry(service);
        let tokens = entry.oauth.as_ref().map(SentTokens::from);
        let (key, looked) = match self.key(entry, variables).await {
            Ok((key, _)) => (Some(SentSecret::from(&key)), String::new()),
            Err(looked) => (None, looked),
        };
        Some(Found { key, tokens, looked })
    }

    /// Where the credential of each service is found.
    pub(crate) async fn places(self: &Arc<Self>) -> Vec<(String, Option<String>)> {
        let mut places = Vec::new();
        for (service, variables) in &self.services {
            let entry = self.entry(service);
            let signed_in = entry.oauth.as_ref().map(|_| "secret store (signed in)".to_owned());
            let key = self.key(entry, variables).await.ok().map(|(_, place)| place.to_string());
            places.push((service.clone(), key.or(signed_in)));
        }
        places
    }

    /// The key and where it was, or where it was looked for.
    async fn key(
        self: &Arc<Self>,
        entry: Entry,
        variables: &[String],
    ) -> Result<(Secret, Place), String> {
        if let Some(key) = entry.api_key {
            return Ok((key, Place::Store));
        }
        {
            let known = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
            for variable in variables {
                if let Some(key) = known.get(variable) {
                    return Ok((key.clone(), Place::Environment(variable.clone())));
                }
            }
        }
        let named = variables.join(" or ");
        if variables.is_empty() {
            return Err("the secret store".to_owned());
        }
        let Some(asked) = self.shell_variables().await else {
            return Err(format!("the secret store and the caller's environment ({named})"));
        };
        for variable in variables {
            if let Some(key) = asked.variables.get(variable) {
                return Ok((key.clone(), Place::LoginShell(variable.clone())));
            }
        }
        let mut looked =
            format!("the secret store, the caller's environment and the login shell ({named})");
        if let Some(failed) = asked.failed {
            looked = format!("{looked}; {failed}");
        }
        Err(looked)
    }

    /// The store's entry, read again if the file changed.
    fn entry(&self, service: &str) -> Entry {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.store.stamp();
        if stored.as_ref().is_none_or(|(then, _)| *then != stamp) {
            let content = self.store.read().unwrap_or_else(|error| {
                tracing::warn!("{}", with_causes(&error));
                BTreeMap::new()
            });
            *stored = Some((stamp, content));
        }
        let content = stored.as_ref().map(|(_, content)| content);
        content.and_then(|content| content.get(service)).cloned().unwrap_or_default()
    }

    /// What the login shell exports; none where there is no shell to ask.
    async fn shell_variables(self: &Arc<Self>) -> Option<Asked> {
        let login = self.login.clone()?;
        let mut shell = self.shell.lock().await;
        // Before the shell reads them: a change while it runs is noticed next time.
        let stamps = Stamps::of(&login.home);
        match shell.as_ref() {
            Some(asked) if asked.stamps == stamps => {
                if asked.is_old() {
                    let sources = Arc::clone(self);
                    let old = asked.clone();
                    // The age counts from now, so that nobody else starts another.
                    *shell = Some(Asked { at: Instant::now(), ..old.clone() });
                    tokio::spawn(async move {
                        let asked = sources.ask(login, stamps).await;
                        *sources.shell.lock().await = Some(asked);
                    });
                    return Some(old);
                }
                Some(asked.clone())
            }
            _ => {
                let asked = self.ask(login, stamps).await;
                *shell = Some(asked.clone());
                Some(asked)
            }
        }
    }

    async fn ask(&self, login: Login, stamps: Stamps) -> Asked {
        let mut names: Vec<String> = self.services.values().flatten().cloned().collect();
        names.sort();
        names.dedup();
        let answer = tokio::task::spawn_blocking(move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            login_shell::variables(&login, &names).map_err(|error| with_causes(&error))
        });
        let answer = answer.await.unwrap_or_else(|_| Err("asking it failed".to_owned()));
        let (variables, failed) = match answer {
            Ok(variables) => (variables, None),
            Err(failed) => {
                tracing::warn!("{failed}");
                (Variables::new(), Some(failed.into()))
            }
        };
        Asked { stamps, at: Instant::now(), variables: Arc::new(variables), failed }
    }

    /// Keeps the tokens of a sign-in; what they lack stays as it was.
    pub(crate) async fn keep_tokens(
        &self,
        service: String,
        tokens: SentTokens,
    ) -> Result<(), String> {
        let tokens = tokens.open().map_err(|error| format!("a token is unfit: {error}"))?;
        self.change(service, move |entry| {
            let before = entry.oauth.take();
            let mut tokens = tokens;
            if let Some(before) = before {
                tokens.refresh = tokens.refresh.or(before.refresh);
                tokens.id = tokens.id.or(before.id);
                if tokens.scopes.is_empty() {
                    tokens.scopes = before.scopes;
                }
            }
            entry.oauth = Some(tokens);
        })
        .await
    }

    /// Keeps a key that a sign-in made, unless the user gave one.
    pub(crate) async fn keep_key(&self, service: String, key: SentSecret) -> Result<(), String> {
        let key = key.open().map_err(|error| format!("the key is unfit: {error}"))?;
        self.change(service, move |entry| {
            entry.api_key.get_or_insert(key);
        })
        .await
    }

    async fn change(
        &self,
        service: String,
        change: impl FnOnce(&mut Entry) + Send + 'static,
    ) -> Result<(), String> {
        if !self.services.contains_key(&service) {
            return Err(format!("{service} is not a service of this sandbox"));
        }
        let name: ServiceName = service.parse().map_err(|error| format!("{error}"))?;
        let store = self.store.clone();
        let changed = tokio::task::spawn_blocking(move || store.change(&name, change));
        match changed.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(with_causes(&error)),
            Err(_) => Err("the secret store could not be written".to_owned()),
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
