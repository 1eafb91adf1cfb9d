//! The agents by the word that people type, and the command line each one is started with.

use crate::failure::Failure;
use crate::nearest::nearest;

/// An AI program, or a plain shell, that `run` starts in a sandbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    /// What people type.
    pub(crate) word: &'static str,
    /// An older word for the same.
    alias: Option<&'static str>,
    /// What is started; the words after `--` follow it.
    pub(crate) command: &'static [&'static str],
    /// Name of its own template.
    pub(crate) template: &'static str,
    /// One line about it.
    about: &'static str,
    /// Whether this version can run it.
    runs: bool,
}

/// All agents, in the order of the help text.
pub(crate) const AGENTS: &[Agent] = &[
    Agent {
        word: "claude",
        alias: None,
        command: &["claude", "--dangerously-skip-permissions"],
        template: "claude-code",
        about: "Claude Code",
        runs: false,
    },
    Agent {
        word: "codex",
        alias: None,
        command: &["codex", "--dangerously-bypass-approvals-and-sandbox"],
        template: "codex",
        about: "OpenAI Codex",
        runs: false,
    },
    Agent {
        word: "copilot",
        alias: None,
        command: &["copilot", "--yolo"],
        template: "copilot",
        about: "GitHub Copilot",
        runs: false,
    },
    Agent {
        word: "docker-agent",
        alias: Some("cagent"),
        command: &["docker-agent", "run", "--yolo"],
        template: "docker-agent",
        about: "Docker Agent",
        runs: false,
    },
    Agent {
        word: "gemini",
        alias: None,
        command: &["gemini", "--yolo"],
        template: "gemini",
        about: "Gemini CLI",
        runs: false,
    },
    Agent {
        word: "kiro",
        alias: None,
        command: &["kiro", "chat", "--trust-all-tools"],
        template: "kiro",
        about: "Kiro",
        runs: false,
    },
    Agent {
        word: "opencode",
        alias: None,
        command: &["opencode"],
        template: "opencode",
        about: "OpenCode",
        runs: false,
    },
    Agent {
        word: "shell",
        alias: None,
        command: &["bash", "-l"],
        template: "shell",
        about: "A login shell, without an agent",
        runs: true,
    },
];

/// The agent with this word, old words included.
pub(crate) fn find(word: &str) -> Option<&'static Agent> {
    AGENTS.iter().find(|agent| agent.word == word || agent.alias == Some(word))
}

/// The agent with this word, or a failure that lists what there is.
pub(crate) fn require(word: &str) -> Result<&'static Agent, Failure> {
    find(word).ok_or_else(|| {
        let meant = nearest(word, words()).map(|near| format!("did you mean `{near}`?"));
        Failure::user(format!("there is no agent `{word}`; the agents are {}", list()))
            .hint_if(meant)
    })
}

/// Every word, for completion and suggestions.
pub(crate) fn words<'a>() -> impl Iterator<Item = &'a str> {
    AGENTS.iter().map(|agent| agent.word)
}

/// The agents in one line.
pub(crate) fn list() -> String {
    words().collect::<Vec<_>>().join(", ")
}

/// The agents as lines of a help text.
pub(crate) fn help() -> String {
    let mut text = String::from("Agents:");
    for agent in AGENTS {
        let later = if agent.runs { "" } else { " (not in this version)" };
        text.push_str(&["\n  ", &format!("{:<13}", agent.word), " ", agent.about, later].concat());
    }
    text
}

impl Agent {
    /// Fails when this version cannot run it.
    pub(crate) fn require_runnable(&self) -> Result<(), Failure> {
        if self.runs {
            return Ok(());
        }
        Err(Failure::user(format!(
            "this version of hutch cannot run the agent `{}` yet",
            self.word
        ))
        .hint("the agent `shell` gives a shell in a sandbox"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_there_once_and_an_old_word_finds_its_agent() {
        let mut all: Vec<_> = words().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
        assert_eq!(find("cagent"), find("docker-agent"));
        assert_eq!(find("shell").map(|agent| agent.command), Some(["bash", "-l"].as_slice()));
    }

    #[test]
    fn an_unknown_agent_lists_what_there_is() {
        let failure = require("cluade").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "there is no agent `cluade`; the agents are claude, codex, copilot, docker-agent, gemini, kiro, opencode, shell"
        );
    }

    #[test]
    fn only_the_shell_runs() {
        assert!(find("shell").unwrap().require_runnable().is_ok());
        assert!(find("claude").unwrap().require_runnable().is_err());
    }
}
