//! What a person sees when something fails: what, why, what to do; and the exit code that a script sees.
//!
//! Libraries say what happened; here, and only here, it is decided who can act on it and with what advice.

use std::error::Error;
use std::fmt;
use std::io;

use crate::exit_codes;

/// Who can act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The person who typed the command.
    User,
    /// Whoever cares for this machine.
    Host,
    /// We.
    Bug,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Told {
        blame: Blame,
        message: String,
        hint: Option<String>,
        code: Option<u8>,
    },
    /// Nothing to say: the code is the message.
    Silent {
        code: u8,
    },
    /// Text that clap made, to be printed as it is.
    Usage {
        text: String,
    },
}

impl Failure {
    /// A failure that the person at the keyboard can act on.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::told(Blame::User, message.into())
    }

    /// A failure of the machine.
    pub(crate) fn host(message: impl Into<String>) -> Self {
        Self::told(Blame::Host, message.into())
    }

    /// A failure that should be impossible.
    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::told(Blame::Bug, message.into())
    }

    /// A failure of the machine, said by an error and everything that caused it.
    pub(crate) fn from_error(blame: Blame, error: &dyn Error) -> Self {
        Self::told(blame, chain(error))
    }

    /// The words on the command line do not make sense; `text` is complete.
    pub(crate) fn usage(text: String) -> Self {
        Self { kind: Kind::Usage { text } }
    }

    /// Ends with `code` and without a word.
    pub(crate) fn silent(code: u8) -> Self {
        Self { kind: Kind::Silent { code } }
    }

    /// Writing to standard output failed.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(exit_codes::OUTPUT_CLOSED);
        }
        Self::host(format!("standard output could not be written: {error}"))
    }

    fn told(blame: Blame, message: String) -> Self {
        Self { kind: Kind::Told { blame, message, hint: None, code: None } }
    }

    /// Says what to do about it.
    pub(crate) fn hint(mut self, advice: impl Into<String>) -> Self {
        if let Kind::Told { hint, .. } = &mut self.kind {
            *hint = Some(advice.into());
        }
        self
    }

    /// Says what to do about it, where there is something to say.
    pub(crate) fn hint_if(self, advice: Option<String>) -> Self {
        match advice {
            Some(advice) => self.hint(advice),
            None => self,
        }
    }

    /// Chooses the exit code regardless of the command.
    pub(crate) fn with_code(mut self, chosen: u8) -> Self {
        match &mut self.kind {
            Kind::Told { code, .. } => *code = Some(chosen),
            Kind::Silent { code } => *code = chosen,
            Kind::Usage { .. } => {}
        }
        self
    }

    /// The exit code; `passes_through` says that the command is `run` or `exec`, whose codes belong to what runs inside.
    pub(crate) fn code(&self, passes_through: bool) -> u8 {
        match &self.kind {
            Kind::Silent { code } | Kind::Told { code: Some(code), .. } => *code,
            _ if passes_through => exit_codes::NOT_RUN,
            Kind::Usage { .. } => exit_codes::USAGE,
            Kind::Told { .. } => exit_codes::FAILURE,
        }
    }

    /// The lines for standard error: the message, and a hint where there is one.
    pub(crate) fn lines(&self) -> Report<'_> {
        match &self.kind {
            Kind::Silent { .. } => Report::Nothing,
            Kind::Usage { text } => Report::Text(text),
            Kind::Told { blame, message, hint, .. } => {
                let hint = match (hint, blame) {
                    (Some(hint), _) => Some(hint.as_str()),
                    (None, Blame::Bug) => Some("this is a bug in hutch: please report it"),
                    (None, Blame::User | Blame::Host) => None,
                };
                Report::Sentence { message, hint }
            }
        }
    }
}

/// What there is to print of a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report<'a> {
    /// Nothing.
    Nothing,
    /// Complete text.
    Text(&'a str),
    /// A message for an `error:` line and advice for a `hint:` line.
    Sentence { message: &'a str, hint: Option<&'a str> },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Told { message, .. } => f.write_str(message),
            Kind::Usage { text } => f.write_str(text),
            Kind::Silent { code } => write!(f, "ended with {code}"),
        }
    }
}

/// An error and its causes as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries print their source themselves; once is enough.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the lid is stuck")]
    struct Outer(#[source] io::Error);

    #[test]
    fn an_error_is_told_with_its_causes() {
        let failure = Failure::from_error(Blame::Host, &Outer(io::Error::other("rust")));
        assert_eq!(failure.to_string(), "the lid is stuck: rust");
    }

    #[test]
    fn the_code_says_whether_the_command_inside_ran() {
        assert_eq!(Failure::user("x").code(false), 1);
        assert_eq!(Failure::user("x").code(true), 125);
        assert_eq!(Failure::usage("x".into()).code(false), 2);
        assert_eq!(Failure::usage("x".into()).code(true), 125);
        assert_eq!(Failure::user("x").with_code(127).code(true), 127);
        assert_eq!(Failure::silent(7).code(true), 7);
    }

    #[test]
    fn a_closed_pipe_is_silent_and_a_full_disk_is_not() {
        let closed = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!(closed.lines(), Report::Nothing);
        assert_eq!(closed.code(false), 141);
        let full = Failure::output(&io::ErrorKind::StorageFull.into());
        assert!(matches!(full.lines(), Report::Sentence { .. }));
    }

    #[test]
    fn a_bug_asks_to_be_reported_unless_there_is_better_advice() {
        let bug = Failure::bug("odd");
        assert!(
            matches!(bug.lines(), Report::Sentence { hint: Some(hint), .. } if hint.contains("report"))
        );
        let bug = Failure::bug("odd").hint("run it again");
        assert!(matches!(bug.lines(), Report::Sentence { hint: Some("run it again"), .. }));
    }
}
