//! A program that answers line by line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::traces::signal_process;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A running program whose standard input and output are ours. Dropping it ends the program.
#[derive(Debug)]
pub struct Conversation {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    complaints: Option<thread::JoinHandle<String>>,
}

impl Conversation {
    #[track_caller]
    pub(crate) fn start(mut command: Command, line: String) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let (sender, answers) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for answer in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(answer).is_err() {
                        return;
                    }
                }
            });
        }
        let complaints = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = Vec::new();
                drop(stderr.read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let stdin = child.stdin.take();
        Self { line, child, stdin, answers, complaints }
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a line.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the conversation goes on");
        if stdin.write_all(format!("{line}\n").as_bytes()).is_err() {
            self.broken("it does not listen");
        }
    }

    /// Waits for the next line of the answer.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => answer,
            Err(_) => self.broken("it does not answer"),
        }
    }

    /// Says a line and gives the line that it is answered with.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Ends its input and expects that it ends well.
    #[track_caller]
    pub fn end(mut self) {
        drop(self.stdin.take());
        let child = &mut self.child;
        let status = crate::eventually(&format!("`{}` ends", self.line), LIMIT, || {
            child.try_wait().expect("a child can be waited for")
        });
        if !status.success() {
            self.broken(&format!("it ended with {status}"));
        }
    }

    #[track_caller]
    fn broken(&mut self, what: &str) -> ! {
        signal_process(self.child.id(), Signal::KILL);
        let complaints =
            self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        panic!("`{}`: {what}\n--- stderr\n{complaints}", self.line);
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal_process(self.child.id(), Signal::KILL);
            drop(self.child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Account, Invocation};

    #[test]
    fn lines_go_both_ways() {
        let mut echo = Invocation::new("sed", Account::own()).args(["-u", "s/^/got /"]).converse();
        assert_eq!(echo.ask("one"), "got one");
        assert_eq!(echo.ask("two"), "got two");
        echo.end();
    }

    #[test]
    #[should_panic(expected = "it ended with")]
    fn a_bad_end_is_noticed() {
        Invocation::new("sh", Account::own()).args(["-c", "read line; exit 3"]).converse().end();
    }
}
