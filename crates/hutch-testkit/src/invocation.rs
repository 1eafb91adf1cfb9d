//! One run of a program under test.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::account::Account;
use crate::conversation::Conversation;
use crate::terminal::Terminal;
use crate::traces::signal_process;

/// How long a run may take unless the test says otherwise. An emulated machine boots in seconds, also a busy one.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long output may stay open after the program has ended: whoever holds it was left behind.
const OUTPUT_GRACE: Duration = Duration::from_secs(3);

/// A program about to be run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    account: Account,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Invocation {
    /// `program` as `account`, with an empty environment and nothing on standard input.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>, account: Account) -> Self {
        let mut command = hutch_sys::spawn::command(program);
        account.apply(&mut command);
        Self { command, account, stdin: None, limit: LIMIT }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Gives it these bytes on standard input, then the end of file.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Lets it take this long.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        let limit = self.limit;
        self.start().wait(limit)
    }

    /// Starts it and returns at once.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let line = self.line();
        let input = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            // A program that does not read its input is not our failure.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Running::new(child, line)
    }

    /// Starts it with its standard input, output and error being a terminal of this size.
    #[track_caller]
    pub fn terminal(self, rows: u16, columns: u16) -> Terminal {
        let line = self.line();
        Terminal::start(&self.command, self.account, line, rows, columns)
    }

    /// Starts it to talk with it line by line.
    #[track_caller]
    pub fn converse(self) -> Conversation {
        let line = self.line();
        Conversation::start(self.command, line)
    }

    fn line(&self) -> String {
        let program = Path::new(self.command.get_program());
        let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for argument in self.command.get_args() {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    line: String,
    started: Instant,
    ended: Receiver<ExitStatus>,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

impl Running {
    fn new(mut child: Child, line: String) -> Self {
        let pid = child.id();
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let (sender, ended) = channel();
        thread::spawn(move || {
            if let Ok(status) = child.wait() {
                let _unheard = sender.send(status);
            }
        });
        Self { pid, line, started: Instant::now(), ended, stdout, stderr }
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid, signal);
    }

    /// Waits for its end and its whole output; panics after `limit`.
    #[track_caller]
    pub fn wait(self, limit: Duration) -> Outcome {
        let status = match self.ended.recv_timeout(limit) {
            Ok(status) => status,
            Err(RecvTimeoutError::Timeout) => {
                self.signal(Signal::KILL);
                let stdout = gather(&self.stdout, Duration::from_secs(1)).0;
                let stderr = gather(&self.stderr, Duration::from_secs(1)).0;
                panic!(
                    "`{}` did not end within {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.line,
                    String::from_utf8_lossy(&stdout),
                    String::from_utf8_lossy(&stderr)
                );
            }
            Err(RecvTimeoutError::Disconnected) => panic!("`{}` cannot be waited for", self.line),
        };
        let took = self.started.elapsed();
        let (stdout, stdout_closed) = gather(&self.stdout, OUTPUT_GRACE);
        let (stderr, stderr_closed) = gather(&self.stderr, OUTPUT_GRACE);
        assert!(
            stdout_closed && stderr_closed,
            "`{}` ended, but something it left behind holds its output open",
            self.line
        );
        Outcome { line: self.line, status, stdout, stderr, took }
    }
}

/// Reads to the end on a thread of its own; each piece is sent on.
fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if let Some(stream) = stream {
        thread::spawn(move || pump(stream, &sender));
    }
    receiver
}

fn pump(mut stream: impl Read, sender: &Sender<Vec<u8>>) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        if sender.send(piece[..length].to_vec()).is_err() {
            return;
        }
    }
}

/// Everything up to the end of the stream, and whether the end came within `grace`.
fn gather(stream: &Receiver<Vec<u8>>, grace: Duration) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match stream.recv_timeout(grace) {
            Ok(piece) => bytes.extend(piece),
            Err(RecvTimeoutError::Disconnected) => return (bytes, true),
            Err(RecvTimeoutError::Timeout) => return (bytes, false),
        }
    }
}

/// How a run ended.
pub struct Outcome {
    line: String,
    /// The status of the process.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub took: Duration,
}

impl Outcome {
    /// Expects exit status 0.
    #[track_caller]
    pub fn success(self) -> Self {
        self.code(0)
    }

    /// Expects this exit status.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit status of {self:?}");
        self
    }

    /// Expects an exit status that is not 0, and no signal.
    #[track_caller]
    pub fn failure(self) -> Self {
        assert!(matches!(self.status.code(), Some(1..)), "a failure of {self:?}");
        self
    }

    /// Standard output as text, without the last line end.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> String {
        let text =
            String::from_utf8(self.stdout.clone()).unwrap_or_else(|_| panic!("text from {self:?}"));
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }

    /// Standard output as lines.
    #[track_caller]
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Standard error as text.
    #[must_use]
    pub fn talk(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Expects exactly this on standard output, the last line end aside.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert_eq!(self.text(), text, "standard output of {self:?}");
        self
    }

    /// Expects that standard error contains this.
    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.talk().contains(text), "`{text}` on standard error of {self:?}");
        self
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        };
        write!(f, "`{}` ({end}, {:?})", self.line, self.took)?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let text = String::from_utf8_lossy(bytes);
            let cut = text.char_indices().nth(20_000).map_or(text.len(), |(at, _)| at);
            write!(f, "\n--- {name}, {} bytes\n{}", bytes.len(), &text[..cut])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Invocation {
        Invocation::new("sh", Account::own()).args(["-c", script])
    }

    #[test]
    fn streams_and_status_are_kept_apart() {
        let outcome =
            shell("echo out; echo err >&2; exit 7").run().code(7).says("out").complains("err");
        assert_eq!(outcome.stderr, b"err\n");
        assert_eq!(shell("cat").stdin("x\0y").run().success().stdout, b"x\0y");
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_run_that_hangs_is_killed() {
        drop(
            shell("echo before; exec cat /dev/zero >/dev/null")
                .limit(Duration::from_millis(100))
                .run(),
        );
    }

    #[test]
    #[should_panic(expected = "holds its output open")]
    fn a_process_left_behind_is_noticed() {
        drop(shell("sleep 4 & exit 0").run());
    }
}
