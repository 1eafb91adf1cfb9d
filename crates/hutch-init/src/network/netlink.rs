//! Netlink messages as bytes, and the conversation that sends some and waits until the kernel has taken them
//! (netlink(7)).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

/// Flags of a request.
pub(crate) const REQUEST: u16 = 0x1;
/// The kernel answers each message that has this flag.
pub(crate) const ACK: u16 = 0x4;
/// Make what is not there yet.
pub(crate) const CREATE: u16 = 0x400;
/// Fail when it is there.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Put it behind what is there.
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
/// The kernel answers at once or never.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Several messages in one buffer, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    count: u32,
    answers: u32,
}

/// The inside of one message: a fixed part, then attributes.
#[derive(Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Batch {
    /// Adds a message.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, body: &Body) {
        self.count += 1;
        if flags & ACK != 0 {
            self.answers += 1;
        }
        let length = u32::try_from(HEADER + body.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&body.0);
    }

    /// Sends all of it and waits for every answer; the first that is an error is the result.
    pub(crate) fn send(&self, protocol: Option<Protocol>) -> io::Result<()> {
        let socket = open(protocol)?;
        sendto(&socket, &self.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut missing = self.answers;
        let mut buffer = vec![0; 16 * 1024];
        while missing > 0 {
            let (count, _) =
                rustix::io::retry_on_intr(|| recv(&socket, &mut buffer, RecvFlags::empty()))?;
            for answer in messages(&buffer[..count.min(buffer.len())]) {
                if let Some(outcome) = outcome(answer) {
                    outcome?;
                    missing = missing.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}

impl Body {
    /// A body that starts with these bytes, which must be a multiple of four.
    pub(crate) fn new(fixed: &[u8]) -> Self {
        debug_assert!(fixed.len().is_multiple_of(4));
        Self(fixed.to_vec())
    }

    /// An attribute with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A string, with the NUL that ends it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A number in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes that were written before, inside an attribute.
    pub(crate) fn attributes(&mut self, kind: u16, inside: &Self) -> &mut Self {
        self.bytes(kind | NESTED, &inside.0)
    }

    /// Attributes inside an attribute.
    pub(crate) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        inside(&mut inner);
        self.attributes(kind, &inner)
    }
}

fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    Ok(socket)
}

/// The messages in what the kernel sent.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What an answer says; `None` for a message that is none.
fn outcome(message: &[u8]) -> Option<io::Result<()>> {
    if message.get(4..6)? != ERROR.to_ne_bytes() {
        return None;
    }
    let code = u32_at(message, HEADER)?.cast_signed();
    Some(match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let mut body = Body::new(&[9; 4]);
        body.bytes(1, b"abcde").nested(2, |inside| {
            inside.be32(3, 1);
        });
        let mut expected = vec![9; 4];
        expected.extend_from_slice(&[9, 0, 1, 0, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
        expected.extend_from_slice(&[12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 1]);
        assert_eq!(body.0, expected);
    }

    #[test]
    fn a_message_has_its_own_length_and_number() {
        let mut batch = Batch::default();
        batch.message(16, REQUEST | ACK, &Body::new(&[0; 4]));
        batch.message(17, REQUEST, &Body::new(&[]));
        assert_eq!((batch.count, batch.answers), (2, 1));
        let all: Vec<&[u8]> = messages(&batch.bytes).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].len(), 20);
        assert_eq!(u32_at(all[1], 8), Some(2));
    }

    #[test]
    fn answers_are_understood() {
        let mut answer = vec![0_u8; 36];
        answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        assert!(outcome(&answer).unwrap().is_ok());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(outcome(&answer).unwrap().unwrap_err().raw_os_error(), Some(1));
        assert!(outcome(&answer[..10]).is_none());
        answer[4] = 3;
        assert!(outcome(&answer).is_none());
    }

    #[test]
    fn a_cut_message_ends_the_list() {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.resize(20, 0);
        assert_eq!(messages(&bytes).count(), 0);
        assert_eq!(messages(&[0; 32]).count(), 0);
        assert_eq!(messages(&[]).count(), 0);
    }
}
