//! All agents: those that are built in, and the user's own, which take their place.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, Origin};
use crate::spec::{AgentSpec, is_word};

/// The built-in agents, in the order of the help text.
const BUILT_IN: [(&str, &str); 8] = [
    ("claude", include_str!("builtin/claude.toml")),
    ("codex", include_str!("builtin/codex.toml")),
    ("copilot", include_str!("builtin/copilot.toml")),
    ("docker-agent", include_str!("builtin/docker-agent.toml")),
    ("gemini", include_str!("builtin/gemini.toml")),
    ("kiro", include_str!("builtin/kiro.toml")),
    ("opencode", include_str!("builtin/opencode.toml")),
    ("shell", include_str!("builtin/shell.toml")),
];
/// Not an agent: what a build runs in, with nobody's credentials.
const BUILDER: (&str, &str) = ("build", include_str!("builtin/build.toml"));
/// No agent's file is longer.
const FILE_MAX: u64 = 1 << 20;

/// Why the agents are not known.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// The directory of the user's agents cannot be read.
    #[error("the agents in {} cannot be read", path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An agent's file makes no sense.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong; part of the message because it is the only thing that helps.
        source: ConfigError,
    },
    /// The name of a file is no agent's.
    #[error("{}: an agent's name has lower-case letters, digits and `-`, and begins with a letter", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// Two agents have the same word.
    #[error("{}: the agent `{other}` has the word `{word}` too", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The word.
        word: String,
        /// Whose it is.
        other: String,
    },
}

/// All agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agents {
    all: Vec<AgentSpec>,
}

impl Agents {
    /// Those that are built in.
    pub fn built_in() -> Self {
        Self::of_texts(&BUILT_IN)
    }

    /// What the sandbox of a build is for, alone: it has no credentials, and nobody can ask for it by its word.
    pub fn builder() -> Self {
        Self::of_texts(&[BUILDER])
    }

    fn of_texts(texts: &[(&str, &str)]) -> Self {
        let parse = |(word, text): &(&str, &str)| {
            AgentSpec::parse(word, text, Origin::BuiltIn)
                .expect("the agents in this crate are valid, as a test checks")
        };
        Self { all: texts.iter().map(parse).collect() }
    }

    /// Those that are built in, with the files `NAME.toml` of a directory, which need not be there.
    pub fn with_directory(directory: &Path) -> Result<Self, AgentsError> {
        let mut agents = Self::built_in();
        let failed = |source| AgentsError::Read { path: directory.to_owned(), source };
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(agents);
            }
            Err(error) => return Err(failed(error)),
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            agents.add(&path)?;
        }
        Ok(agents)
    }

    fn add(&mut self, path: &Path) -> Result<(), AgentsError> {
        let word = path.file_stem().and_then(|stem| stem.to_str()).filter(|word| is_word(word));
        let word = word.ok_or_else(|| AgentsError::Name { path: path.to_owned() })?;
        let text = read(path)?;
        let agent = AgentSpec::parse(word, &text, Origin::File(path.to_owned()))
            .map_err(|source| AgentsError::Config { path: path.to_owned(), source })?;
        let place = self.all.iter().position(|other| other.word == word);
        for own in std::iter::once(&agent.word).chain(&agent.aliases) {
            if let Some(other) = self.find(own).filter(|other| other.word != word) {
                let (word, other) = (own.clone(), other.word.clone());
                return Err(AgentsError::Twice { path: path.to_owned(), word, other });
            }
        }
        match place {
            Some(index) => self.all[index] = agent,
            None => self.all.push(agent),
        }
        Ok(())
    }

    /// The agent with this word or alias.
    pub fn find(&self, word: &str) -> Option<&AgentSpec> {
        self.all
            .iter()
            .find(|agent| agent.word == word || agent.aliases.iter().any(|alias| alias == word))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &AgentSpec> {
        self.all.iter()
    }

    /// Every word, for completion and suggestions.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|agent| agent.word.as_str())
    }

    /// The words in one line.
    pub fn list(&self) -> String {
        self.words().collect::<Vec<_>>().join(", ")
    }
}

fn read(path: &Path) -> Result<String, AgentsError> {
    let failed = |source| AgentsError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let read = file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > FILE_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
