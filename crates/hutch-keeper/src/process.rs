//! What the workspace worker and the proxy have in common: a process whose end and whose words matter.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::log::{BoundedLog, guest_text};

/// Has a thread wait for the end of a process: the runtime cannot wait for a descriptor of one without `unsafe`.
pub(crate) fn watch_end(name: &str, process: OwnedFd) -> io::Result<watch::Receiver<bool>> {
    let (tell, ended) = watch::channel(false);
    let wait = move || {
        // Any other error would come again at once, and forever.
        while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(Errno::INTR) {}
        tell.send_replace(true);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(wait)?;
    Ok(ended)
}

/// What is known about the end of a worker.
#[derive(Debug)]
pub(crate) struct End {
    /// Becomes true when the process has ended.
    ended: watch::Receiver<bool>,
    log: ProcessLog,
    how: Option<String>,
}

impl End {
    pub(crate) fn new(ended: watch::Receiver<bool>, log: ProcessLog) -> Self {
        Self { ended, log, how: None }
    }

    /// Waits until the process has ended, and says how in one sentence; `status` takes its status then. Cancel safe.
    pub(crate) async fn wait<E: std::error::Error>(
        &mut self,
        status: impl FnOnce() -> Result<Option<ExitStatus>, E>,
    ) -> String {
        if let Some(how) = &self.how {
            return how.clone();
        }
        // The watching thread cannot end before it has told.
        let _told = self.ended.wait_for(|ended| *ended).await.is_ok();
        // Before the status is taken: a caller that gives up here finds it again.
        let last = self.log.last_error().await;
        let how = match status() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it closed its process".to_owned(),
            Err(error) => error.to_string(),
        };
        let how = match last {
            Some(error) => format!("{how}: {error}"),
            None => how,
        };
        self.how.insert(how).clone()
    }
}

/// What a worker says, written to a log that stops growing: some of it is the guest's doing.
#[derive(Debug)]
pub(crate) struct ProcessLog {
    /// The last line about an error; closed when the worker has ended.
    error: watch::Receiver<Option<String>>,
}

impl ProcessLog {
    /// Starts copying; what is written to the file goes to the log at `path`.
    pub(crate) fn start(path: &Path) -> io::Result<(Self, File)> {
        let mut log = BoundedLog::open(path)?;
        let (reader, writer) = io::pipe()?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let (told, error) = watch::channel(None);
        tokio::spawn(async move {
            let mut buffer = vec![0; 8 * 1024];
            while let Ok(got @ 1..) = reader.read(&mut buffer).await {
                let bytes = buffer.get(..got).unwrap_or_default();
                log.append(bytes);
                if let Some(error) = last_error(bytes) {
                    told.send_replace(Some(error));
                }
            }
        });
        Ok((Self { error }, File::from(OwnedFd::from(writer))))
    }

    /// The last error of a worker that has ended.
    pub(crate) async fn last_error(&mut self) -> Option<String> {
        // Until everything was read, unless something else still holds the pipe.
        let all = async { while self.error.changed().await.is_ok() {} };
        let _in_time = timeout(Duration::from_millis(100), all).await.is_ok();
        self.error.borrow().clone()
    }
}

/// What the last line about an error says.
fn last_error(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().find_map(|line| Some(line.split_once(" ERROR ")?.1))?;
    // The module that says it comes first.
    let message = line.split_once(": ").map_or(line, |(_, message)| message);
    Some(guest_text(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found_among_other_lines() {
        let log = b"2026 INFO x: a\n2026 ERROR hutch_workspace: one: two\x1b[2J\n2026 INFO x: b\n";
        assert_eq!(last_error(log).as_deref(), Some("one: two [2J"));
        assert_eq!(last_error(b"2026 INFO x: fine\n"), None);
    }
}
