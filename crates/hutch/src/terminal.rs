//! The terminal that we are on: its size, and raw mode that always ends.
//!
//! In raw mode every key belongs to the session. The former state is kept in one place of the process and put back by
//! whoever comes first: the guard when it goes away (also while a panic unwinds), or the panic hook, so that a message is
//! readable. Signals that would end us are turned into an ordinary end by the session, so they pass the guard too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use hutch_wire::guest::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal without a size, such as a serial line, is taken to be this large.
const SIZE_UNKNOWN: WindowSize = WindowSize { rows: 24, columns: 80 };

static FORMER: Mutex<Option<Former>> = Mutex::new(None);
static HOOK: Once = Once::new();

struct Former {
    terminal: OwnedFd,
    termios: Termios,
}

/// Raw mode, as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches the terminal to raw mode. There is one such terminal in a process.
    pub(crate) fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        HOOK.call_once(restore_before_a_panic_is_told);
        let terminal = terminal.try_clone_to_owned()?;
        let termios = tcgetattr(&terminal)?;
        apply_raw(&terminal, &termios)?;
        *FORMER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Former { terminal, termios });
        Ok(Self(()))
    }

    /// Switches to raw mode again: a shell that continues us has put its own mode in between.
    pub(crate) fn again(&self) {
        if let Some(former) = &*FORMER.lock().unwrap_or_else(PoisonError::into_inner) {
            // The next key shows it if it did not work; there is nothing better to do.
            let _unheard: io::Result<()> = apply_raw(&former.terminal, &former.termios);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts a terminal's mode back when it goes away: for a program that changes it and may be ended in the middle.
#[derive(Debug)]
pub(crate) struct ModeKept {
    terminal: OwnedFd,
    termios: Termios,
}

impl ModeKept {
    /// Remembers the mode; nothing where it is no terminal.
    pub(crate) fn of(terminal: BorrowedFd<'_>) -> Option<Self> {
        let termios = tcgetattr(terminal).ok()?;
        Some(Self { terminal: terminal.try_clone_to_owned().ok()?, termios })
    }
}

impl Drop for ModeKept {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _: rustix::io::Result<()> =
            tcsetattr(&self.terminal, OptionalActions::Now, &self.termios);
    }
}

fn apply_raw(terminal: &OwnedFd, termios: &Termios) -> io::Result<()> {
    let mut raw = termios.clone();
    raw.make_raw();
    Ok(tcsetattr(terminal, OptionalActions::Now, &raw)?)
}

fn restore() {
    let former = FORMER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Former { terminal, termios }) = former {
        // A terminal that is gone needs no restoring.
        let _: rustix::io::Result<()> = tcsetattr(&terminal, OptionalActions::Now, &termios);
    }
}

fn restore_before_a_panic_is_told() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        tell(panic);
    }));
}

/// Says whether it is a terminal.
pub(crate) fn is_terminal(stream: impl AsFd) -> bool {
    isatty(stream)
}

/// The size of the first of these streams that is a terminal.
pub(crate) fn size<'fd>(streams: impl IntoIterator<Item = BorrowedFd<'fd>>) -> WindowSize {
    streams
        .into_iter()
        .find_map(|stream| tcgetwinsize(stream).ok())
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or(SIZE_UNKNOWN, |size| WindowSize { rows: size.ws_row, columns: size.ws_col })
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, OutputModes, Winsize, tcsetwinsize};

    use super::*;

    /// The two ends of a new terminal.
    fn open() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags).unwrap();
        grantpt(&outer).unwrap();
        unlockpt(&outer).unwrap();
        let inner = ioctl_tiocgptpeer(&outer, flags).unwrap();
        (outer, inner)
    }

    fn is_raw(terminal: &OwnedFd) -> bool {
        let termios = tcgetattr(terminal).unwrap();
        !termios.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !termios.output_modes.contains(OutputModes::OPOST)
    }

    // One test, because there is one raw terminal in a process and some runners run tests in one.
    #[test]
    fn raw_mode_ends_with_its_guard_and_before_a_panic_is_told() {
        let (_outer, inner) = open();
        let before = format!("{:?}", tcgetattr(&inner).unwrap());
        let raw = RawMode::enter(inner.as_fd()).unwrap();
        assert!(is_raw(&inner));
        drop(raw);
        assert!(!is_raw(&inner));
        assert_eq!(format!("{:?}", tcgetattr(&inner).unwrap()), before);

        // A shell changes the mode while we are stopped.
        let raw = RawMode::enter(inner.as_fd()).unwrap();
        let mut cooked = tcgetattr(&inner).unwrap();
        cooked.local_modes |= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(&inner, OptionalActions::Now, &cooked).unwrap();
        raw.again();
        assert!(is_raw(&inner));
        drop(raw);

        let panicked = std::panic::catch_unwind(|| {
            let _raw = RawMode::enter(inner.as_fd()).unwrap();
            assert!(is_raw(&inner));
            panic!("as it must");
        });
        assert!(panicked.is_err());
        assert!(!is_raw(&inner));
        // Another thread that panics leaves a readable terminal too.
        let raw = RawMode::enter(inner.as_fd()).unwrap();
        let other = std::thread::spawn(|| panic!("as it must"));
        assert!(other.join().is_err());
        assert!(!is_raw(&inner));
        drop(raw);
    }

    #[test]
    fn a_mode_that_another_program_left_is_put_back() {
        let (_outer, inner) = open();
        let before = format!("{:?}", tcgetattr(&inner).unwrap());
        let kept = ModeKept::of(inner.as_fd()).unwrap();
        let mut silent = tcgetattr(&inner).unwrap();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&inner, OptionalActions::Now, &silent).unwrap();
        assert_ne!(format!("{:?}", tcgetattr(&inner).unwrap()), before);
        drop(kept);
        assert_eq!(format!("{:?}", tcgetattr(&inner).unwrap()), before);
        assert!(ModeKept::of(std::fs::File::open("/dev/null").unwrap().as_fd()).is_none());
    }

    #[test]
    fn the_size_is_that_of_the_terminal_or_a_usual_one() {
        let (_outer, inner) = open();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(size([file.as_fd()]), SIZE_UNKNOWN);
        assert_eq!(size([inner.as_fd()]), SIZE_UNKNOWN);
        let winsize = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&inner, winsize).unwrap();
        assert_eq!(size([file.as_fd(), inner.as_fd()]), WindowSize { rows: 33, columns: 101 });
        assert!(is_terminal(&inner) && !is_terminal(&file));
    }

    #[test]
    fn what_is_no_terminal_cannot_be_raw() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(RawMode::enter(file.as_fd()).is_err());
    }
}
