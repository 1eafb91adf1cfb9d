//! Logs that stop growing, and text of a guest that is safe to show.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing_subscriber::fmt::MakeWriter;

/// A log is put aside as `NAME.old` when it has grown to this size; an earlier one put aside is lost.
const LOG_MAX: u64 = 4 * 1024 * 1024;
/// Bytes a second that are written for long.
const RATE: f64 = 16.0 * 1024.0;
/// Bytes that may be written at once after a quiet time: the boot of a talkative guest.
const BURST: f64 = 512.0 * 1024.0;

/// A file that holds the last words of somebody who may talk without end.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    path: PathBuf,
    file: File,
    size: u64,
    allowance: f64,
    refilled: Instant,
    dropped: u64,
}

impl BoundedLog {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            allowance: BURST,
            refilled: Instant::now(),
            dropped: 0,
        })
    }

    /// Adds text, control characters made visible. What comes too fast, or what a full disk has no room for, is lost.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        let refill = now.duration_since(self.refilled).as_secs_f64() * RATE;
        self.allowance = (self.allowance + refill).min(BURST);
        self.refilled = now;
        let visible = visible(bytes);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let cost = visible.len() as f64;
        if cost > self.allowance {
            self.dropped += bytes.len() as u64;
            return;
        }
        self.allowance -= cost;
        if self.dropped > 0 {
            let note = format!("\n[{} bytes came too fast and are not here]\n", self.dropped);
            self.dropped = 0;
            self.write(note.as_bytes());
        }
        self.write(&visible);
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > LOG_MAX && self.put_aside().is_err() {
            return;
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        fs::rename(&self.path, old)?;
        let fresh = Self::open(&self.path)?;
        (self.file, self.size) = (fresh.file, fresh.size);
        Ok(())
    }
}

/// The bytes with everything but printable ASCII, line feed and tab written as `\xNN`: terminals obey the rest.
fn visible(bytes: &[u8]) -> Vec<u8> {
    let mut visible = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' | b'\t' | b' '..=b'~' => visible.push(byte),
            b'\r' => {}
            _ => visible.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    visible
}

/// Longest text of a guest that goes into a sentence.
const SENTENCE_MAX: usize = 400;

/// What a guest said, as part of a sentence: one line, printable, not long.
pub(crate) fn guest_text(text: &str) -> String {
    let mut shown = String::new();
    for c in text.trim_matches(|c: char| c.is_whitespace() || c.is_control()).chars() {
        if shown.len() >= SENTENCE_MAX {
            shown.push('…');
            break;
        }
        // Not only control characters: marks that turn the direction of writing can lie as well.
        let plain = c.is_ascii_graphic() || (c.is_alphanumeric() && !c.is_control());
        shown.push(if plain { c } else { ' ' });
    }
    shown
}

/// What the guest's console said since the byte `from`, as far as it is worth a look after a failure.
#[derive(Debug)]
pub(crate) struct Console(Vec<String>);

impl Console {
    /// Reads the end of the console's log; a log that cannot be read is an empty one.
    pub(crate) fn read(path: &Path, from: u64) -> Self {
        const TAIL: u64 = 64 * 1024;
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            // It was cut when this run began, if it is shorter now.
            let from = if from > length { 0 } else { from };
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL))))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        Self(text.lines().map(guest_text).filter(|line| !line.trim().is_empty()).collect())
    }

    /// The last lines, readable on any terminal.
    pub(crate) fn last(&self, lines: usize) -> Vec<String> {
        self.0.get(self.0.len().saturating_sub(lines)..).unwrap_or_default().to_vec()
    }

    /// Why the kernel panicked, in its own words.
    pub(crate) fn panic(&self) -> Option<&str> {
        const SIGN: &str = "Kernel panic - not syncing: ";
        self.0.iter().rev().find_map(|line| Some(line.split_once(SIGN)?.1))
    }
}

/// The keeper's own log as `tracing` writes to it.
#[derive(Debug, Clone)]
struct SharedLog(Arc<Mutex<BoundedLog>>);

impl Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SharedLog {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Sends everything that this process has to say to a log file.
pub fn start_log(path: &Path, debug: bool) -> io::Result<()> {
    let log = SharedLog(Arc::new(Mutex::new(BoundedLog::open(path)?)));
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    tracing_subscriber::fmt()
        .with_writer(log)
        .with_ansi(false)
        .with_max_level(level)
        .try_init()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_made_visible() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("log");
        let mut log = BoundedLog::open(&path).unwrap();
        log.append(b"plain\tline\r\n\x1b]0;title\x07\x9b31m\xff\n");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "plain\tline\n\\x1b]0;title\\x07\\x9b31m\\xff\n");
    }

    #[test]
    fn a_flood_is_cut_and_says_so() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("log");
        let mut log = BoundedLog::open(&path).unwrap();
        for _ in 0..2000 {
            log.append(&[b'x'; 4096]);
        }
        let written = fs::metadata(&path).unwrap().len();
        assert!((256 * 1024..2 << 20).contains(&written), "{written}");
        log.allowance = BURST;
        log.append(b"later\n");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("bytes came too fast and are not here]\nlater\n"));
    }

    #[test]
    fn two_files_are_all_there_ever_is() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("log");
        let mut log = BoundedLog::open(&path).unwrap();
        for _ in 0..4000 {
            log.allowance = BURST;
            log.append(&[b'x'; 8192]);
        }
        let sizes: Vec<u64> = fs::read_dir(base.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= LOG_MAX), "{sizes:?}");
    }

    #[test]
    fn a_guest_cannot_paint_a_sentence() {
        assert_eq!(guest_text(" two\nlines \x1b[2J"), "two lines  [2J");
        assert_eq!(guest_text("a\u{202e}b\u{0}c"), "a b c");
        let long = guest_text(&"é".repeat(10_000));
        assert!(long.len() <= SENTENCE_MAX + 8 && long.ends_with('…'));
    }

    #[test]
    fn the_end_of_a_console_has_its_last_lines() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("serial");
        let mut file = File::create(&path).unwrap();
        for line in 0..20_000 {
            writeln!(file, "line {line}\r").unwrap();
        }
        assert_eq!(Console::read(&path, 0).panic(), None);
        writeln!(file, "\n[ 1.5] Kernel panic - not syncing: \x1b[31mno init\r\n").unwrap();
        let console = Console::read(&path, 0);
        let panic = "[ 1.5] Kernel panic - not syncing:  [31mno init";
        assert_eq!(console.last(2), ["line 19999", panic]);
        assert_eq!(console.panic(), Some(" [31mno init"));
        let length = file.metadata().unwrap().len();
        writeln!(file, "a new run").unwrap();
        assert_eq!(Console::read(&path, length).last(5), ["a new run"]);
        assert_eq!(Console::read(&path, 1 << 40).last(1), ["a new run"]);
        assert!(Console::read(&base.path().join("none"), 0).last(2).is_empty());
    }
}
