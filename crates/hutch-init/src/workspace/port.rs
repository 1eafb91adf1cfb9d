//! The port to the worker as two directions of whole messages.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Size of the header of a request.
pub(super) const REQUEST_HEADER_LEN: usize = 40;
/// Size of the header of a reply.
pub(super) const REPLY_HEADER_LEN: usize = 16;
/// Largest message from the host: 1 MiB of data and headers.
const REPLY_MAX: usize = (1 << 20) + (64 << 10);
/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// To the host. Whole messages never mix.
#[derive(Debug)]
pub(super) struct Requests {
    port: Mutex<Arc<OwnedFd>>,
}

impl Requests {
    pub(super) fn new(port: Arc<OwnedFd>) -> Self {
        Self { port: Mutex::new(port) }
    }

    pub(super) fn send(&self, mut message: &[u8]) -> io::Result<()> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        while !message.is_empty() {
            match rustix::io::write(&**port, message) {
                Ok(count) => message = message.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => wait(&port, PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends a message of our own beside FUSE.
    pub(super) fn send_own(&self, opcode: u32, body: &[u8]) -> io::Result<()> {
        let mut message = vec![0; REQUEST_HEADER_LEN];
        message.extend_from_slice(body);
        let len = u32::try_from(message.len()).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&len.to_le_bytes());
        message[4..8].copy_from_slice(&opcode.to_le_bytes());
        self.send(&message)
    }
}

/// What a reply's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyHeader {
    pub(super) code: i32,
    pub(super) unique: u64,
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
        Self { port, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Reads the next whole message, header included.
    pub(super) fn receive(&mut self, message: &mut Vec<u8>) -> io::Result<ReplyHeader> {
        let mut header = [0; REPLY_HEADER_LEN];
        self.fill(&mut header)?;
        let [a, b, c, d, e, f, g, h, rest @ ..] = header;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(io::Error::other)?;
        if !(REPLY_HEADER_LEN..=REPLY_MAX).contains(&len) {
            let text = format!("the host sent a message of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        message.resize(len, 0);
        message[..REPLY_HEADER_LEN].copy_from_slice(&header);
        self.fill(&mut message[REPLY_HEADER_LEN..])?;
        let code = i32::from_le_bytes([e, f, g, h]);
        Ok(ReplyHeader { code, unique: u64::from_le_bytes(rest) })
    }

    fn fill(&mut self, mut target: &mut [u8]) -> io::Result<()> {
        while !target.is_empty() {
            if self.start == self.end {
                let direct = target.len() >= BUFFER;
                let space = if direct { &mut *target } else { &mut *self.buffer };
                let read = match rustix::io::read(&*self.port, space) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => read,
                    Err(Errno::AGAIN) => {
                        wait(&self.port, PollFlags::IN)?;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                if direct {
                    target = &mut target[read..];
                    continue;
                }
                (self.start, self.end) = (0, read);
            }
            let count = target.len().min(self.end - self.start);
            target[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.start += count;
            target = &mut target[count..];
        }
        Ok(())
    }
}

/// The port may be in non-blocking mode.
fn wait(port: &OwnedFd, events: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(port, events)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
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

    #[test]
    fn whole_messages_come_out_of_pieces() {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let mut replies = Replies::new(Arc::new(guest.into()));
        let sizes = [0_usize, 1, BUFFER, 3 * BUFFER + 7, 1 << 20, 9];
        let writer = std::thread::spawn(move || {
            let mut host = host;
            for (number, size) in (1..).zip(sizes) {
                let len = u32::try_from(REPLY_HEADER_LEN + size).unwrap();
                for piece in message(len, -2, number, size).chunks(4096) {
                    host.write_all(piece).unwrap();
                }
            }
        });
        let mut bytes = Vec::new();
        for (number, size) in (1..).zip(sizes) {
            let header = replies.receive(&mut bytes).unwrap();
            assert_eq!(header, ReplyHeader { code: -2, unique: number });
            assert_eq!(bytes.len(), REPLY_HEADER_LEN + size);
        }
        writer.join().unwrap();
        let end = replies.receive(&mut bytes).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn impossible_lengths_end_it() {
        for len in [0, 15, u32::MAX] {
            let (mut host, guest) = UnixStream::pair().unwrap();
            host.write_all(&message(len, 0, 1, 0)).unwrap();
            let mut replies = Replies::new(Arc::new(guest.into()));
            let error = replies.receive(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn own_messages_carry_their_length() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        Requests::new(Arc::new(guest.into())).send_own(9, b"body").unwrap();
        let mut bytes = Vec::new();
        host.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes.len(), bytes[0], bytes[4]), (44, 44, 9));
        assert_eq!(&bytes[40..], b"body");
    }
}
