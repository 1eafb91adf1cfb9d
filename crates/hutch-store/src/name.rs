//! Names and numbers that can only be built by parsing.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Words that `run` takes as an agent; no new sandbox may be called so.
pub const AGENT_WORDS: &[&str] = &[
    "cagent",
    "claude",
    "codex",
    "copilot",
    "cursor",
    "devin",
    "docker-agent",
    "droid",
    "gemini",
    "kiro",
    "opencode",
    "shell",
];

/// Longest name in bytes: a host name label has room for it.
const NAME_MAX: usize = 63;

/// What a person calls a sandbox: letters, digits and `-_.+`, at most 63 of them, a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

/// Why something is no name for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a sandbox name cannot be empty")]
    Empty,
    /// Too long.
    #[error("a sandbox name has at most {NAME_MAX} characters, this one has {length}")]
    TooLong {
        /// How long it is, in bytes.
        length: usize,
    },
    /// Starts with something else than a letter or digit.
    #[error("a sandbox name starts with a letter or a digit, not with {first:?}")]
    Start {
        /// How it starts.
        first: char,
    },
    /// Has another character in it.
    #[error("a sandbox name has only letters, digits and `-_.+`, not {character:?}")]
    Character {
        /// The first one that is wrong.
        character: char,
    },
    /// `run` could not tell it from an agent.
    #[error("`{word}` is an agent, so a sandbox cannot have this name")]
    Agent {
        /// The word.
        word: String,
    },
}

impl SandboxName {
    /// Parses the name of a sandbox that may exist.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if let Some(character) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character { character });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start { first });
        }
        if text.len() > NAME_MAX {
            return Err(NameError::TooLong { length: text.len() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Parses the name for a new sandbox: also no word of [`AGENT_WORDS`].
    ///
    /// Apart from [`Self::parse`] so that a sandbox is not lost when a later version knows one more agent.
    pub fn parse_new(text: &str) -> Result<Self, NameError> {
        let name = Self::parse(text)?;
        if AGENT_WORDS.contains(&text) {
            return Err(NameError::Agent { word: text.to_owned() });
        }
        Ok(name)
    }

    /// The name a sandbox gets when nobody chose one: `<agent>-<last part of the workspace>`, where runs of characters
    /// that no name can have become one `-`.
    pub fn suggest(agent: &str, workspace: &Path) -> Self {
        let last = workspace.file_name().unwrap_or_else(|| OsStr::new("root")).to_string_lossy();
        let mut text = format!("{agent}-");
        for c in last.chars() {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+') {
                text.push(c);
            } else if !text.ends_with('-') {
                text.push('-');
            }
        }
        text.truncate(NAME_MAX);
        let text = text.trim_end_matches('-');
        Self::parse(text).unwrap_or_else(|_| Self("sandbox".to_owned()))
    }

    /// The same name with `-<number>` at its end, cut so that it fits.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Self {
        let suffix = format!("-{number}");
        let mut text = self.0.clone();
        text.truncate(NAME_MAX - suffix.len());
        Self(text + &suffix)
    }

    /// The name, `-2`, `-3`, …: what to try when a name is taken.
    pub fn and_numbered(self) -> impl Iterator<Item = Self> {
        let numbered = (2..=u32::MAX).map({
            let name = self.clone();
            move |number| name.numbered(number)
        });
        std::iter::once(self).chain(numbered)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a host name: lower case, only letters, digits and `-`, none of those at an end.
    pub fn hostname(&self) -> String {
        let text: String = self
            .0
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        text.trim_matches('-').to_owned()
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SandboxName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> Self {
        name.0
    }
}

impl AsRef<OsStr> for SandboxName {
    fn as_ref(&self) -> &OsStr {
        self.0.as_ref()
    }
}

/// A sandbox's number: twelve lower-case hexadecimal digits, random, never reused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// Something that is no sandbox number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox id has twelve lower-case hexadecimal digits")]
pub struct IdError;

impl SandboxId {
    /// Parses one.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if is_lower_hex(text, 12) { Ok(Self(text.to_owned())) } else { Err(IdError) }
    }

    /// A new one.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        Ok(Self(random_hex::<6>()?))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// Says whether the text is so many lower-case hexadecimal digits.
pub(crate) fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Random digits, two a byte.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}
