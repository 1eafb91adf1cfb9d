//! The agents by the word that people type: what to say where there is none, and how one is started in a sandbox.

use std::ffi::OsString;

use hutch_agents::{
    AgentSpec, Agents, AgentsError, CredentialState, Launch, Seed, SeedAction, SeedFormat, nearest,
};
use hutch_api::{NetworkRequest, NetworkService, Response};
use hutch_store::SandboxRecord;
use hutch_wire::guest;

use crate::failure::{Blame, Failure};
use crate::keeper_client::Keeper;
use crate::printer::Printer;

/// How the broker says that it found the tokens of a sign-in and no key.
const SIGNED_IN: &str = "secret store (signed in)";

/// The agent with this word, or a failure that lists what there is.
pub(crate) fn require<'a>(agents: &'a Agents, word: &str) -> Result<&'a AgentSpec, Failure> {
    agents.find(word).ok_or_else(|| {
        let meant = nearest(word, agents.words()).map(|near| format!("did you mean `{near}`?"));
        Failure::user(format!("there is no agent `{word}`; the agents are {}", agents.list()))
            .hint_if(meant)
    })
}

/// The built-in agents as lines of a help text.
pub(crate) fn help() -> String {
    let mut text = String::from("Agents (experimental; claude is the most tested one):");
    for agent in Agents::built_in().iter() {
        text.push_str(&["\n  ", &format!("{:<13}", agent.word), " ", &agent.about].concat());
    }
    text
}

/// The agents of this user's configuration cannot be used.
pub(crate) fn not_known(error: &AgentsError) -> Failure {
    Failure::from_error(Blame::User, error)
}

/// How the agent of a sandbox begins. Asks its keeper for the credentials, where the agent depends on them.
pub(crate) async fn launch(
    agent: &AgentSpec,
    arguments: &[OsString],
    record: &SandboxRecord,
    keeper: &Keeper,
    printer: Printer,
) -> Launch {
    let found =
        if agent.asks_for_credentials() { credentials(keeper, printer).await } else { None };
    let state = |service: &str| match &found {
        // It is not known: then what there usually is.
        None => CredentialState::Key,
        Some(found) => state(found, service),
    };
    let workspaces: Vec<&str> =
        record.workspaces.iter().filter_map(|one| one.path.as_path().to_str()).collect();
    agent.launch(arguments, &workspaces, state)
}

/// Where the credentials of the sandbox's services were found.
async fn credentials(keeper: &Keeper, printer: Printer) -> Option<Vec<NetworkService>> {
    match keeper.network(NetworkRequest::Services).await {
        Ok(Response::NetworkServices(services)) => Some(services),
        Ok(_) => None,
        Err(error) => {
            printer.debug(&format!("it is not known which credentials there are: {error}"));
            None
        }
    }
}

fn state(found: &[NetworkService], service: &str) -> CredentialState {
    match found.iter().find(|one| one.name == service).and_then(|one| one.found.as_deref()) {
        None => CredentialState::Missing,
        Some(SIGNED_IN) => CredentialState::SignedIn,
        Some(_) => CredentialState::Key,
    }
}

/// A seed as init is told it.
pub(crate) fn seed_file(seed: &Seed) -> guest::SeedFile {
    guest::SeedFile {
        path: seed.path.clone(),
        format: match seed.format {
            SeedFormat::Json => guest::SeedFormat::Json,
            SeedFormat::Toml => guest::SeedFormat::Toml,
            SeedFormat::Text => guest::SeedFormat::Text,
        },
        action: match seed.action {
            SeedAction::Merge => guest::SeedAction::Merge,
            SeedAction::TakeBack => guest::SeedAction::TakeBack,
        },
        content: seed.content.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_agent_lists_what_there_is() {
        let agents = Agents::built_in();
        let failure = require(&agents, "cluade").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "there is no agent `cluade`; the agents are claude, codex, copilot, docker-agent, gemini, kiro, opencode, shell"
        );
    }

    #[test]
    fn a_key_and_a_sign_in_are_told_apart() {
        let service = |name: &str, found: Option<&str>| NetworkService {
            name: name.to_owned(),
            found: found.map(str::to_owned),
        };
        let found = [
            service("anthropic", Some("secret store (signed in)")),
            service("openai", Some("environment OPENAI_API_KEY")),
            service("google", None),
        ];
        assert_eq!(state(&found, "anthropic"), CredentialState::SignedIn);
        assert_eq!(state(&found, "openai"), CredentialState::Key);
        assert_eq!(state(&found, "google"), CredentialState::Missing);
        assert_eq!(state(&found, "other"), CredentialState::Missing);
    }
}
