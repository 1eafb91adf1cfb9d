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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_are_taken() {
        for text in ["a", "A9", "shell-x", "0", "a.b_c+d", &"x".repeat(63)] {
            assert_eq!(SandboxName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let error = |text: &str| SandboxName::parse(text).unwrap_err();
        assert_eq!(error(""), NameError::Empty);
        assert_eq!(error("a b"), NameError::Character { character: ' ' });
        assert_eq!(error("a/b"), NameError::Character { character: '/' });
        assert_eq!(error("ä"), NameError::Character { character: 'ä' });
        assert_eq!(error("a\n"), NameError::Character { character: '\n' });
        for first in ["-", ".", "..", "+", "_"] {
            assert!(matches!(error(first), NameError::Start { .. }), "{first}");
        }
        assert_eq!(error(&"x".repeat(64)), NameError::TooLong { length: 64 });
    }

    #[test]
    fn agents_are_names_only_of_sandboxes_that_exist() {
        for word in AGENT_WORDS {
            assert!(matches!(SandboxName::parse_new(word), Err(NameError::Agent { .. })));
            SandboxName::parse(word).unwrap();
        }
        SandboxName::parse_new("shell-1").unwrap();
    }

    #[test]
    fn suggestions_are_readable() {
        let suggest =
            |path: &str| SandboxName::suggest("shell", Path::new(path)).as_str().to_owned();
        assert_eq!(suggest("/home/u/my-project"), "shell-my-project");
        assert_eq!(suggest("/home/u/my  project (1)"), "shell-my-project-1");
        assert_eq!(suggest("/"), "shell-root");
        assert_eq!(suggest("/home/ü"), "shell");
        assert_eq!(suggest("/.hidden"), "shell-.hidden");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_takes_only_what_the_rule_says(text in ".{0,80}") {
            let ok = !text.is_empty()
                && text.len() <= 63
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
                && text.starts_with(|c: char| c.is_ascii_alphanumeric());
            prop_assert_eq!(SandboxName::parse(&text).is_ok(), ok);
        }

        #[test]
        fn suggestions_and_numbers_are_names(last in "[^/\0]{1,200}", number in any::<u32>()) {
            let name = SandboxName::suggest("shell", &Path::new("/x").join(last));
            prop_assert!(SandboxName::parse(name.as_str()).is_ok());
            let numbered = name.numbered(number);
            prop_assert!(SandboxName::parse(numbered.as_str()).is_ok());
            prop_assert!(numbered.as_str().ends_with(&number.to_string()));
        }

        #[test]
        fn host_names_are_valid(text in "[A-Za-z0-9][-_.+A-Za-z0-9]{0,62}") {
            let hostname = SandboxName::parse(&text).unwrap().hostname();
            prop_assert!(!hostname.is_empty() && hostname.len() <= 63);
            prop_assert!(!hostname.starts_with('-') && !hostname.ends_with('-'));
            prop_assert!(hostname.chars().all(|c| c == '-' || c.is_ascii_digit() || c.is_ascii_lowercase()));
        }

        #[test]
        fn ids_are_twelve_digits(text in "[0-9a-fA-F]{10,14}") {
            let ok = text.len() == 12 && !text.contains(|c: char| c.is_ascii_uppercase());
            prop_assert_eq!(SandboxId::parse(&text).is_ok(), ok);
        }
    }
}
