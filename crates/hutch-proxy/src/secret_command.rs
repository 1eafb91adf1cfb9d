//! `hutch-proxy secret`: what `hutch secret` runs, so that no other program links the secret store.
//!
//! ```text
//!   secret --config DIRECTORY set SERVICE       the value is the first line of standard input, never an argument
//!   secret --config DIRECTORY ls [--json]       names and kinds, never values
//!   secret --config DIRECTORY rm SERVICE…
//! ```
//!
//! Standard output is data, standard error talk. It ends with 0, with 1 when something could not be done, with 2 when it
//! was not called as above.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use hutch_secrets::store::{Entry, ServiceName, ServiceNameError, Store, StoreError};
use hutch_secrets::{SECRET_MAX, Secret, SecretError};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;
use zeroize::Zeroizing;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// It was not called as documented.
    #[error("usage: hutch-proxy secret --config DIRECTORY set SERVICE | ls [--json] | rm SERVICE…")]
    Usage,
    /// The name is none.
    #[error("`{name}` is no service")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ServiceNameError,
    },
    /// The value cannot be a credential.
    #[error("the credential for {service} was not stored")]
    Value {
        /// The service.
        service: ServiceName,
        /// What is wrong with it.
        #[source]
        source: SecretError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing a standard stream failed.
    #[error("the standard streams failed")]
    Stream(#[from] io::Error),
    /// There is nothing to remove.
    #[error("no credential is stored for {0}")]
    Unknown(String),
}

/// A line of `ls --json`.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    service: &'a str,
    /// Whether there is a key that the user gave.
    key: bool,
    /// Whether there are tokens of a sign-in.
    signed_in: bool,
    /// When the access token expires, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
}

#[derive(Debug, Serialize)]
struct List<'a> {
    secrets: Vec<Listed<'a>>,
}

/// Runs the command on the standard streams; gives the exit code.
pub fn run(arguments: &[&str]) -> u8 {
    let stdin = io::stdin();
    let outcome = if stdin.is_terminal() {
        let hidden = Hidden::begin();
        let outcome = execute(arguments, &mut stdin.lock(), &mut io::stdout().lock());
        drop(hidden);
        outcome
    } else {
        execute(arguments, &mut stdin.lock(), &mut io::stdout().lock())
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            // Nothing is left to tell it to when this fails.
            writeln!(io::stderr(), "error: {}", with_causes(&error)).ok();
            if matches!(error, CommandError::Usage) { 2 } else { 1 }
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn execute(
    arguments: &[&str],
    input: &mut impl io::BufRead,
    output: &mut impl io::Write,
) -> Result<(), CommandError> {
    let ["--config", directory, command @ ..] = arguments else { return Err(CommandError::Usage) };
    let store = Store::new(*directory);
    match command {
        ["set", service] => set(&store, &name(service)?, input),
        ["ls"] => Ok(write_table(&store.read()?, output)?),
        ["ls", "--json"] => {
            let stored = store.read()?;
            let list = List { secrets: listed(&stored).collect() };
            serde_json::to_writer_pretty(&mut *output, &list).map_err(io::Error::from)?;
            Ok(writeln!(output)?)
        }
        ["rm", services @ ..] if !services.is_empty() => remove(&store, services, output),
        _ => Err(CommandError::Usage),
    }
}

fn name(text: &str) -> Result<ServiceName, CommandError> {
    text.parse().map_err(|source| CommandError::Name { name: text.to_owned(), source })
}

fn set(
    store: &Store,
    service: &ServiceName,
    input: &mut impl io::BufRead,
) -> Result<(), CommandError> {
    let mut line = Zeroizing::new(String::with_capacity(SECRET_MAX + 2));
    input.by_ref().take(SECRET_MAX as u64 + 2).read_line(&mut line)?;
    match Secret::parse(line.as_str()) {
        Ok(key) => {
            store.change(service, |entry| entry.api_key = Some(key))?;
            Ok(())
        }
        Err(source) => Err(CommandError::Value { service: service.clone(), source }),
    }
}

/// Removes those that there are, and fails afterwards if one was not there.
fn remove(
    store: &Store,
    services: &[&str],
    output: &mut impl io::Write,
) -> Result<(), CommandError> {
    let names: Vec<ServiceName> =
        services.iter().map(|service| name(service)).collect::<Result<_, _>>()?;
    let mut unknown = Vec::new();
    for name in names {
        if store.remove(&name)? {
            writeln!(output, "{name}")?;
        } else {
            unknown.push(name.to_string());
        }
    }
    if unknown.is_empty() { Ok(()) } else { Err(CommandError::Unknown(unknown.join(", "))) }
}

fn listed(stored: &BTreeMap<String, Entry>) -> impl Iterator<Item = Listed<'_>> {
    stored.iter().map(|(service, entry)| Listed {
        service,
        key: entry.api_key.is_some(),
        signed_in: entry.oauth.is_some(),
        expires_at: entry.oauth.as_ref().and_then(|tokens| tokens.expires_at),
    })
}

fn write_table(stored: &BTreeMap<String, Entry>, output: &mut impl io::Write) -> io::Result<()> {
    let width = stored.keys().map(String::len).max().unwrap_or(0).max("SERVICE".len());
    writeln!(output, "{:width$}  KIND", "SERVICE")?;
    for entry in listed(stored) {
        let kind = match (entry.key, entry.signed_in) {
            (true, true) => "key, signed in",
            (true, false) => "key",
            (false, _) => "signed in",
        };
        writeln!(output, "{:width$}  {kind}", entry.service)?;
    }
    Ok(())
}

/// What is typed does not show while this lives.
struct Hidden(Option<rustix::termios::Termios>);

impl Hidden {
    fn begin() -> Self {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut hidden = before.clone();
            hidden.local_modes.remove(LocalModes::ECHO);
            hidden.local_modes.insert(LocalModes::ECHONL);
            // Where it cannot be hidden, the user sees what is typed, as everywhere.
            tcsetattr(&stdin, OptionalActions::Flush, &hidden).ok();
        }
        Self(before)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            tcsetattr(io::stdin(), OptionalActions::Flush, before).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(directory: &str, command: &[&str], input: &str) -> Result<String, String> {
        let mut arguments = vec!["--config", directory];
        arguments.extend(command);
        let mut output = Vec::new();
        execute(&arguments, &mut input.as_bytes(), &mut output)
            .map(|()| String::from_utf8(output).unwrap())
            .map_err(|error| with_causes(&error))
    }

    #[test]
    fn a_key_is_set_listed_and_removed_and_never_shown() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("config");
        let directory = directory.to_str().unwrap();
        assert_eq!(run(directory, &["ls"], "").unwrap(), "SERVICE  KIND\n");
        assert_eq!(run(directory, &["set", "openai"], "sk-1 \nsecond line\n").unwrap(), "");
        assert_eq!(run(directory, &["set", "my-own-service"], "other").unwrap(), "");
        let stored = Store::new(directory).read().unwrap();
        assert_eq!(stored["openai"].api_key.as_ref().unwrap().expose(), "sk-1");

        let table = run(directory, &["ls"], "").unwrap();
        assert_eq!(table, "SERVICE         KIND\nmy-own-service  key\nopenai          key\n");
        let json: serde_json::Value =
            serde_json::from_str(&run(directory, &["ls", "--json"], "").unwrap()).unwrap();
        let expected = serde_json::json!({"secrets": [
            {"service": "my-own-service", "key": true, "signed_in": false},
            {"service": "openai", "key": true, "signed_in": false},
        ]});
        assert_eq!(json, expected);

        let error = run(directory, &["rm", "openai", "groq"], "").unwrap_err();
        assert_eq!(error, "no credential is stored for groq");
        assert_eq!(Store::new(directory).read().unwrap().len(), 1);
        assert_eq!(run(directory, &["rm", "my-own-service"], "").unwrap(), "my-own-service\n");
    }

    #[test]
    fn what_is_no_credential_or_no_command_is_refused_without_repeating_it() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().to_str().unwrap();
        for value in ["", "\n", "käse-secret", "tab\tsecret"] {
            let error = run(directory, &["set", "openai"], value).unwrap_err();
            assert!(error.contains("not stored") && !error.contains("secret"), "{error}");
        }
        let long = "x".repeat(SECRET_MAX + 1);
        assert!(run(directory, &["set", "openai"], &long).unwrap_err().contains("longer"));
        assert!(run(directory, &["set", "Open/AI"], "x").unwrap_err().contains("`Open/AI`"));
        for command in [&["set"][..], &["set", "openai", "sk-1"], &["rm"], &["get", "x"], &[]] {
            assert!(run(directory, command, "").unwrap_err().starts_with("usage"), "{command:?}");
        }
    }
}
