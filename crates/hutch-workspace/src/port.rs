//! The stream: whole messages in, whole messages out.
//!
//! Threads take turns: whoever holds the receiver reads one message and then gives the turn away before it works on the
//! message. So a request never waits for a hand-over to another thread, as many are in flight as there are threads, and
//! nothing queues up in memory: a guest that asks faster than we answer fills its own port.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hutch_wire::workspace::{Ahead, CODE_AHEAD};

use crate::abi::{HEADER_LEN, Header, Malformed, Reply};
use crate::locked::locked;

/// Bytes read ahead: several small requests at once.
const BUFFER: usize = 64 << 10;

/// Why no further message can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream failed.
    #[error("the port cannot be read")]
    Read(#[source] io::Error),
    /// The guest sent something that is no message.
    #[error("the guest broke the protocol")]
    Broken(#[source] Malformed),
}

/// The receiving side; owned by one thread at a time.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Receiver {
    /// Receives from this stream.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Reads the next message's body into `body`; none at the end of the stream, also in the middle of a message.
    pub(crate) fn receive(&mut self, body: &mut Vec<u8>) -> Result<Option<Header>, ReceiveError> {
        let mut header = [0; HEADER_LEN];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let header = Header::parse(&header).map_err(ReceiveError::Broken)?;
        // Grows only to the bound that the header was checked against, and stays for the next message.
        body.resize(header.len - HEADER_LEN, 0);
        Ok(self.fill(body)?.then_some(header))
    }

    /// Whether nothing was read beyond the last message.
    pub(crate) fn is_drained(&self) -> bool {
        self.start == self.end
    }

    fn fill(&mut self, mut target: &mut [u8]) -> Result<bool, ReceiveError> {
        while !target.is_empty() {
            if self.start == self.end {
                let direct = target.len() >= BUFFER;
                let space = if direct { &mut *target } else { &mut *self.buffer };
                let read = match self.stream.read(space) {
                    Ok(0) => return Ok(false),
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // The other end died: the same as an end.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        return Ok(false);
                    }
                    Err(error) => return Err(ReceiveError::Read(error)),
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
        Ok(true)
    }
}

#[derive(Debug)]
struct Stream {
    stream: UnixStream,
    /// Init holds something that was told ahead.
    told: bool,
    buffer: Vec<u8>,
}

/// The sending side; whole messages never mix.
///
/// What is told ahead ([`hutch_wire::workspace::Ahead`]) is true at the moment when it was read. So every change that could
/// make it old, and every notification, is a turn of things; what was read before the last one is not sent.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: Mutex<Stream>,
    turns: AtomicU64,
    /// The same stream without the lock, whose holder may be stuck.
    end: UnixStream,
}

impl Sender {
    /// Sends to this stream.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        let end = stream.try_clone()?;
        let stream = Mutex::new(Stream { stream, told: false, buffer: Vec::new() });
        Ok(Self { stream, turns: AtomicU64::new(0), end })
    }

    /// Which turn of things it is: asked for before what is told ahead is read.
    pub(crate) fn turn(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    /// Things take a turn: what was read before this is old. After the change, and before its reply.
    pub(crate) fn next_turn(&self) {
        self.turns.fetch_add(1, Ordering::SeqCst);
    }

    /// Sends a message that nobody asked for: whatever was told ahead may be old with it. Blocks while the guest does not
    /// read, which is how a slow guest slows only itself.
    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        let mut stream = locked(&self.stream);
        self.next_turn();
        stream.stream.write_all(message)
    }

    /// Sends a reply, and what is told ahead before it. A reply that `changes` something takes back what was told before.
    pub(crate) fn reply(&self, reply: &Reply, changes: bool) -> io::Result<()> {
        let mut stream = locked(&self.stream);
        let Stream { stream, told, buffer } = &mut *stream;
        let ahead = reply.ahead().filter(|(turn, _)| *turn == self.turn());
        buffer.clear();
        if let Some((_, ahead)) = ahead {
            *told = true;
            buffer.extend_from_slice(ahead);
        } else if changes && std::mem::take(told) {
            buffer.extend_from_slice(&nothing_ahead());
        }
        if buffer.is_empty() {
            return stream.write_all(reply.message());
        }
        // One piece: the guest is woken once.
        buffer.extend_from_slice(reply.message());
        stream.write_all(buffer)
    }

    /// Ends both directions, so that every thread that reads or writes comes to its end.
    pub(crate) fn close(&self) {
        // A closed stream stays closed.
        self.end.shutdown(std::net::Shutdown::Both).ok();
    }
}

fn nothing_ahead() -> Vec<u8> {
    let body = Ahead::Nothing.encode().unwrap_or_default();
    Reply::new().own(CODE_AHEAD, &body).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&7_u64.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn messages_of_all_sizes_come_one_by_one() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let sizes = [0, 1, 100, BUFFER - HEADER_LEN, BUFFER, 3 * BUFFER + 1, 5];
        let writer = std::thread::spawn(move || {
            for size in sizes {
                let len = u32::try_from(HEADER_LEN + size).unwrap();
                guest.write_all(&message(len, &vec![9; size])).unwrap();
            }
        });
        let mut receiver = Receiver::new(host);
        let mut body = Vec::new();
        for size in sizes {
            let header = receiver.receive(&mut body).unwrap().unwrap();
            assert_eq!((header.unique, body.len()), (7, size));
            assert!(body.iter().all(|&byte| byte == 9));
        }
        assert_eq!(receiver.receive(&mut body).unwrap(), None);
        writer.join().unwrap();
    }

    #[test]
    fn impossible_lengths_break_the_stream_before_memory_is_taken() {
        for len in [0, 39, u32::MAX] {
            let (mut guest, host) = UnixStream::pair().unwrap();
            guest.write_all(&message(len, &[])).unwrap();
            let mut body = Vec::new();
            let error = Receiver::new(host).receive(&mut body).unwrap_err();
            assert!(matches!(error, ReceiveError::Broken(Malformed::Length { .. })), "{error:?}");
            assert_eq!(body.capacity(), 0);
        }
    }

    #[test]
    fn an_end_within_a_message_is_an_end() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(&message(100, &[1; 10])).unwrap();
        drop(guest);
        assert_eq!(Receiver::new(host).receive(&mut Vec::new()).unwrap(), None);
    }
}
