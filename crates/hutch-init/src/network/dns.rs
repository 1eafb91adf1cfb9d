//! Reads a question and writes an answer (RFC 1035), as far as a resolver needs it that answers everything itself.
//!
//! One question a message. What cannot be read gets no answer, or a format error where it has a header.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest message over UDP without negotiation; ours are always shorter.
pub(super) const MESSAGE_MAX: usize = 512;

const HEADER: usize = 12;
const NAME_MAX: usize = 253;
const LABEL_MAX: u8 = 63;
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_AVAILABLE: u8 = 0x80;
const CLASS_INTERNET: u16 = 1;
const CLASS_ANY: u16 = 255;
/// The name at the start of the question.
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, 0x0c];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// Whatever there is.
    Any,
    /// Something that no name has here.
    Other,
}

/// A question that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Lower case, without a dot at the end; its labels have letters, digits, `-` and `_` only. Empty = the root.
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What a message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Nothing to answer: no header, or an answer itself.
    Nothing,
    /// A question that is answered with a code alone, and its end where it could be read.
    Refused(Code, Option<usize>),
    /// A question with its length in the message.
    Question(Question, usize),
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// There is the name, though it may have nothing of the kind.
    Success = 0,
    /// The message makes no sense.
    Format = 1,
    /// Not now.
    Failure = 2,
    /// There is no such name.
    NoName = 3,
    /// Not an ordinary question.
    NotImplemented = 4,
    /// Not the internet's names.
    Refused = 5,
}

/// A record of an answer; it is about the name of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Ptr(String),
}

/// Reads a message.
pub(super) fn parse(message: &[u8]) -> Parsed {
    let Some(header) = message.first_chunk::<HEADER>() else { return Parsed::Nothing };
    if header[2] & RESPONSE != 0 {
        return Parsed::Nothing;
    }
    if header[2] & OPCODE != 0 {
        return Parsed::Refused(Code::NotImplemented, None);
    }
    if header[4..6] != [0, 1] {
        return Parsed::Refused(Code::Format, None);
    }
    let Some((name, rest)) = read_name(&message[HEADER..]) else {
        return Parsed::Refused(Code::Format, None);
    };
    let Some(&[kind_high, kind_low, class_high, class_low]) = rest.first_chunk::<4>() else {
        return Parsed::Refused(Code::Format, None);
    };
    let length = message.len() - rest.len() + 4;
    let class = u16::from_be_bytes([class_high, class_low]);
    if class != CLASS_INTERNET && class != CLASS_ANY {
        return Parsed::Refused(Code::Refused, Some(length));
    }
    let Some(name) = name else { return Parsed::Refused(Code::NoName, Some(length)) };
    let kind = match u16::from_be_bytes([kind_high, kind_low]) {
        1 => Kind::A,
        12 => Kind::Ptr,
        28 => Kind::Aaaa,
        255 => Kind::Any,
        _ => Kind::Other,
    };
    Parsed::Question(Question { name, kind }, length)
}

/// Reads a name that is not compressed, as none is at the start of a message. The inner `None` is a name that no host
/// can have.
fn read_name(mut bytes: &[u8]) -> Option<(Option<String>, &[u8])> {
    let mut name = String::new();
    let mut sensible = true;
    loop {
        let (&length, rest) = bytes.split_first()?;
        if length == 0 {
            return Some((sensible.then_some(name), rest));
        }
        if length > LABEL_MAX {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in label {
            sensible &= byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        if name.len() > NAME_MAX {
            return None;
        }
        bytes = rest;
    }
}

/// Writes the answer to a message that has a header. `question` is the length up to the question's end, if it is told
/// back.
pub(super) fn answer(
    message: &[u8],
    question: Option<usize>,
    code: Code,
    records: &[Record],
    seconds: u32,
) -> Vec<u8> {
    let Some(header) = message.first_chunk::<HEADER>() else { return Vec::new() };
    let question = question.and_then(|end| message.get(HEADER..end)).unwrap_or_default();
    let mut out = Vec::with_capacity(MESSAGE_MAX);
    out.extend_from_slice(&header[..2]);
    out.push(RESPONSE | AUTHORITATIVE | (header[2] & (OPCODE | RECURSION_DESIRED)));
    out.push(RECURSION_AVAILABLE | code as u8);
    let count = u8::try_from(records.len()).unwrap_or(u8::MAX);
    out.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, count, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    for record in records.iter().take(usize::from(count)) {
        let (kind, data): (u16, Vec<u8>) = match record {
            Record::A(address) => (1, address.octets().to_vec()),
            Record::Ptr(name) => (12, write_name(name)),
            Record::Aaaa(address) => (28, address.octets().to_vec()),
        };
        out.extend_from_slice(&POINTER_TO_QUESTION);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
        out.extend_from_slice(&seconds.to_be_bytes());
        out.extend_from_slice(&u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(&data);
    }
    out
}

/// A name of the table or of ours: its labels are short.
fn write_name(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap_or_default());
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests;
