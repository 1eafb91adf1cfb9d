//! The disk of large contents ([`hutch_wire::workspace::bulk`]): its places, and what goes through them.
//!
//! The disk is read and written around the kernel's cache, in whole blocks, from memory that begins at a page: what is
//! beside the content in a block is the place's own. What is written goes through a pipe where it can: between the file
//! system, the pipe and the disk only pages change hands, and nothing is copied. Whatever fails, the port can still carry
//! it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use hutch_wire::workspace::bulk;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::device::Device;
use super::local;
use super::port::{REPLY_HEADER_LEN, REQUEST_HEADER_LEN};
use crate::log;

/// `FUSE_READ`.
const READ: u32 = 15;
/// `FUSE_WRITE`.
const WRITE: u32 = 16;
/// Offset of `size` in the body of both.
const SIZE: usize = 16;
/// Where the content of a WRITE begins; a READ ends there.
const WRITE_HEADERS: usize = REQUEST_HEADER_LEN + 40;
/// Memory and disk agree in units of this many bytes.
const BLOCK: usize = 4096;
const PLACE: usize = 1 << 20;
const _: () = assert!(PLACE as u64 == bulk::PLACE_BYTES);

/// Pipes hold at least this many bytes: a page each of a place, and the headers.
const PIPE: usize = 2 * PLACE;

/// Memory for a message in which the content is at the beginning of a page.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Room for requests of so many bytes, of which a WRITE's content is at a page.
    pub(super) fn for_requests(len: usize) -> Self {
        Self::with_boundary(WRITE_HEADERS, len)
    }

    /// The byte at `boundary` is at the beginning of a page.
    fn with_boundary(boundary: usize, len: usize) -> Self {
        let bytes = vec![0; len + 2 * BLOCK].into_boxed_slice();
        let address = bytes.as_ptr().addr();
        let start = (address + boundary).next_multiple_of(BLOCK) - boundary - address;
        Self { bytes, start, len }
    }

    pub(super) fn get(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Both ends of a pipe, through which pages go without being copied.
#[derive(Debug)]
struct Pipe {
    from: File,
    to: File,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&to, PIPE)?;
        Ok(Self { from: from.into(), to: to.into() })
    }
}

/// The open disk, and the pipe to it from the kernel's file system. Without the pipe, which needs a right that init has,
/// everything goes by memory.
#[derive(Debug)]
struct Disk {
    file: File,
    pipe: Option<Pipe>,
}

/// The disk, and who has its places.
#[derive(Debug)]
pub(super) struct Bulk {
    disk: Option<Disk>,
    /// The request that has the place.
    places: [Option<u64>; bulk::PLACES as usize],
    /// Where answers are made.
    reply: Buffer,
    /// The last request was a large WRITE, and mostly so is the next.
    writing: bool,
}

/// The fields of a request that are looked at.
#[derive(Debug, Clone, Copy)]
struct Fields {
    opcode: u32,
    unique: u64,
    size: u32,
}

impl Fields {
    /// Of a READ or WRITE whose content is worth a place.
    fn of_large(request: &[u8]) -> Option<Self> {
        let field = |at: usize| {
            let bytes = request.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        let unique = request.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
        let fields = Self { opcode: field(4)?, unique, size: field(REQUEST_HEADER_LEN + SIZE)? };
        let possible = bulk::WORTH_IT..=u32::try_from(PLACE).unwrap_or(u32::MAX);
        let large = matches!(fields.opcode, READ | WRITE)
            && request.len() >= WRITE_HEADERS
            && possible.contains(&fields.size);
        large.then_some(fields)
    }
}

impl Bulk {
    /// Without a disk nothing goes by it.
    pub(super) fn new(disk: Option<OwnedFd>) -> Self {
        let disk = disk.map(|disk| Disk { file: disk.into(), pipe: Pipe::new().ok() });
        let places = [None; bulk::PLACES as usize];
        let reply = Buffer::with_boundary(REPLY_HEADER_LEN, REPLY_HEADER_LEN + PLACE);
        Self { disk, places, reply, writing: false }
    }

    /// Takes the kernel's next request, into a [`Buffer`]; gives the length of what goes by the port. A large content goes
    /// to a place now, or has one when it is answered.
    pub(super) fn receive(&mut self, device: &Device, buffer: &mut [u8]) -> io::Result<usize> {
        if self.writing && self.disk.as_ref().is_some_and(|disk| disk.pipe.is_some()) {
            return self.receive_by_pipe(device, buffer);
        }
        let len = device.read(buffer)?;
        Ok(self.place(buffer, len))
    }

    /// Gives a request that is in the buffer a place, if it is worth one; gives the length of what goes by the port.
    fn place(&mut self, buffer: &mut [u8], len: usize) -> usize {
        let whole = buffer.get(..len).unwrap_or_default();
        let fields = Fields::of_large(whole);
        self.writing = fields.is_some_and(|fields| fields.opcode == WRITE);
        let (Some(fields), Some(disk), Some(place)) = (fields, &self.disk, self.free()) else {
            return len;
        };
        if fields.opcode == READ {
            self.give(buffer, place, fields.unique);
            return len;
        }
        // Up to a whole block with what is in the buffer from before: the place is the request's alone.
        let content = (len - WRITE_HEADERS).next_multiple_of(BLOCK);
        let Some(content) = buffer.get(WRITE_HEADERS..WRITE_HEADERS + content) else { return len };
        if let Err(error) = disk.file.write_all_at(content, offset(place)) {
            self.give_up(&error);
            return len;
        }
        self.give(buffer, place, fields.unique);
        put(buffer, 0, u32::try_from(WRITE_HEADERS).unwrap_or(0));
        WRITE_HEADERS
    }

    /// The same with the content in a pipe, from where it goes to its place without being copied.
    fn receive_by_pipe(&mut self, device: &Device, buffer: &mut [u8]) -> io::Result<usize> {
        let place = self.free();
        let Some(Disk { file, pipe: Some(pipe) }) = &mut self.disk else {
            return Ok(device.read(buffer)?);
        };
        let flags = SpliceFlags::NONBLOCK;
        let len = match splice(device.descriptor(), None, &pipe.to, None, buffer.len(), flags) {
            // The request is still there; by memory it needs none.
            Err(Errno::NOMEM) => {
                let len = device.read(buffer)?;
                return Ok(self.place(buffer, len));
            }
            taken => taken?,
        };
        let headers = len.min(WRITE_HEADERS);
        pipe.read(buffer, 0, headers)?;
        let fields = Fields::of_large(buffer.get(..headers).unwrap_or_default());
        let (Some(fields), Some(place)) = (fields.filter(|of| of.opcode == WRITE), place) else {
            pipe.read(buffer, headers, len)?;
            return Ok(self.place(buffer, len));
        };
        let mut done = headers;
        while done < len {
            let mut to = offset(place) + (done - headers) as u64;
            let flags = SpliceFlags::MOVE;
            match splice(&pipe.from, None, &*file, Some(&mut to), len - done, flags) {
                Ok(0) | Err(_) => break,
                Ok(moved) => done += moved,
            }
        }
        if done < len {
            // Not in whole blocks: what is left goes by memory, behind what is on the disk.
            pipe.read(buffer, done, len)?;
            let there = buffer.get_mut(headers..done).unwrap_or_default();
            file.read_exact_at(there, offset(place))?;
            return Ok(self.place(buffer, len));
        }
        self.give(buffer, place, fields.unique);
        put(buffer, 0, u32::try_from(WRITE_HEADERS).unwrap_or(0));
        Ok(WRITE_HEADERS)
    }

    /// A place that nobody has.
    fn free(&self) -> Option<usize> {
        self.places.iter().position(Option::is_none)
    }

    /// Names the place in the request.
    fn give(&mut self, request: &mut [u8], place: usize, unique: u64) {
        if let Some(slot) = self.places.get_mut(place) {
            *slot = Some(unique);
        }
        let number = u32::try_from(place + 1).unwrap_or(0);
        put(request, REQUEST_HEADER_LEN + bulk::FIELD, number);
    }

    /// Has the place back that a request had; says which it was.
    pub(super) fn take_back(&mut self, unique: u64) -> Option<usize> {
        let place = self.places.iter().position(|held| *held == Some(unique))?;
        if let Some(slot) = self.places.get_mut(place) {
            *slot = None;
        }
        Some(place)
    }

    /// Answers a READ whose content is in a place. `reply` is the host's message: a header, and the content's length. An
    /// error is the kernel's; when the content cannot be had, it is told so.
    pub(super) fn answer(
        &mut self,
        device: &Device,
        reply: &[u8],
        place: usize,
    ) -> Result<(), Errno> {
        let unique = reply.get(8..16).and_then(|bytes| bytes.first_chunk());
        let length = reply.get(REPLY_HEADER_LEN..).and_then(|body| body.first_chunk());
        let unique = unique.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let length = length.map_or(usize::MAX, |bytes| u32::from_le_bytes(*bytes) as usize);
        let filled = match &self.disk {
            Some(disk) => disk.fill(self.reply.get(), unique, place, length),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match filled {
            Ok(whole) => device.write(self.reply.get().get(..whole).unwrap_or_default()),
            Err(error) => {
                self.give_up(&error);
                device.write(&local::error(unique, Errno::IO))
            }
        }
    }

    /// From here on everything goes by the port.
    fn give_up(&mut self, error: &io::Error) {
        log::warn(format!("the disk of large contents is not used any more: {error}"));
        self.disk = None;
    }
}

impl Pipe {
    /// Fills a part of the buffer.
    fn read(&mut self, buffer: &mut [u8], from: usize, to: usize) -> io::Result<()> {
        self.from.read_exact(buffer.get_mut(from..to).ok_or(io::ErrorKind::InvalidData)?)
    }
}

impl Disk {
    /// Makes a whole reply of what is in a place; gives its length.
    fn fill(
        &self,
        reply: &mut [u8],
        unique: u64,
        place: usize,
        length: usize,
    ) -> io::Result<usize> {
        let blocks = length.checked_next_multiple_of(BLOCK).filter(|blocks| *blocks <= PLACE);
        let content =
            blocks.and_then(|blocks| reply.get_mut(REPLY_HEADER_LEN..)?.get_mut(..blocks));
        self.file.read_exact_at(content.ok_or(io::ErrorKind::InvalidData)?, offset(place))?;
        let whole = REPLY_HEADER_LEN + length;
        put(reply, 0, u32::try_from(whole).map_err(io::Error::other)?);
        put(reply, 4, 0);
        reply[8..REPLY_HEADER_LEN].copy_from_slice(&unique.to_le_bytes());
        Ok(whole)
    }
}

fn offset(place: usize) -> u64 {
    place as u64 * bulk::PLACE_BYTES
}

fn put(message: &mut [u8], at: usize, value: u32) {
    if let Some(field) = message.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, unique: u64, size: u32, content: usize) -> Vec<u8> {
        let len = u32::try_from(WRITE_HEADERS + content).unwrap();
        let mut bytes =
            [&len.to_le_bytes()[..], &opcode.to_le_bytes(), &unique.to_le_bytes()].concat();
        bytes.resize(REQUEST_HEADER_LEN + SIZE, 0);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.resize(WRITE_HEADERS, 0);
        bytes.resize(WRITE_HEADERS + content, 9);
        bytes
    }

    fn placed(bulk: &mut Bulk, request: &[u8]) -> (usize, u32) {
        let mut buffer = Buffer::for_requests(WRITE_HEADERS + PLACE + BLOCK);
        let buffer = buffer.get();
        buffer[..request.len()].copy_from_slice(request);
        let len = bulk.place(buffer, request.len());
        let field = buffer[REQUEST_HEADER_LEN + bulk::FIELD..].first_chunk().unwrap();
        (len, u32::from_le_bytes(*field))
    }

    fn disk() -> (File, Bulk) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bulk::DISK_BYTES).unwrap();
        let bulk = Bulk::new(Some(file.try_clone().unwrap().into()));
        (file, bulk)
    }

    #[test]
    fn large_contents_get_a_place_as_long_as_there_is_one() {
        let (file, mut bulk) = disk();
        let large = bulk::WORTH_IT + 5;
        let write = request(WRITE, 1, large, large as usize);
        assert_eq!(placed(&mut bulk, &write), (WRITE_HEADERS, 1));
        let mut content = vec![0; large as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content.iter().all(|&byte| byte == 9));
        for unique in 2..=u64::from(bulk::PLACES) {
            let (len, place) = placed(&mut bulk, &request(READ, unique, large, 0));
            assert_eq!((len, u64::from(place)), (WRITE_HEADERS, unique));
        }
        // Nothing is free.
        assert_eq!(placed(&mut bulk, &write), (write.len(), 0));
        assert_eq!(bulk.take_back(99), None);
        assert_eq!(bulk.take_back(2), Some(1));
        assert_eq!(placed(&mut bulk, &request(READ, 77, large, 0)), (WRITE_HEADERS, 2));
    }

    #[test]
    fn everything_else_goes_by_the_port_as_it_is() {
        let (_file, mut bulk) = disk();
        let small = bulk::WORTH_IT - 1;
        for request in [
            request(READ, 1, small, 0),
            request(WRITE, 1, small, small as usize),
            request(READ, 1, u32::MAX, 0),
            request(3, 1, bulk::WORTH_IT, 0),
            vec![0; 12],
        ] {
            assert_eq!(placed(&mut bulk, &request), (request.len(), 0));
        }
        let large = request(WRITE, 1, bulk::WORTH_IT, bulk::WORTH_IT as usize);
        assert_eq!(placed(&mut Bulk::new(None), &large), (large.len(), 0));
    }

    #[test]
    fn a_disk_that_fails_is_not_used_again() {
        let file = tempfile::tempfile().unwrap();
        let mut bulk = Bulk::new(Some(file.try_clone().unwrap().into()));
        // It is empty, so nothing can be read.
        let filled = bulk.disk.as_ref().unwrap().fill(bulk.reply.get(), 5, 0, 10);
        assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(bulk::DISK_BYTES).unwrap();
        let whole = bulk.disk.as_ref().unwrap().fill(bulk.reply.get(), 5, 0, 10).unwrap();
        assert_eq!(whole, REPLY_HEADER_LEN + 10);
        let filled = bulk.disk.as_ref().unwrap().fill(bulk.reply.get(), 5, 0, PLACE + 1);
        assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::InvalidData);
        bulk.give_up(&io::ErrorKind::Other.into());
        assert!(bulk.disk.is_none());
    }
}
