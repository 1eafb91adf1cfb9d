//! Writes the log of a sandbox's network: `log.jsonl` in its directory, one record a line, rotated.
//!
//! ```text
//!   append ──▶ a bounded queue of lines ──▶ a thread of its own ──▶ log.jsonl ──▶ log.jsonl.1 ──▶ … ──▶ gone
//! ```
//!
//! The data path never waits: what comes faster than [`RATE`] or finds the queue full is counted, and a record says how
//! many entries were dropped as soon as there is room. Each batch of whole lines is one write to a file opened for
//! appending, so that a crash tears at most the last line; the next writer ends that line before it begins its own, and
//! readers skip it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hutch_policy::log::{How, Record};
use hutch_policy::policy::Decision;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::exchange::Recorder;

/// A file that would grow beyond this is rotated.
pub const FILE_MAX: u64 = 8 * 1024 * 1024;
/// How many files there are at most.
pub const FILES: u32 = 4;
/// How many records a second are kept in the long run.
const RATE: f64 = 500.0;
/// How many at once.
const BURST: f64 = 5000.0;
/// How many lines wait for the disk at most.
const QUEUE: usize = 1024;
/// How much is written at once.
const BATCH: usize = 256 * 1024;
/// The file that is written.
const CURRENT: &str = "log.jsonl";

/// Writes a log; see the module. Dropping it writes what is queued.
#[derive(Debug)]
pub struct LogWriter {
    sandbox: String,
    queue: Option<SyncSender<Entry>>,
    dropped: AtomicU64,
    allowance: Mutex<Allowance>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Entry {
    Line(String),
    /// Everything before is to be written when this is answered.
    Flush(SyncSender<()>),
}

impl LogWriter {
    /// Writes into this directory; the log that is there is continued.
    pub fn start(directory: OwnedFd, sandbox: &str) -> io::Result<Self> {
        Self::with_limit(directory, sandbox, FILE_MAX)
    }

    fn with_limit(directory: OwnedFd, sandbox: &str, file_max: u64) -> io::Result<Self> {
        let mut files = Files::open(directory, file_max)?;
        let (queue, entries) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&mut files, &entries))?;
        Ok(Self {
            sandbox: sandbox.to_owned(),
            queue: Some(queue),
            dropped: AtomicU64::new(0),
            allowance: Mutex::new(Allowance { left: BURST, at: Instant::now() }),
            thread: Some(thread),
        })
    }

    /// Waits until everything that was appended is in the file. Blocks.
    pub fn flush(&self) {
        let (answer, answered) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.send(Entry::Flush(answer)).is_ok()
        {
            // It fails when the thread has ended: then nothing more is written.
            answered.recv().ok();
        }
    }

    fn try_append(&self, line: String) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(Entry::Line(line)).is_ok())
    }

    /// Tells of what was dropped, if anything was and there is room now.
    fn tell_dropped(&self) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped == 0 {
            return;
        }
        let mut record = Record::new(now_ms(), &self.sandbox, How::Other, Decision::Denied);
        record.reason = format!("{dropped} entries dropped: they came faster than they are kept");
        if !self.try_append(record.to_line()) {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl Recorder for LogWriter {
    fn append(&self, record: Record) {
        let allowed = self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take();
        if !allowed {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tell_dropped();
        if !self.try_append(record.to_line()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.tell_dropped();
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            thread.join().ok();
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.left = (self.left + gained).min(BURST);
        self.at = now;
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

/// The thread: as many lines as there are become one write.
fn write_all(files: &mut Files, entries: &Receiver<Entry>) {
    let mut batch = String::new();
    let mut flushed = Vec::new();
    while let Ok(first) = entries.recv() {
        let mut next = Some(first);
        while let Some(entry) = next.take() {
            match entry {
                Entry::Line(line) => batch.push_str(&line),
                Entry::Flush(answer) => flushed.push(answer),
            }
            if batch.len() < BATCH {
                next = entries.try_recv().ok();
            }
        }
        files.append(batch.as_bytes());
        batch.clear();
        for answer in flushed.drain(..) {
            // Whoever asked may be gone.
            answer.send(()).ok();
        }
    }
}

/// The files of one directory.
#[derive(Debug)]
struct Files {
    directory: OwnedFd,
    current: File,
    size: u64,
    file_max: u64,
    /// The disk refused, and that was said.
    failing: bool,
}

impl Files {
    fn open(directory: OwnedFd, file_max: u64) -> io::Result<Self> {
        let (current, size) = open_current(&directory)?;
        Ok(Self { directory, current, size, file_max, failing: false })
    }

    fn append(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        match self.try_append(batch) {
            Ok(()) => self.failing = false,
            Err(error) if self.failing => tracing::debug!(%error, "the log cannot be written"),
            Err(error) => {
                self.failing = true;
                tracing::warn!(%error, "the network's log cannot be written; its entries are lost");
            }
        }
    }

    fn try_append(&mut self, batch: &[u8]) -> io::Result<()> {
        let length = batch.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.file_max {
            self.rotate()?;
        }
        match self.current.write_all(batch) {
            Ok(()) => {
                self.size += length;
                Ok(())
            }
            Err(error) => {
                // A full disk may have taken a part: its line is ended by whoever opens the file.
                (self.current, self.size) = open_current(&self.directory)?;
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..FILES).rev() {
            let from =
                if number == 1 { CURRENT.to_owned() } else { format!("{CURRENT}.{}", number - 1) };
            let to = format!("{CURRENT}.{number}");
            match rustix::fs::renameat(&self.directory, from, &self.directory, to) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        (self.current, self.size) = open_current(&self.directory)?;
        Ok(())
    }
}

/// Opens the file to append to, and ends a line that a crash tore.
fn open_current(directory: &OwnedFd) -> io::Result<(File, u64)> {
    let flags = OFlags::RDWR
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, CURRENT, flags, Mode::RUSR | Mode::WUSR);
    let mut file = match opened {
        Ok(file) => File::from(file),
        // Somebody put a link there: nothing that we made, and nothing to follow.
        Err(rustix::io::Errno::LOOP) => {
            rustix::fs::unlinkat(directory, CURRENT, AtFlags::empty())?;
            File::from(rustix::fs::openat(directory, CURRENT, flags, Mode::RUSR | Mode::WUSR)?)
        }
        Err(error) => return Err(error.into()),
    };
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0_u8; 1];
        rustix::io::pread(&file, &mut last, size - 1)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

#[cfg(test)]
mod tests;
