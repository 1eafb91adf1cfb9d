//! What the guest's console and the VMM say, copied into files that stop growing.
//!
//! One thread for each VM, because a write to a slow disk may block. It also waits for the end of the VMM's process, so
//! that whoever is told of the end finds the last words written. It always reads on: a guest that floods its console never blocks on us.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hutch_sys::process::Process;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;

/// What the VMM says is kept up to this size; it says little unless something is very wrong.
pub(crate) const VMM_LOG_MAX: u64 = 1024 * 1024;

/// How much of the VMM's last words goes into an error.
const TAIL_MAX: usize = 2048;

/// A file that receives at most so many bytes in all.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    file: File,
    room: u64,
}

impl BoundedLog {
    /// Opens or creates it (mode 0600) to append. Earlier content that leaves less than half of the room is cut down to
    /// its last quarter, so that each run can say something.
    pub(crate) fn open(path: &Path, max: u64) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let mut length = file.metadata()?.len();
        if length > max / 2 {
            let mut end = Vec::new();
            file.seek(SeekFrom::Start(length - length.min(max / 4)))?;
            (&file).take(max / 4).read_to_end(&mut end)?;
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&end)?;
        }
        length = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, room: max.saturating_sub(length) })
    }

    /// Writes as much as there is room for. A full disk costs the log, not the VM.
    fn append(&mut self, bytes: &[u8]) {
        let fits = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        if let Some(bytes) = bytes.get(..fits)
            && !bytes.is_empty()
            && self.file.write_all(bytes).is_ok()
        {
            self.room -= u64::try_from(fits).unwrap_or(self.room);
        }
    }
}

/// The last words of the VMM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn append(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        let excess = tail.len().saturating_sub(TAIL_MAX);
        tail.drain(..excess);
    }

    /// The last lines, joined into one, without the program's name and without control characters.
    pub(crate) fn last_lines(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default();
        last.join("; ").chars().filter(|c| !c.is_control()).collect()
    }
}

/// The first line of what a failed program said, without control characters.
pub(crate) fn first_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(TAIL_MAX).collect()
}

/// Everything that the thread of one VM looks after.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) serial: UnixStream,
    pub(crate) serial_log: BoundedLog,
    pub(crate) errors: io::PipeReader,
    pub(crate) vmm_log: BoundedLog,
    pub(crate) tail: Tail,
    pub(crate) process: Process,
}

impl Watch {
    /// Starts the thread. The receiver's sender is gone once the process has ended and all that it said is written.
    pub(crate) fn start(self) -> io::Result<watch::Receiver<()>> {
        let (end, ended) = watch::channel(());
        let run = move || {
            self.run();
            drop(end);
        };
        std::thread::Builder::new().name("vm-watch".to_owned()).spawn(run)?;
        Ok(ended)
    }

    fn run(mut self) {
        let mut buffer = vec![0; 16 * 1024];
        let (mut serial_open, mut errors_open) = (true, true);
        while serial_open || errors_open {
            let Some(ready) = self.poll(serial_open, errors_open) else { break };
            if ready.serial {
                serial_open =
                    read(&mut self.serial, &mut buffer, |said| self.serial_log.append(said));
            }
            if ready.errors {
                errors_open = read(&mut self.errors, &mut buffer, |said| {
                    self.tail.append(said);
                    self.vmm_log.append(said);
                });
            }
            if ready.ended && !ready.serial && !ready.errors {
                // Nothing is left in the streams, whoever else may hold their other ends.
                return;
            }
        }
        while !matches!(self.process.wait_ended(Duration::from_secs(3600)), Ok(true) | Err(_)) {}
    }

    /// Waits until there is something to do. Closed streams are left out: they would report their end for ever.
    fn poll(&self, serial_open: bool, errors_open: bool) -> Option<Ready> {
        let mut polled = Vec::with_capacity(3);
        let mut add = |fd| {
            polled.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            polled.len() - 1
        };
        let serial = serial_open.then(|| add(self.serial.as_fd()));
        let errors = errors_open.then(|| add(self.errors.as_fd()));
        let ended = Some(add(self.process.as_fd()));
        loop {
            match poll(&mut polled, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        let is_ready = |at: Option<usize>| {
            at.and_then(|at| polled.get(at)).is_some_and(|polled| !polled.revents().is_empty())
        };
        Some(Ready { serial: is_ready(serial), errors: is_ready(errors), ended: is_ready(ended) })
    }
}

/// What [`Watch::poll`] found.
struct Ready {
    serial: bool,
    errors: bool,
    ended: bool,
}

/// Reads once and passes on what came; says whether the stream is still open.
fn read(stream: &mut impl Read, buffer: &mut [u8], mut pass_on: impl FnMut(&[u8])) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(count) => {
            pass_on(buffer.get(..count).unwrap_or_default());
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}

#[cfg(test)]
mod tests;
