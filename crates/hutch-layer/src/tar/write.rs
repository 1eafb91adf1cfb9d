//! From entries to an archive, in the form that Docker and OCI tools read: POSIX headers with extended ones.

use std::io::{self, Read, Write};

use super::header::{Header, padding};
use super::{BLOCK, XATTR_KEY};
use crate::entry::{Entry, Kind, LayerError, Metadata, OPAQUE, WHITEOUT};

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

/// Largest number that eleven octal digits write.
const OCTAL_MAX: u64 = 0o77_777_777_777;

impl<W: Write> Writer<W> {
    /// An archive into `output`.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes one entry. The content of a file is `size` bytes of `content`, holes filled with zeros.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), LayerError> {
        let path = entry.path.as_bytes();
        let metadata = &entry.metadata;
        let plain = |kind| Item { path, link: b"", kind, size: 0, device: (0, 0), metadata };
        match &entry.kind {
            Kind::Directory => {
                // The root itself has no name in an archive.
                let named = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
                self.header(&Item { path: &named, ..plain(b'5') })
            }
            Kind::Opaque => self.mark(entry.path.join(OPAQUE).as_bytes()),
            Kind::File { size, .. } => {
                self.header(&Item { size: *size, ..plain(b'0') })?;
                let copied = io::copy(&mut content.take(*size), &mut self.output)
                    .map_err(LayerError::Write)?;
                if copied != *size {
                    return Err(LayerError::Damaged("a file ends early"));
                }
                self.pad(*size)
            }
            Kind::HardLink(target) => self.header(&Item { link: target.as_bytes(), ..plain(b'1') }),
            Kind::Symlink(target) => self.header(&Item { link: target, ..plain(b'2') }),
            Kind::CharacterDevice { major, minor } => {
                self.header(&Item { device: (*major, *minor), ..plain(b'3') })
            }
            Kind::BlockDevice { major, minor } => {
                self.header(&Item { device: (*major, *minor), ..plain(b'4') })
            }
            Kind::Fifo => self.header(&plain(b'6')),
            // Archives have none: whoever made it makes it again.
            Kind::Socket => Ok(()),
            Kind::Whiteout => {
                let Some((directory, name)) = entry.path.split() else { return Ok(()) };
                self.mark(directory.join(&[WHITEOUT, name].concat()).as_bytes())
            }
        }
    }

    /// Writes a file whose content somebody writes rather than gives to be read; it must be as long as `entry` says.
    pub fn append_written(
        &mut self,
        entry: &Entry,
        write: impl FnOnce(&mut dyn Write) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let Kind::File { size, .. } = entry.kind else {
            return self.append(entry, &mut io::empty());
        };
        let (path, metadata) = (entry.path.as_bytes(), &entry.metadata);
        self.header(&Item { path, link: b"", kind: b'0', size, device: (0, 0), metadata })?;
        let mut output = Exactly { output: &mut self.output, left: size };
        write(&mut output)?;
        if output.left > 0 {
            return Err(LayerError::Damaged("a file ends early"));
        }
        self.pad(size)
    }

    /// An empty file whose name says it all.
    fn mark(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let metadata = Metadata::default();
        let item =
            Item { path, link: b"", kind: b'0', size: 0, device: (0, 0), metadata: &metadata };
        self.header(&item)
    }

    /// Ends the archive and gives the output back.
    pub fn finish(mut self) -> Result<W, LayerError> {
        self.output.write_all(&[0; BLOCK * 2]).map_err(LayerError::Write)?;
        Ok(self.output)
    }

    fn header(&mut self, item: &Item<'_>) -> Result<(), LayerError> {
        let records = item.records();
        if !records.is_empty() {
            let size = records.len() as u64;
            let metadata = Metadata { mode: 0o644, ..Metadata::default() };
            let path = b"PaxHeaders/entry";
            let pax =
                Item { path, link: b"", kind: b'x', size, device: (0, 0), metadata: &metadata };
            self.output.write_all(&pax.block()).map_err(LayerError::Write)?;
            self.output.write_all(&records).map_err(LayerError::Write)?;
            self.pad(size)?;
        }
        self.output.write_all(&item.block()).map_err(LayerError::Write)
    }

    fn pad(&mut self, size: u64) -> Result<(), LayerError> {
        let padding = usize::try_from(padding(size)).unwrap_or(0);
        self.output.write_all(&[0; BLOCK][..padding]).map_err(LayerError::Write)
    }
}

/// The content of one file on its way into an archive.
struct Exactly<'a, W> {
    output: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Exactly<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("the file is longer than its header says"));
        }
        let count = self.output.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// One header to write.
struct Item<'a> {
    path: &'a [u8],
    link: &'a [u8],
    kind: u8,
    size: u64,
    device: (u32, u32),
    metadata: &'a Metadata,
}

impl Item<'_> {
    /// The extended header: everything that the fixed one has no room for.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let is_plain = |text: &[u8], most| text.len() <= most && text.is_ascii();
        if !is_plain(self.path, 100) {
            record(&mut records, b"path", self.path);
        }
        if !is_plain(self.link, 100) {
            record(&mut records, b"linkpath", self.link);
        }
        if self.size > OCTAL_MAX {
            record(&mut records, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", self.metadata.uid), (b"gid", self.metadata.gid)] {
            if id > 0o7_777_777 {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        let (seconds, rest) = (self.metadata.mtime, self.metadata.mtime_nsec);
        if rest != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > OCTAL_MAX) {
            record(&mut records, b"mtime", time(seconds, rest).as_bytes());
        }
        for (name, value) in &self.metadata.xattrs {
            record(&mut records, &[XATTR_KEY, name.as_slice()].concat(), value);
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put(&mut block[..100], self.path);
        octal(&mut block[100..108], u64::from(self.metadata.mode));
        octal(&mut block[108..116], u64::from(self.metadata.uid));
        octal(&mut block[116..124], u64::from(self.metadata.gid));
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], u64::try_from(self.metadata.mtime).unwrap_or(0));
        block[156] = self.kind;
        put(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.device.0));
        octal(&mut block[337..345], u64::from(self.device.1));
        let sum = u64::try_from(Header(block).checksum()).unwrap_or(0);
        octal(&mut block[148..155], sum);
        block[155] = b' ';
        block
    }
}

fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let before = seconds.unsigned_abs() - 1;
        return format!("-{before}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// Appends a record whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// As much as fits; the extended header has all of it where that is not everything.
fn put(field: &mut [u8], text: &[u8]) {
    let length = field.len().min(text.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Octal digits and a zero byte; what does not fit is in the extended header.
fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    let most = 8_u64.checked_pow(u32::try_from(digits).unwrap_or(0)).unwrap_or(u64::MAX);
    let text = format!("{:0digits$o}", number.min(most - 1));
    put(field, text.as_bytes());
}
