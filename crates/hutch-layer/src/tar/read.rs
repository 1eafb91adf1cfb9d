//! From an archive to entries.

use std::io::{self, Read};

use super::header::{Header, gnu_sparse_block, padding};
use super::pax::{self, Pax};
use super::{BLOCK, BLOCK_BYTES, EXTENSION_MAX, EXTENTS_MAX};
use crate::entry::{
    Entry, EntryPath, Extent, Kind, LayerError, Limits, Metadata, OPAQUE, PATH_MAX, Refusal,
    WHITEOUT, WHITEOUT_META,
};

/// Names of attributes that say something about the host or the overlay that they were read on, not about the file.
const FOREIGN_XATTRS: [&[u8]; 4] =
    [b"trusted.overlay.", b"user.overlay.", b"security.selinux", b"security.evm"];

/// Reads an archive; between two calls of [`Reader::next`] it is a stream of the entry's content.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    limits: Limits,
    /// Content of this entry that was not read yet.
    rest: u64,
    /// What follows the content up to the next header.
    padding: u64,
    entries: usize,
    bytes: u64,
    names: usize,
    ended: bool,
}

/// What long names say about the entry after them.
#[derive(Debug, Default)]
struct Extensions {
    pax: Pax,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads the archive that `input` is.
    pub fn new(input: R, limits: Limits) -> Self {
        Self { input, limits, rest: 0, padding: 0, entries: 0, bytes: 0, names: 0, ended: false }
    }

    /// The input, which is at the content of the entry that came last.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// The input, at whatever place it is.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; what was not read of the one before is passed over.
    #[expect(
        clippy::should_implement_trait,
        reason = "an entry's content must be read before the next"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            self.count()?;
            match header.kind() {
                b'x' => extensions.pax = Pax::parse(&self.extension(&header)?)?,
                // Nothing in it is about one entry.
                b'g' => drop(self.extension(&header)?),
                b'L' => extensions.path = Some(self.long_name(&header)?),
                b'K' => extensions.link = Some(self.long_name(&header)?),
                _ => {
                    if let Some(entry) = self.entry(&header, extensions)? {
                        return Ok(Some(entry));
                    }
                    extensions = Extensions::default();
                }
            }
        }
    }

    /// The next header; none at the end.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.rest + self.padding)?;
        (self.rest, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        let header = match self.fill(&mut block)? {
            // Some writers end without the blocks of zeros.
            0 => None,
            BLOCK => Header::parse(block)?,
            _ => return Err(LayerError::Damaged("the archive ends in the middle")),
        };
        self.ended = header.is_none();
        Ok(header)
    }

    fn count(&mut self) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries as u64;
            return Err(LayerError::TooMuch { what: "files", limit });
        }
        Ok(())
    }

    fn count_names(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.names = self.names.saturating_add(bytes);
        if self.names > self.limits.names {
            let limit = self.limits.names as u64;
            return Err(LayerError::TooMuch { what: "bytes of names and attributes", limit });
        }
        Ok(())
    }

    /// The whole content of a header that is not an entry itself.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let size = header.size()?;
        if size > EXTENSION_MAX {
            return Err(LayerError::TooMuch {
                what: "bytes of names of one file",
                limit: EXTENSION_MAX,
            });
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        self.exactly(&mut content)?;
        self.padding = padding(size);
        Ok(content)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// None for an entry that means nothing.
    fn entry(
        &mut self,
        header: &Header,
        extensions: Extensions,
    ) -> Result<Option<Entry>, LayerError> {
        let Extensions { pax, path, link } = extensions;
        let name = pax.path.clone().or(path).unwrap_or_else(|| header.path());
        let link = pax.link.clone().or(link).unwrap_or_else(|| header.link());
        let path = EntryPath::parse(&name)?;
        let refuse = |refusal| LayerError::refused(&name, refusal);
        let metadata = metadata(header, &pax)?;
        let xattrs: usize =
            metadata.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.count_names(path.as_bytes().len() + link.len() + xattrs)?;

        let device = || header.device().ok_or_else(|| refuse(Refusal::DeviceNumber));
        let kind = match header.kind() {
            // Before POSIX a directory was told by its name.
            0 | b'0' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => {
                let kind = self.file(header, &pax).map_err(|error| named(error, &name))?;
                if let Some(found) = whiteout(&path, &name)? {
                    return Ok(found.map(|(path, kind)| Entry { path, kind, metadata }));
                }
                kind
            }
            b'1' => Kind::HardLink(EntryPath::parse(&link)?),
            b'2' if link.is_empty() || link.len() >= PATH_MAX || link.contains(&0) => {
                return Err(refuse(Refusal::LinkTarget));
            }
            b'2' => Kind::Symlink(link),
            b'3' => {
                let (major, minor) = device()?;
                Kind::CharacterDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device()?;
                Kind::BlockDevice { major, minor }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(refuse(Refusal::Type)),
        };
        if is_reserved(&path) {
            return match kind {
                // What aufs needed for itself.
                Kind::Directory | Kind::HardLink(_) => Ok(None),
                _ => Err(refuse(Refusal::Whiteout)),
            };
        }
        Ok(Some(Entry { path, kind, metadata }))
    }

    /// A file with content, sparse or not.
    fn file(&mut self, header: &Header, pax: &Pax) -> Result<Kind, LayerError> {
        let mut stored = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        let mut extents = pax.extents()?;
        let mut size = pax.sparse_size.filter(|_| extents.is_some()).unwrap_or(stored);
        let padding = padding(stored);
        if header.kind() == b'S' {
            let (real, found) = self.gnu_sparse(header)?;
            (size, extents) = (real, Some(found));
        } else if pax.sparse_in_content {
            let (used, found) = self.sparse_in_content(stored)?;
            stored -= used;
            size = pax.sparse_size.unwrap_or(stored);
            extents = Some(found);
        }
        if let Some(extents) = &extents {
            check_extents(extents, size, stored)?;
        }
        // Holes count too: a program in the sandbox that copies the file fills them.
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(LayerError::TooMuch { what: "bytes", limit: self.limits.bytes });
        }
        (self.rest, self.padding) = (stored, padding);
        Ok(Kind::File { size, extents })
    }

    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<Extent>), LayerError> {
        const DAMAGED: LayerError = LayerError::Damaged("a map of holes in the archive");
        let (size, mut extents, mut more) = header.gnu_sparse().ok_or(DAMAGED)?;
        while more {
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            let (found, again) = gnu_sparse_block(&block).ok_or(DAMAGED)?;
            extents.extend(found);
            more = again;
            too_many(extents.len())?;
        }
        Ok((size, extents))
    }

    /// The map of version 1.0: decimal lines in front of the content, filled up to a block.
    fn sparse_in_content(&mut self, stored: u64) -> Result<(u64, Vec<Extent>), LayerError> {
        const DAMAGED: LayerError = LayerError::Damaged("a map of holes in the archive");
        let mut used = 0_u64;
        let (mut numbers, mut line) = (Vec::new(), Vec::new());
        let mut wanted = None;
        loop {
            if used + BLOCK_BYTES > stored || used > EXTENSION_MAX * 4 {
                return Err(DAMAGED);
            }
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            used += BLOCK_BYTES;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number: u64 = pax::decimal(&line)?;
                line.clear();
                match wanted {
                    None => {
                        let count = usize::try_from(number).map_err(|_| DAMAGED)?;
                        too_many(count)?;
                        wanted = Some(count * 2);
                    }
                    Some(_) => numbers.push(number),
                }
                if wanted == Some(numbers.len()) {
                    return Ok((used, pax::extents(&numbers)?));
                }
            }
        }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), LayerError> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())
            .map_err(LayerError::Read)?;
        if skipped == bytes { Ok(()) } else { Err(ENDS_EARLY) }
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        if self.fill(buffer)? == buffer.len() { Ok(()) } else { Err(ENDS_EARLY) }
    }

    /// Reads until the buffer is full or the input ends.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        Ok(filled)
    }
}

const ENDS_EARLY: LayerError = LayerError::Damaged("the archive ends in the middle");

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.input).take(self.rest).read(buffer)?;
        if count == 0 && self.rest > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest -= count as u64;
        Ok(count)
    }
}

fn metadata(header: &Header, pax: &Pax) -> Result<Metadata, LayerError> {
    let (uid, gid) = match (pax.uid, pax.gid) {
        (Some(uid), Some(gid)) => (uid, gid),
        (uid, gid) => {
            let of_header = header.owner()?;
            (uid.unwrap_or(of_header.0), gid.unwrap_or(of_header.1))
        }
    };
    let (mtime, mtime_nsec) = pax.mtime.unwrap_or_else(|| (header.mtime(), 0));
    let mut xattrs = pax.xattrs.clone();
    xattrs.retain(|name, _| !FOREIGN_XATTRS.iter().any(|foreign| name.starts_with(foreign)));
    Ok(Metadata { mode: header.mode(), uid, gid, mtime, mtime_nsec, xattrs })
}

/// What a name says that begins like a whiteout: `None` = it does not; `Some(None)` = it means nothing here.
#[expect(clippy::option_option, reason = "three answers")]
fn whiteout(
    path: &EntryPath,
    name: &[u8],
) -> Result<Option<Option<(EntryPath, Kind)>>, LayerError> {
    let Some((directory, last)) = path.split() else { return Ok(None) };
    if last == OPAQUE {
        return Ok(Some(Some((directory, Kind::Opaque))));
    }
    if last.starts_with(WHITEOUT_META) {
        return Ok(Some(None));
    }
    let Some(gone) = last.strip_prefix(WHITEOUT) else { return Ok(None) };
    if gone.is_empty() || gone == b"." || gone == b".." {
        return Err(LayerError::refused(name, Refusal::Whiteout));
    }
    Ok(Some(Some((directory.join(gone), Kind::Whiteout))))
}

/// Whether the path goes through, or is, something whose name is a whiteout's.
fn is_reserved(path: &EntryPath) -> bool {
    path.components().any(|name| name.starts_with(WHITEOUT))
}

fn too_many(extents: usize) -> Result<(), LayerError> {
    if extents > EXTENTS_MAX {
        return Err(LayerError::TooMuch { what: "holes in one file", limit: EXTENTS_MAX as u64 });
    }
    Ok(())
}

/// In order, without overlaps, within the file, and as long together as what is stored.
fn check_extents(extents: &[Extent], size: u64, stored: u64) -> Result<(), LayerError> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for extent in extents {
        let next = extent.offset.checked_add(extent.length);
        match next {
            Some(next) if extent.offset >= end && next <= size => end = next,
            _ => return Err(LayerError::refused(b"", Refusal::SparseMap)),
        }
        sum += extent.length;
    }
    if sum == stored { Ok(()) } else { Err(LayerError::refused(b"", Refusal::SparseMap)) }
}

/// Puts the name of the entry into a refusal that did not know it.
fn named(error: LayerError, name: &[u8]) -> LayerError {
    match error {
        LayerError::Refused { refusal, .. } => LayerError::refused(name, refusal),
        error => error,
    }
}
