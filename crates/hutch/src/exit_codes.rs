//! Every exit code of the command, in one place.
//!
//! `run` and `exec` pass the code of the command in the sandbox through (128 + the number of the signal that ended it), so
//! what goes wrong before that command runs has a code of its own there: [`NOT_RUN`].

/// It worked.
pub(crate) const SUCCESS: u8 = 0;
/// A command other than `run` and `exec` failed, or was declined at its prompt.
pub(crate) const FAILURE: u8 = 1;
/// The words on the command line, other than those of `run` and `exec`, do not make sense.
pub(crate) const USAGE: u8 = 2;
/// `network check`: the connection would be denied.
pub(crate) const DENIED: u8 = 1;
/// `network check`: whether it would be cannot be said.
pub(crate) const UNCHECKED: u8 = 2;
/// `run` and `exec`: Hutch failed before, or instead of, running the command; `docker run` and `docker exec` do the same.
pub(crate) const NOT_RUN: u8 = 125;
/// `run` and `exec`: the command was found but cannot be run, as shells do.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// `run` and `exec`: there is no such command in the sandbox, as shells do.
pub(crate) const NOT_FOUND: u8 = 127;
/// Added to a signal's number: the command, or Hutch itself while it creates something, was ended by that signal.
pub(crate) const SIGNAL_BASE: u8 = 128;
/// Whoever read our standard output went away: as if by SIGPIPE, silently.
pub(crate) const OUTPUT_CLOSED: u8 = SIGNAL_BASE + 13;

/// The code for something ended by a signal.
pub(crate) fn of_signal(signal: u8) -> u8 {
    SIGNAL_BASE.saturating_add(signal.min(127))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_follow_the_convention_of_shells_and_never_overflow() {
        assert_eq!(of_signal(9), 137);
        assert_eq!(of_signal(15), 143);
        assert_eq!(of_signal(255), 255);
    }
}
