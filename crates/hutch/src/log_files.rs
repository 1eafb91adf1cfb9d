//! Reading a sandbox's network log while the proxy writes and rotates it, or after it ended in the middle of a line.
//!
//! ```text
//!   log.jsonl.2 ──▶ log.jsonl.1 ──▶ log.jsonl      older to newer; rotating renames each to the next number
//! ```
//!
//! A [`Tail`] gives every complete line once, in order, however often the files are renamed between two looks; what
//! rotates away between them is lost, as it is for everybody.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The file that is written now; older ones have a number behind it.
const CURRENT: &str = "log.jsonl";
/// A line that is longer is none of the proxy's.
const LINE_MAX: usize = 256 * 1024;

/// The complete lines of a directory of log files.
#[derive(Debug)]
pub(crate) struct Tail {
    directory: PathBuf,
    current: Option<Open>,
}

/// The file that is read.
#[derive(Debug)]
struct Open {
    reader: BufReader<File>,
    device: u64,
    inode: u64,
    /// A line whose end is not there yet.
    partial: Vec<u8>,
    /// That line is too long: the rest of it is skipped too.
    skipping: bool,
}

impl Tail {
    /// Begins with the oldest line there is.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), current: None }
    }

    /// Gives every line that has become complete to `take`. A directory that is not there has none.
    pub(crate) fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        if let Some(open) = &mut self.current {
            open.lines(&mut take)?;
        }
        let files = newer_than(&self.directory, self.current.as_ref())?;
        for mut open in files {
            if let Some(before) = &mut self.current {
                // It may have grown until it was renamed.
                before.lines(&mut take)?;
            }
            open.lines(&mut take)?;
            self.current = Some(open);
        }
        Ok(())
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            reader: BufReader::new(file),
            device: metadata.dev(),
            inode: metadata.ino(),
            partial: Vec::new(),
            skipping: false,
        })
    }

    fn is(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    fn lines(&mut self, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        // The end of the file that was seen before is no end any more.
        self.reader.stream_position()?;
        loop {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Ok(());
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let piece = &available[..end.unwrap_or(available.len())];
            if !self.skipping {
                self.partial.extend_from_slice(piece);
            }
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if self.partial.len() > LINE_MAX {
                self.partial = Vec::new();
                self.skipping = true;
            }
            if end.is_some() {
                if !self.skipping {
                    take(&self.partial);
                }
                self.partial.clear();
                self.skipping = false;
            }
        }
    }
}

/// The files that hold what came after those lines that `known` has, oldest first.
fn newer_than(directory: &Path, known: Option<&Open>) -> io::Result<Vec<Open>> {
    // Newest first: a file that is renamed meanwhile is found again under its new name, and not missed.
    let mut numbers: Vec<u32> = Vec::new();
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                numbers.extend(number(&entry?.file_name()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    numbers.sort_unstable();
    // The last one may have been renamed since the directory was read.
    if let Some(last) = numbers.last() {
        numbers.push(last + 1);
    }
    let mut files: Vec<Open> = Vec::new();
    for number in numbers {
        let path = match number {
            0 => directory.join(CURRENT),
            number => directory.join(format!("{CURRENT}.{number}")),
        };
        match Open::new(&path) {
            Ok(open) if known.is_some_and(|known| known.is(&open)) => break,
            Ok(open) if files.iter().any(|other| other.is(&open)) => {}
            Ok(open) => files.push(open),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

/// The number of a log file: 0 for the one that is written, `None` for another file.
fn number(name: &OsStr) -> Option<u32> {
    let rest = name.to_str()?.strip_prefix(CURRENT)?;
    if rest.is_empty() {
        return Some(0);
    }
    let number: u32 = rest.strip_prefix('.')?.parse().ok()?;
    (1..u32::MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    struct Log {
        directory: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self, number: u32) -> PathBuf {
            match number {
                0 => self.directory.path().join(CURRENT),
                number => self.directory.path().join(format!("{CURRENT}.{number}")),
            }
        }

        fn write(&self, text: &str) {
            let mut file = File::options().create(true).append(true).open(self.path(0)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self, keep: u32) {
            for number in (0..keep).rev() {
                let _absent = std::fs::rename(self.path(number), self.path(number + 1));
            }
        }

        fn tail(&self) -> Tail {
            Tail::new(self.directory.path())
        }
    }

    fn read(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        tail.read(|line| lines.push(String::from_utf8(line.to_vec()).unwrap())).unwrap();
        lines
    }

    #[test]
    fn lines_come_once_oldest_first_and_a_torn_one_when_it_is_whole() {
        let log = Log::new();
        assert!(read(&mut log.tail()).is_empty());
        log.write("1\n");
        log.rotate(3);
        log.write("2\n");
        log.rotate(3);
        log.write("3\n4");
        std::fs::create_dir(log.directory.path().join("other")).unwrap();
        let mut tail = log.tail();
        assert_eq!(read(&mut tail), ["1", "2", "3"]);
        assert!(read(&mut tail).is_empty());
        log.write("4\n");
        assert_eq!(read(&mut tail), ["44"]);
        log.write("5\n");
        log.rotate(3);
        log.write("6\n");
        log.rotate(3);
        log.write("7\n");
        assert_eq!(read(&mut tail), ["5", "6", "7"]);
    }

    #[test]
    fn a_directory_that_appears_later_is_read_then() {
        let base = tempfile::tempdir().unwrap();
        let mut tail = Tail::new(base.path().join("network"));
        assert!(read(&mut tail).is_empty());
        std::fs::create_dir(base.path().join("network")).unwrap();
        hutch_store::atomic::write(&base.path().join("network").join(CURRENT), b"1\n").unwrap();
        assert_eq!(read(&mut tail), ["1"]);
    }

    #[test]
    fn a_line_without_end_is_not_collected_for_ever() {
        let log = Log::new();
        log.write("1\n");
        let mut tail = log.tail();
        for _ in 0..4 {
            log.write(&"x".repeat(LINE_MAX));
            read(&mut tail);
            assert!(tail.current.as_ref().unwrap().partial.len() <= LINE_MAX);
        }
        log.write("\n2\n");
        assert_eq!(read(&mut tail), ["2"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_told_twice(steps in proptest::collection::vec(0_u8..4, 0..60)) {
            let log = Log::new();
            let mut tail = log.tail();
            let (mut written, mut told) = (0_u32, Vec::new());
            for step in steps {
                match step {
                    0 | 1 => {
                        log.write(&format!("{written}\n"));
                        written += 1;
                    }
                    2 => log.rotate(100),
                    _ => told.extend(read(&mut tail)),
                }
            }
            told.extend(read(&mut tail));
            let expected: Vec<String> = (0..written).map(|number| number.to_string()).collect();
            prop_assert_eq!(told, expected);
        }
    }
}
