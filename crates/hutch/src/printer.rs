//! The only code that writes to standard output and standard error, a session's own bytes aside.
//!
//! Standard output is data that a program may read, standard error is talk. Whatever is printed may hold names that a
//! guest, a repository or another program chose, so control characters are escaped here, once, for everything.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::{Failure, Report};

/// Longest sentence of a guest that is shown.
const GUEST_SENTENCE_MAX: usize = 512;

/// No answer to a question is longer.
const ANSWER_MAX: u64 = 1024;

/// How talkative the command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Talk {
    /// Results, warnings and errors only.
    Quiet,
    /// What a person wants to know.
    #[default]
    Normal,
    /// Also why.
    Debug,
}

/// Where everything is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    talk: Talk,
    colour: bool,
}

impl Printer {
    /// A printer for this process; `colour_allowed` is false with `NO_COLOR`.
    pub(crate) fn new(talk: Talk, colour_allowed: bool) -> Self {
        Self { talk, colour: colour_allowed && io::stderr().is_terminal() }
    }

    /// The same, but silent about what it does.
    pub(crate) fn quiet_if(self, quiet: bool) -> Self {
        if quiet { Self { talk: Talk::Quiet, ..self } } else { self }
    }

    /// How talkative it is.
    pub(crate) fn talk(&self) -> Talk {
        self.talk
    }

    /// Writes one line of data to standard output.
    pub(crate) fn data(&self, line: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", escaped(line))
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Writes text that we made ourselves (help, a table, JSON, a script) to standard output as it is.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Says what happens, unless quiet.
    pub(crate) fn status(&self, line: &str) {
        if self.talk != Talk::Quiet {
            talk_line(&escaped(line));
        }
    }

    /// Says why it happens, with `--debug`.
    pub(crate) fn debug(&self, line: &str) {
        if self.talk == Talk::Debug {
            talk_line(&format!("{}{}", self.label("debug", "2"), escaped(line)));
        }
    }

    /// Says something that a person should act on although we go on.
    pub(crate) fn warning(&self, line: &str) {
        talk_line(&format!("{}{}", self.label("warning", "1;33"), escaped(line)));
    }

    /// Asks a question: no line end, so that the answer stands beside it.
    pub(crate) fn prompt(&self, question: &str) {
        let mut err = io::stderr().lock();
        let _unheard: io::Result<()> =
            write!(err, "{} ", escaped(question)).and_then(|()| err.flush());
    }

    /// Asks, and says whether the answer was yes.
    pub(crate) fn confirmed(&self, question: &str) -> bool {
        self.prompt(question);
        let mut answer = String::new();
        let read = io::Read::take(io::stdin().lock(), ANSWER_MAX).read_line(&mut answer);
        if read.is_err() || !answer.ends_with('\n') || !io::stdin().is_terminal() {
            // The line that no keyboard ended.
            self.status("");
        }
        matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
    }

    /// Says why the command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        match failure.lines() {
            Report::Nothing => {}
            Report::Text(text) => talk_line(&escaped(text.trim_end())),
            Report::Sentence { message, hint } => {
                talk_line(&format!("{}{}", self.label("error", "1;31"), escaped(message)));
                if let Some(hint) = hint {
                    talk_line(&format!("{}{}", self.label("hint", "1;36"), escaped(hint)));
                }
            }
        }
    }

    fn label(&self, word: &str, colour: &str) -> String {
        if self.colour { format!("\u{1b}[{colour}m{word}:\u{1b}[0m ") } else { format!("{word}: ") }
    }
}

fn talk_line(line: &str) {
    // Nobody is left to tell when standard error is closed.
    let _unheard: io::Result<()> = writeln!(io::stderr().lock(), "{line}");
}

/// Shows control and direction-changing characters as escapes, line ends excepted.
pub(crate) fn escaped(text: &str) -> String {
    escape_all_but(text, |character| character == '\n')
}

/// The same for one cell or name: line ends and tabs are escaped too.
pub(crate) fn escaped_line(text: &str) -> String {
    escape_all_but(text, |_| false)
}

/// A sentence that a guest said, made harmless and short.
pub(crate) fn guest_sentence(text: &str) -> String {
    let mut shown: String = text.chars().take(GUEST_SENTENCE_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    escaped_line(&shown)
}

fn escape_all_but(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if keep(character) || !is_dangerous(character) {
            safe.push(character);
        } else if let Ok(byte) = u8::try_from(u32::from(character)) {
            // Infallible: a String can always grow.
            let _: std::fmt::Result = match byte {
                b'\n' => safe.write_str("\\n"),
                b'\t' => safe.write_str("\\t"),
                b'\r' => safe.write_str("\\r"),
                _ => write!(safe, "\\x{byte:02x}"),
            };
        } else {
            let _: std::fmt::Result = write!(safe, "\\u{{{:x}}}", u32::from(character));
        }
    }
    safe
}

/// A value as JSON for [`Printer::text`].
pub(crate) fn json(value: &impl Serialize) -> String {
    // Text and numbers only: nothing in our values can fail to be JSON.
    escaped_json(&serde_json::to_string_pretty(value).unwrap_or_default()) + "\n"
}

/// A value as one line of JSON for [`Printer::text`].
pub(crate) fn json_line(value: &impl Serialize) -> String {
    escaped_json(&serde_json::to_string(value).unwrap_or_default()) + "\n"
}

/// JSON whose strings may hold anything: what is dangerous and what JSON itself does not escape stands in strings only.
fn escaped_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || !is_dangerous(character) {
            safe.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Infallible: a String can always grow.
                let _: std::fmt::Result = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    safe
}

/// Control characters move the cursor; the Unicode ones that reorder or hide text make a name look like another.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(escaped("a\u{1b}[2Jb"), "a\\x1b[2Jb");
        assert_eq!(escaped("two\nlines"), "two\nlines");
        assert_eq!(escaped_line("two\nlines\t\r"), "two\\nlines\\t\\r");
        assert_eq!(escaped("\u{9b}31m"), "\\x9b31m");
        assert_eq!(escaped("txt.\u{202e}exe"), "txt.\\u{202e}exe");
        assert_eq!(escaped("päth 名"), "päth 名");
    }

    #[test]
    fn a_long_guest_sentence_is_cut() {
        let shown = guest_sentence(&"x".repeat(10_000));
        assert_eq!(shown.chars().count(), GUEST_SENTENCE_MAX + 1);
        assert!(shown.ends_with('…'));
        assert_eq!(guest_sentence("short"), "short");
    }

    #[test]
    fn labels_have_no_colour_where_it_is_not_wanted() {
        let printer = Printer { talk: Talk::Normal, colour: false };
        assert_eq!(printer.label("error", "1;31"), "error: ");
        let printer = Printer { talk: Talk::Normal, colour: true };
        assert_eq!(printer.label("error", "1;31"), "\u{1b}[1;31merror:\u{1b}[0m ");
    }

    #[test]
    fn json_is_the_same_value_and_moves_no_cursor() {
        let value = ["a\u{1b}[2J", "\u{9b}31m", "txt.\u{202e}exe", "\u{7f}", "päth 名 🦀"];
        let shown = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.contains(|c| c != '\n' && is_dangerous(c)), "{shown:?}");
        assert!(shown.contains("päth 名 🦀"), "{shown:?}");
        assert_eq!(serde_json::from_str::<[String; 5]>(&shown).unwrap(), value);
    }

    proptest! {
        #[test]
        fn nothing_that_moves_a_cursor_passes(text in ".*") {
            prop_assert!(!escaped_line(&text).chars().any(char::is_control));
        }
    }
}
