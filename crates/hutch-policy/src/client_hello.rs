//! Reads what a TLS client asks for before anything is answered: the name, the protocols, whether the name is hidden.
//!
//! The proxy gives the bytes of a connection to a [`Reader`] as they come, in segments and records cut anywhere, until
//! it has a [`ClientHello`] or an error; it keeps the bytes itself, to pass them on. The client is hostile: the reader
//! keeps at most [`LONGEST`] bytes, and where two readers might see two names, there is none but an error.
//!
//! ```text
//!   record  22 · version 3.x · length · ┌ handshake  1 · length · ClientHello … ┐  over as many records as it takes
//! ```

use crate::host::{Host, HostError};

/// The longest ClientHello with its records that is read; those of browsers with post-quantum keys have 2 KiB.
pub const LONGEST: usize = 32 * 1024;
/// The longest record (RFC 8446, 5.1).
const LONGEST_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;

/// Why this is no ClientHello that can be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientHelloError {
    /// Not TLS.
    #[error("the first byte is not that of a TLS handshake")]
    NotTls,
    /// A record that no client sends.
    #[error("the TLS record is malformed")]
    Record,
    /// Another message than the first one of a client.
    #[error("the first TLS message is not a ClientHello")]
    NotClientHello,
    /// Longer than any.
    #[error("the ClientHello is longer than {LONGEST} bytes")]
    TooLong,
    /// Lengths that do not fit, or bytes that are left.
    #[error("the ClientHello is malformed: {field}")]
    Malformed {
        /// Where.
        field: &'static str,
    },
    /// An extension stands there twice (RFC 8446, 4.2).
    #[error("extension {extension} of the ClientHello is there twice")]
    Duplicate {
        /// Its number.
        extension: u16,
    },
    /// Not one name, or none that can be.
    #[error("the server name of the ClientHello is not one host name")]
    ServerNames,
    /// The name is no host.
    #[error("the server name of the ClientHello is not valid")]
    ServerName(#[from] HostError),
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name. An address, which no client should send, is read as one.
    pub server_name: Option<Host>,
    /// The protocols of ALPN, in the client's order.
    pub protocols: Vec<Vec<u8>>,
    /// Whether there is an encrypted ClientHello within, or what looks like one: then the server name may not be the
    /// one that is meant.
    pub encrypted: bool,
    /// Whether TLS 1.3 is offered.
    pub tls13: bool,
}

/// Reads a ClientHello in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    /// The handshake's bytes, without the records' headers.
    handshake: Vec<u8>,
    header: [u8; RECORD_HEADER],
    header_length: usize,
    /// What is left of the record.
    in_record: usize,
    seen: usize,
}

impl Reader {
    /// Reads on: [`None`] as long as more is needed. Bytes after the last record of the ClientHello are not looked at.
    ///
    /// Not to be called again after it gave something.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            if self.in_record == 0 {
                self.header[self.header_length] = *first;
                self.header_length += 1;
                self.seen += 1;
                rest = after;
                self.check_header()?;
            } else {
                let (piece, after) = rest.split_at(self.in_record.min(rest.len()));
                self.handshake.extend_from_slice(piece);
                self.in_record -= piece.len();
                self.seen += piece.len();
                rest = after;
                if let Some(hello) = self.complete()? {
                    return Ok(Some(hello));
                }
            }
            if self.seen > LONGEST {
                return Err(ClientHelloError::TooLong);
            }
        }
        Ok(None)
    }

    /// Checks as much of a record's header as there is; the first byte alone tells what is not TLS.
    fn check_header(&mut self) -> Result<(), ClientHelloError> {
        match self.header[..self.header_length] {
            [22] | [22, 3] | [22, 3, 0..=4] | [22, 3, 0..=4, _] => Ok(()),
            [22, 3, 0..=4, high, low] => {
                self.in_record = usize::from(u16::from_be_bytes([high, low]));
                self.header_length = 0;
                if (1..=LONGEST_RECORD).contains(&self.in_record) {
                    Ok(())
                } else {
                    Err(ClientHelloError::Record)
                }
            }
            // Only of the first record can it be said that this is not TLS at all.
            [_] if self.handshake.is_empty() => Err(ClientHelloError::NotTls),
            _ => Err(ClientHelloError::Record),
        }
    }

    fn complete(&self) -> Result<Option<ClientHello>, ClientHelloError> {
        let body = match self.handshake.as_slice() {
            [1] | [1, _] | [1, _, _] => return Ok(None),
            [1, high, middle, low, body @ ..] => {
                let length =
                    usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
                if length > LONGEST {
                    return Err(ClientHelloError::TooLong);
                }
                if body.len() < length {
                    return Ok(None);
                }
                // A client has nothing more to say before it is answered; in its last record, there is nothing else.
                if body.len() > length || self.in_record > 0 {
                    return Err(ClientHelloError::Malformed { field: "bytes after its end" });
                }
                body
            }
            _ => return Err(ClientHelloError::NotClientHello),
        };
        parse_body(body).map(Some)
    }
}

/// Reads a whole ClientHello with its records; [`None`] if it is not whole.
pub fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
    Reader::default().push(bytes)
}

/// Bytes with lengths in them.
struct Input<'a> {
    bytes: &'a [u8],
    field: &'static str,
}

impl<'a> Input<'a> {
    fn malformed(&self) -> ClientHelloError {
        ClientHelloError::Malformed { field: self.field }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ClientHelloError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.malformed())?;
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ClientHelloError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u16, ClientHelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What a length of one byte stands before.
    fn short(&mut self) -> Result<&'a [u8], ClientHelloError> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    /// What a length of two bytes stands before.
    fn long(&mut self) -> Result<&'a [u8], ClientHelloError> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    fn end(&self) -> Result<(), ClientHelloError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

fn parse_body(body: &[u8]) -> Result<ClientHello, ClientHelloError> {
    let mut input = Input { bytes: body, field: "version" };
    let [3, 0..=4] = input.take(2)? else { return Err(input.malformed()) };
    input.field = "random";
    input.take(32)?;
    input.field = "session";
    if input.short()?.len() > 32 {
        return Err(input.malformed());
    }
    input.field = "cipher suites";
    let suites = input.long()?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(input.malformed());
    }
    input.field = "compression methods";
    if input.short()?.is_empty() {
        return Err(input.malformed());
    }
    let mut hello = ClientHello::default();
    if input.bytes.is_empty() {
        // Clients of before 2003 have no extensions.
        return Ok(hello);
    }
    input.field = "extensions";
    let mut extensions = Input { bytes: input.long()?, field: "extensions" };
    input.end()?;
    let mut seen = Vec::new();
    while !extensions.bytes.is_empty() {
        let extension = extensions.number()?;
        let data = extensions.long()?;
        seen.push(extension);
        match extension {
            0 => hello.server_name = Some(server_name(data)?),
            16 => hello.protocols = protocols(data)?,
            43 => hello.tls13 = offers_tls13(data)?,
            // Encrypted ClientHello, and the draft before it that hid the name alone.
            0xfe0d | 0xffce => hello.encrypted = true,
            _ => {}
        }
    }
    // Sorted, because a client may send thousands.
    seen.sort_unstable();
    match seen.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ClientHelloError::Duplicate { extension: pair[0] }),
        None => Ok(hello),
    }
}

/// RFC 6066, section 3: a list, of which only one entry of the one kind was ever defined.
fn server_name(data: &[u8]) -> Result<Host, ClientHelloError> {
    let mut input = Input { bytes: data, field: "server name" };
    let mut list = Input { bytes: input.long()?, field: "server name" };
    input.end()?;
    let kind = list.byte()?;
    let name = list.long()?;
    if kind != 0 || !list.bytes.is_empty() {
        return Err(ClientHelloError::ServerNames);
    }
    // Clients send punycode; what is not ASCII would be read in more than one way.
    let name = std::str::from_utf8(name).ok().filter(|name| name.is_ascii());
    Ok(Host::parse(name.ok_or(ClientHelloError::ServerNames)?)?)
}

/// RFC 7301, section 3.1.
fn protocols(data: &[u8]) -> Result<Vec<Vec<u8>>, ClientHelloError> {
    let mut input = Input { bytes: data, field: "protocols" };
    let mut list = Input { bytes: input.long()?, field: "protocols" };
    input.end()?;
    let mut protocols = Vec::new();
    while !list.bytes.is_empty() {
        let protocol = list.short()?;
        if protocol.is_empty() {
            return Err(list.malformed());
        }
        protocols.push(protocol.to_vec());
    }
    Ok(protocols)
}

/// RFC 8446, section 4.2.1.
fn offers_tls13(data: &[u8]) -> Result<bool, ClientHelloError> {
    let mut input = Input { bytes: data, field: "versions" };
    let mut list = Input { bytes: input.short()?, field: "versions" };
    input.end()?;
    let mut offered = false;
    while !list.bytes.is_empty() {
        offered |= list.number()? == 0x0304;
    }
    Ok(offered)
}

#[cfg(test)]
mod tests;
