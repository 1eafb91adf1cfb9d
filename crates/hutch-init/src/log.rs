//! Init's own log: lines kept until the host opens the log stream, then sent as they come.
//!
//! Everyone in init writes here. Warnings also go to the kernel's log, and by it to the serial console; nothing else
//! does, because an emulated serial port is slow. Memory is bounded: a host that does not read loses the oldest lines.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::clock;

/// Bytes of lines that are kept for a host that does not read.
const KEPT_BYTES: usize = 64 * 1024;
/// A longer line is cut: parts of it may come from the guest.
const LINE_MAX: usize = 1024;
/// Kernel log level "error": the lowest that a console shows when the kernel boots with `quiet`.
const KERNEL_LEVEL: &str = "<3>";

static LINES: Mutex<Lines> = Mutex::new(Lines::new(KEPT_BYTES));
static MORE: Notify = Notify::const_new();

/// Says that a state changed.
pub fn info(message: impl Display) {
    add("", &message);
}

/// Says that something failed and we went on.
pub fn warn(message: impl Display) {
    let line = add("warning: ", &message);
    to_kernel(&line);
}

/// Says that init cannot go on.
pub(crate) fn fatal(message: impl Display) {
    let line = add("fatal: ", &message);
    to_kernel(&line);
}

/// Sends every line, kept and coming, until the writer fails.
pub(crate) async fn follow<W: AsyncWrite + Unpin>(writer: &mut W) -> std::io::Result<()> {
    loop {
        // Asked for before looking, so that a line added in between wakes us.
        let more = MORE.notified();
        let taken = LINES.lock().unwrap_or_else(PoisonError::into_inner).take();
        if taken.is_empty() {
            more.await;
        } else {
            writer.write_all(&taken).await?;
            writer.flush().await?;
        }
    }
}

fn add(kind: &str, message: &dyn Display) -> String {
    let up = clock::since_boot();
    let text = one_line(&message.to_string());
    let line = format!("[{:>5}.{:03}] {kind}{text}\n", up.as_secs(), up.subsec_millis());
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
    MORE.notify_waiters();
    line
}

fn to_kernel(line: &str) {
    // Nothing can be done about a kernel log that does not take it.
    if let Ok(mut kernel) = OpenOptions::new().write(true).open("/dev/kmsg") {
        kernel.write_all(format!("{KERNEL_LEVEL}hutch-init: {line}").as_bytes()).ok();
    }
}

/// Without control characters, so that no text of the guest looks like another line or drives a terminal.
fn one_line(message: &str) -> String {
    let mut line: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_MAX).collect();
    line.truncate(line.trim_end().len());
    line
}

#[derive(Debug)]
struct Lines {
    kept: VecDeque<String>,
    bytes: usize,
    max: usize,
    lost: usize,
}

impl Lines {
    const fn new(max: usize) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, max, lost: 0 }
    }

    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.kept.push_back(line);
        while self.bytes > self.max {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.len();
            self.lost += 1;
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.bytes);
        if self.lost > 0 {
            text.extend_from_slice(format!("({} lines lost)\n", self.lost).as_bytes());
        }
        for line in self.kept.drain(..) {
            text.extend_from_slice(line.as_bytes());
        }
        self.bytes = 0;
        self.lost = 0;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_lines_make_room_and_are_counted() {
        let mut lines = Lines::new(10);
        lines.push("aaaa\n".to_owned());
        lines.push("bbbb\n".to_owned());
        lines.push("cccc\n".to_owned());
        assert_eq!(lines.take(), b"(1 lines lost)\nbbbb\ncccc\n");
        assert_eq!(lines.take(), b"");
    }

    #[test]
    fn a_line_larger_than_the_bound_is_not_kept() {
        let mut lines = Lines::new(3);
        lines.push("aaaa\n".to_owned());
        assert_eq!(lines.take(), b"(1 lines lost)\n");
    }

    #[test]
    fn text_of_the_guest_cannot_start_a_line_or_drive_a_terminal() {
        assert_eq!(one_line("a\n[0.0] b\u{1b}[2J\n"), "a [0.0] b [2J");
        assert_eq!(one_line(&"x".repeat(5000)).len(), LINE_MAX);
    }

    #[tokio::test]
    async fn follow_sends_what_was_kept_and_what_comes() {
        use tokio::io::AsyncReadExt as _;
        let (mut ours, mut host) = tokio::io::duplex(256);
        info("kept before anyone reads");
        let task = tokio::spawn(async move { follow(&mut ours).await });
        let mut seen = String::new();
        let mut buffer = [0; 64];
        while !seen.contains("kept before anyone reads") {
            let count = host.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        info("added later");
        while !seen.contains("added later") {
            let count = host.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        drop(host);
        info("nobody reads this");
        assert!(task.await.unwrap().is_err());
    }
}
