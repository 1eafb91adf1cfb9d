//! Tells what a client speaks from its first bytes.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hutch_policy::client_hello::{ClientHello, ClientHelloError, Reader};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::stream::Io;

/// The longest method that a request may begin with; more is no HTTP.
const LONGEST_METHOD: usize = 32;

/// What a client speaks, with the bytes that were read to find out.
#[derive(Debug)]
pub(crate) enum Spoken {
    /// TLS; this is what it asks for.
    Tls(ClientHello, Bytes),
    /// TLS that cannot be judged.
    BrokenTls(ClientHelloError),
    /// HTTP/1.
    Http(Bytes),
    /// Something else.
    Other,
    /// Nothing until the end of the stream.
    Ended,
    /// Nothing in time.
    Silent,
}

/// Reads until it is clear what is spoken.
pub(crate) async fn detect(io: &mut dyn Io, within: Duration) -> io::Result<Spoken> {
    let mut bytes = BytesMut::new();
    match timeout(within, read(io, &mut bytes)).await {
        Ok(spoken) => spoken,
        Err(_) => Ok(Spoken::Silent),
    }
}

async fn read(io: &mut dyn Io, bytes: &mut BytesMut) -> io::Result<Spoken> {
    let mut hello = Reader::default();
    loop {
        let before = bytes.len();
        bytes.reserve(4096);
        if io.read_buf(bytes).await? == 0 {
            return Ok(if bytes.is_empty() { Spoken::Ended } else { Spoken::Other });
        }
        if bytes[0] == 22 {
            match hello.push(&bytes[before..]) {
                Ok(None) => {}
                Ok(Some(hello)) => return Ok(Spoken::Tls(hello, bytes.split().freeze())),
                Err(ClientHelloError::NotTls) => return Ok(Spoken::Other),
                Err(error) => return Ok(Spoken::BrokenTls(error)),
            }
        } else if let Some(http) = is_http(bytes) {
            return Ok(if http { Spoken::Http(bytes.split().freeze()) } else { Spoken::Other });
        }
    }
}

/// Whether this begins an HTTP/1 request: a method and a space. None if more is needed to say.
///
/// An empty line begins one for some servers; it is given to the parser, which refuses it with a reason.
fn is_http(bytes: &[u8]) -> Option<bool> {
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Some(true);
    }
    let method = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-');
    let length = method.count();
    match bytes.get(length) {
        Some(b' ') => Some(length > 0),
        Some(_) => Some(false),
        None if length > LONGEST_METHOD => Some(false),
        None => None,
    }
}
