//! The port to the worker as two directions of whole messages. It does not block.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Size of the header of a request.
pub(super) const REQUEST_HEADER_LEN: usize = 40;
/// Size of the header of a reply.
pub(super) const REPLY_HEADER_LEN: usize = 16;
/// Largest message from the host: 1 MiB of data and headers.
const REPLY_MAX: usize = (1 << 20) + (64 << 10);
/// Room for what is read: a message of the largest size may begin anywhere before the last of these bytes.
const READ_AHEAD: usize = 64 << 10;

/// To the host. Whole messages never mix.
#[derive(Debug)]
pub(super) struct Requests {
    port: Arc<OwnedFd>,
    /// What the port did not take yet: at most one request of the kernel's, and messages of our own.
    rest: Mutex<Vec<u8>>,
}

impl Requests {
    pub(super) fn new(port: Arc<OwnedFd>) -> Self {
        Self { port, rest: Mutex::new(Vec::new()) }
    }

    pub(super) fn port(&self) -> &OwnedFd {
        &self.port
    }

    fn rest(&self) -> MutexGuard<'_, Vec<u8>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the port took everything so far.
    pub(super) fn is_clear(&self) -> bool {
        self.left() == 0
    }

    /// Bytes that the port did not take yet.
    pub(super) fn left(&self) -> usize {
        self.rest().len()
    }

    /// Sends a message. What the port does not take at once goes with [`Requests::flush`].
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let mut rest = self.rest();
        let written = if rest.is_empty() { self.write(message)? } else { 0 };
        rest.extend_from_slice(message.get(written..).unwrap_or_default());
        Ok(())
    }

    /// Sends what is left, as far as the port takes it; says how much that was not.
    pub(super) fn flush(&self) -> io::Result<usize> {
        let mut rest = self.rest();
        let written = self.write(&rest)?;
        rest.drain(..written);
        Ok(rest.len())
    }

    /// As much as the port takes at once.
    fn write(&self, message: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while let Some(left) = message.get(written..).filter(|left| !left.is_empty()) {
            match rustix::io::write(&*self.port, left) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Sends a message of our own beside FUSE; waits until the port has taken it. For threads other than the pump's,
    /// which may be asleep.
    pub(super) fn send_own(&self, opcode: u32, body: &[u8]) -> io::Result<()> {
        let mut message = vec![0; REQUEST_HEADER_LEN];
        message.extend_from_slice(body);
        let len = u32::try_from(message.len()).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&len.to_le_bytes());
        message[4..8].copy_from_slice(&opcode.to_le_bytes());
        self.send(&message)?;
        while self.flush()? > 0 {
            match poll(&mut [PollFd::new(&*self.port, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A message of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) code: i32,
    pub(super) unique: u64,
    /// All of it, header included.
    pub(super) message: &'a [u8],
}

/// From the host.
#[derive(Debug)]
pub(super) struct Replies {
    port: Arc<OwnedFd>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Replies {
    pub(super) fn new(port: Arc<OwnedFd>) -> Self {
        let buffer = vec![0; REPLY_MAX + READ_AHEAD].into_boxed_slice();
        Self { port, buffer, start: 0, end: 0 }
    }

    /// The next whole message, if it is there.
    pub(super) fn receive(&mut self) -> io::Result<Option<Reply<'_>>> {
        loop {
            let held = self.end - self.start;
            let wanted = match self.buffer[self.start..self.end].first_chunk() {
                Some(header) => length(header)?,
                None => REPLY_HEADER_LEN,
            };
            if held >= REPLY_HEADER_LEN && held >= wanted {
                break;
            }
            if !self.read(wanted)? {
                return Ok(None);
            }
        }
        let rest = &self.buffer[self.start..];
        let Some([a, b, c, d, e, f, g, h, unique @ ..]) = rest.first_chunk::<REPLY_HEADER_LEN>()
        else {
            return Ok(None);
        };
        let message = &rest[..length(&[*a, *b, *c, *d])?];
        self.start += message.len();
        let code = i32::from_le_bytes([*e, *f, *g, *h]);
        Ok(Some(Reply { code, unique: u64::from_le_bytes(*unique), message }))
    }

    /// Reads what there is, with room for a message of `wanted` bytes; says whether there was anything.
    fn read(&mut self, wanted: usize) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match rustix::io::read(&*self.port, &mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.end += read;
                    return Ok(true);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The length in a header, if a message can have it.
fn length(bytes: &[u8; 4]) -> io::Result<usize> {
    let len = usize::try_from(u32::from_le_bytes(*bytes)).map_err(io::Error::other)?;
    if !(REPLY_HEADER_LEN..=REPLY_MAX).contains(&len) {
        let text = format!("the host sent a message of {len} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn message(len: u32, code: i32, unique: u64, body: usize) -> Vec<u8> {
        let mut bytes =
            [&len.to_le_bytes()[..], &code.to_le_bytes(), &unique.to_le_bytes()].concat();
        bytes.resize(REPLY_HEADER_LEN + body, 5);
        bytes
    }

    /// Waits for the next message as the pump does.
    fn next(replies: &mut Replies) -> io::Result<(i32, u64, usize)> {
        loop {
            if let Some(reply) = replies.receive()? {
                return Ok((reply.code, reply.unique, reply.message.len()));
            }
            poll(&mut [PollFd::new(&*replies.port.clone(), PollFlags::IN)], None)?;
        }
    }

    fn pair() -> (UnixStream, Arc<OwnedFd>) {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        (host, Arc::new(guest.into()))
    }

    #[test]
    fn whole_messages_come_out_of_pieces() {
        let (host, guest) = pair();
        let mut replies = Replies::new(guest);
        assert_eq!(replies.receive().unwrap(), None);
        let sizes = [0_usize, 1, READ_AHEAD, 3 * READ_AHEAD + 7, 1 << 20, 1 << 20, 9];
        let writer = std::thread::spawn(move || {
            let mut host = host;
            for (number, size) in (1..).zip(sizes) {
                let len = u32::try_from(REPLY_HEADER_LEN + size).unwrap();
                for piece in message(len, -2, number, size).chunks(4096) {
                    host.write_all(piece).unwrap();
                }
            }
        });
        for (number, size) in (1..).zip(sizes) {
            assert_eq!(next(&mut replies).unwrap(), (-2, number, REPLY_HEADER_LEN + size));
        }
        writer.join().unwrap();
        let end = next(&mut replies).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn impossible_lengths_end_it() {
        for len in [0, 15, u32::MAX] {
            let (mut host, guest) = pair();
            host.write_all(&message(len, 0, 1, 0)).unwrap();
            let error = next(&mut Replies::new(guest)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_the_host_does_not_take_waits_and_nothing_mixes() {
        let (mut host, guest) = pair();
        let requests = Requests::new(guest);
        let large = vec![7; 1 << 20];
        requests.send(&large).unwrap();
        assert!(!requests.is_clear() && requests.left() < large.len());
        requests.send(&[8; 100]).unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).unwrap();
            bytes
        });
        requests.send_own(9, b"body").unwrap();
        assert!(requests.is_clear());
        drop(requests);
        let bytes = reader.join().unwrap();
        let (first, rest) = bytes.split_at(large.len());
        assert!(first == large && rest[..100] == [8; 100]);
        assert_eq!((rest.len(), rest[104]), (144, 9));
    }

    #[test]
    fn own_messages_carry_their_length() {
        let (mut host, guest) = pair();
        Requests::new(guest).send_own(9, b"body").unwrap();
        let mut bytes = Vec::new();
        host.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes.len(), bytes[0], bytes[4]), (44, 44, 9));
        assert_eq!(&bytes[40..], b"body");
    }
}
