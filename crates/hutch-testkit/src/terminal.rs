//! A program in a pseudo-terminal, driven by keys and judged by the screen that a person would see.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::account::Account;
use crate::traces::signal_process;

/// How long an expectation waits for the screen unless a longer time is given.
const LIMIT: Duration = Duration::from_secs(60);

/// A program in a terminal; dropping it ends the program.
pub struct Terminal {
    line: String,
    child: Child,
    master: File,
    screen: Arc<Shared>,
}

/// What the reading thread shares with the test.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    parser: vt100::Parser,
    /// Everything that was ever written, for a test that fails.
    transcript: Vec<u8>,
    closed: bool,
}

impl Terminal {
    /// Runs `command` on a new terminal as the leader of a session of its own.
    #[track_caller]
    pub(crate) fn start(
        command: &Command,
        account: Account,
        line: String,
        rows: u16,
        columns: u16,
    ) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal can be made");
        grantpt(&master).expect("it can be granted");
        unlockpt(&master).expect("it can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let name = PathBuf::from(name.into_string().expect("it is ASCII"));
        account.give(&name);
        let slave =
            File::options().read(true).write(true).open(&name).expect("the terminal can be opened");
        let master = File::from(master);
        resize(&master, rows, columns);

        let mut leader = hutch_sys::spawn::command("setsid");
        leader.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            if let Some(value) = value {
                leader.env(variable, value);
            }
        }
        leader.env("TERM", "xterm-256color");
        if let Some(directory) = command.get_current_dir() {
            leader.current_dir(directory);
        }
        account.apply(&mut leader);
        let clone = || slave.try_clone().expect("a descriptor can be duplicated");
        leader
            .stdin(Stdio::from(clone()))
            .stdout(Stdio::from(clone()))
            .stderr(Stdio::from(clone()));
        let child = leader.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        drop(slave);

        let screen = Arc::new(Shared {
            state: Mutex::new(State {
                parser: vt100::Parser::new(rows, columns, 0),
                transcript: Vec::new(),
                closed: false,
            }),
            changed: Condvar::new(),
        });
        let reader = master.try_clone().expect("a descriptor can be duplicated");
        let shared = Arc::clone(&screen);
        thread::spawn(move || shared.read(reader));
        Self { line, child, master, screen }
    }

    /// Types these bytes.
    #[track_caller]
    pub fn types(&mut self, keys: impl AsRef<[u8]>) {
        self.master.write_all(keys.as_ref()).expect("the terminal takes keys");
    }

    /// Waits until the screen contains `text`.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(&format!("it shows `{text}`"), LIMIT, |screen| screen.contents().contains(text));
    }

    /// Waits until the screen satisfies `condition`.
    #[track_caller]
    pub fn until(&self, what: &str, limit: Duration, condition: impl Fn(&vt100::Screen) -> bool) {
        let start = Instant::now();
        let mut state = self.screen.lock();
        while !condition(state.parser.screen()) {
            let left = limit.saturating_sub(start.elapsed());
            assert!(
                !left.is_zero() && !state.closed,
                "`{}`: within {limit:?} it did not happen that {what}\n--- screen\n{}\n--- transcript\n{}",
                self.line,
                state.parser.screen().contents(),
                String::from_utf8_lossy(&state.transcript).escape_debug()
            );
            state = match self.screen.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// What the screen contains now.
    #[must_use]
    pub fn contents(&self) -> String {
        self.screen.lock().parser.screen().contents()
    }

    /// Gives the terminal another size; the program gets the signal.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        self.screen.lock().parser.screen_mut().set_size(rows, columns);
        resize(&self.master, rows, columns);
    }

    /// Whether the terminal echoes and edits lines, as a shell leaves it.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.master).expect("a terminal has modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// The process number of the program itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end and expects this exit status.
    #[track_caller]
    pub fn ends_with(&mut self, code: i32) {
        let child = &mut self.child;
        let status = crate::eventually(&format!("`{}` ends", self.line), LIMIT, || {
            child.try_wait().expect("a child can be waited for")
        });
        assert_eq!(status.code(), Some(code), "`{}`\n--- screen\n{}", self.line, self.contents());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal_process(self.child.id(), Signal::KILL);
            drop(self.child.wait());
        }
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal")
            .field("line", &self.line)
            .field("screen", &self.contents())
            .finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, mut master: File) {
        let mut piece = [0; 4096];
        // The end of the last process on the terminal is an I/O error on this side.
        while let Ok(length @ 1..) = master.read(&mut piece) {
            let mut state = self.lock();
            state.parser.process(&piece[..length]);
            state.transcript.extend_from_slice(&piece[..length]);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[track_caller]
fn resize(master: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("a terminal can be resized");
}

#[cfg(test)]
mod tests {
    use crate::{Account, Invocation};

    #[test]
    fn a_shell_on_a_terminal_has_job_control_and_sees_its_size() {
        let mut terminal = Invocation::new("bash", Account::own())
            .args(["--norc"])
            .variable("PS1", "$?> ")
            .terminal(30, 90);
        terminal.types("stty size\r");
        terminal.shows("30 90");
        terminal.resize(20, 70);
        terminal.types("stty size\r");
        terminal.shows("20 70");
        // Each key waits for what takes it: the child must have the terminal before Ctrl-C, the shell before the last line.
        terminal.types("sh -c 'echo as\"\"leep; exec sleep 100'\r");
        terminal.shows("asleep");
        terminal.types("\x03");
        terminal.shows("130> ");
        terminal.types("exit 4\r");
        terminal.ends_with(4);
    }
}
