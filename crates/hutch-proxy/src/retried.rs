//! Watches a tunnel for a second ClientHello: it must name the server that the first one named.
//!
//! A server may ask for another ClientHello (HelloRetryRequest, RFC 8446, 4.1.4), which the client sends in the clear
//! again. It must be the same but for a few extensions, but not every server compares, and the name in it is the one that
//! such a server goes by. So both directions are looked at until the server has chosen:
//!
//! ```text
//!   client  22 ClientHello ─ (20, 21, 23: passed over) ─ 22 ClientHello    another name: cut
//!   server  22 ServerHello: the watch is over │ HelloRetryRequest: from now on the client's next handshake message
//!                                              │ must be a ClientHello that can be read and has the name
//! ```
//!
//! In a session that is resumed by TLS 1.2 the client's next message is encrypted and looks like anything; that it is no
//! ClientHello matters only once the server has asked for one.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hutch_policy::client_hello::Reader;
use hutch_policy::host::Host;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Io;

const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
const SERVER_HELLO_MESSAGE: u8 = 2;
/// Record, message, version, and the 32 bytes that tell a HelloRetryRequest.
const SERVER_HELLO: usize = RECORD_HEADER + 4 + 2 + 32;
/// SHA-256 of `HelloRetryRequest`, in the place of the random bytes (RFC 8446, 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// What a tunnel of TLS has said in the clear.
#[derive(Debug)]
struct Watch {
    /// As the first ClientHello has it.
    name: Option<Host>,
    /// Bytes of a record's header.
    header: Vec<u8>,
    /// What is left of the record.
    in_record: usize,
    /// Reads the record at hand, if it is of a handshake.
    reader: Option<Reader>,
    /// ClientHellos so far.
    hellos: u32,
    /// The client said something in a handshake that is no ClientHello; it is not looked at any further.
    other: bool,
    server: Vec<u8>,
    /// The server asks for another ClientHello.
    retries: bool,
    done: bool,
}

/// The client says another name.
#[derive(Debug)]
struct Renamed;

impl Watch {
    fn new(name: Option<Host>) -> Self {
        Self {
            name,
            header: Vec::with_capacity(RECORD_HEADER),
            in_record: 0,
            reader: None,
            hellos: 0,
            other: false,
            server: Vec::with_capacity(SERVER_HELLO),
            retries: false,
            done: false,
        }
    }

    fn client(&mut self, mut bytes: &[u8]) -> Result<(), Renamed> {
        while !bytes.is_empty() && !self.other && !self.done {
            let piece;
            if self.in_record == 0 {
                let missing = RECORD_HEADER - self.header.len();
                (piece, bytes) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(piece);
                if self.header.len() == RECORD_HEADER {
                    self.begin_record();
                }
                continue;
            }
            (piece, bytes) = bytes.split_at(self.in_record.min(bytes.len()));
            self.in_record -= piece.len();
            self.read(piece)?;
        }
        self.judge()
    }

    fn begin_record(&mut self) {
        let header = std::mem::take(&mut self.header);
        self.in_record = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] == HANDSHAKE {
            let reader = self.reader.get_or_insert_default();
            self.other |= !matches!(reader.push(&header), Ok(None));
        } else if self.reader.is_some() {
            // Nothing may stand between the records of a message.
            self.other = true;
        }
    }

    fn read(&mut self, piece: &[u8]) -> Result<(), Renamed> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        match reader.push(piece) {
            Ok(None) => {}
            Ok(Some(hello)) => {
                self.reader = None;
                self.hellos += 1;
                if hello.server_name != self.name {
                    return Err(Renamed);
                }
                self.done |= self.hellos > 1;
            }
            Err(_) => self.other = true,
        }
        Ok(())
    }

    fn server(&mut self, bytes: &[u8]) -> Result<(), Renamed> {
        let missing = SERVER_HELLO - self.server.len();
        self.server.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        let is = |at: usize, byte| self.server.get(at).is_none_or(|there| *there == byte);
        if !is(0, HANDSHAKE) || !is(RECORD_HEADER, SERVER_HELLO_MESSAGE) {
            self.done = true;
        } else if self.server.len() == SERVER_HELLO {
            self.retries = self.server.ends_with(&RETRY);
            self.done |= !self.retries;
        }
        self.judge()
    }

    fn judge(&self) -> Result<(), Renamed> {
        if self.retries && self.other { Err(Renamed) } else { Ok(()) }
    }
}

/// Whose bytes a [`Watched`] reads.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// One side of a watched tunnel.
struct Watched {
    inner: Box<dyn Io>,
    side: Side,
    /// None once there is nothing more to be seen.
    watch: Option<Arc<Mutex<Watch>>>,
    renamed: Arc<AtomicBool>,
}

/// Both sides of a tunnel whose client named this server, and whether it ended because it named another one.
pub(crate) fn watched(
    name: Option<Host>,
    client: Box<dyn Io>,
    server: Box<dyn Io>,
) -> (Box<dyn Io>, Box<dyn Io>, Arc<AtomicBool>) {
    let watch = Arc::new(Mutex::new(Watch::new(name)));
    let renamed = Arc::new(AtomicBool::new(false));
    let side = |inner, side| {
        let (watch, renamed) = (Some(Arc::clone(&watch)), Arc::clone(&renamed));
        Box::new(Watched { inner, side, watch, renamed })
    };
    (side(client, Side::Client), side(server, Side::Server), renamed)
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let Some(watch) = &self.watch else { return Poll::Ready(Ok(())) };
        let (seen, done) = {
            let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = &buffer.filled()[before..];
            let seen = match self.side {
                Side::Client => watch.client(bytes),
                Side::Server => watch.server(bytes),
            };
            (seen, watch.done)
        };
        if done {
            self.watch = None;
        }
        Poll::Ready(seen.map_err(|Renamed| {
            self.renamed.store(true, Ordering::Relaxed);
            io::ErrorKind::PermissionDenied.into()
        }))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], &length[..], payload].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind], &length[1..], body].concat()
    }

    pub(crate) fn client_hello(name: &str) -> Vec<u8> {
        let sized =
            |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let entry = [&[0][..], &sized(name.as_bytes())].concat();
        let extension = [&[0, 0][..], &sized(&sized(&entry))].concat();
        let body =
            [&[3, 3][..], &[7; 32], &[0], &sized(&[0x13, 1]), &[1, 0], &sized(&extension)].concat();
        message(1, &body)
    }

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        record(22, &message(2, &[&[3, 3][..], &random, &[0, 0x13, 1, 0]].concat()))
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(Some(Host::parse("good.test").unwrap()));
        watch.client(&record(22, &client_hello("good.test"))).unwrap();
        watch
    }

    #[test]
    fn another_name_is_noticed_however_it_is_cut_and_whoever_speaks_first() {
        let other = [
            record(20, &[1]),
            record(23, b"early data"),
            record(22, &client_hello("blocked.test")[..20]),
            record(22, &client_hello("blocked.test")[20..]),
        ]
        .concat();
        for size in [1, 2, 7, 1000] {
            // Before the server has answered, and after.
            for answer in [&[][..], &server_hello(RETRY)] {
                let mut watch = watch();
                watch.server(answer).unwrap();
                let seen = other.chunks(size).try_for_each(|piece| watch.client(piece));
                assert!(seen.is_err(), "{size}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_matters_once_the_server_asks_again() {
        let encrypted = record(22, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut early = watch();
        early.client(&encrypted).unwrap();
        assert!(early.server(&server_hello(RETRY)).is_err());
        let mut late = watch();
        late.server(&server_hello(RETRY)).unwrap();
        assert!(late.client(&encrypted).is_err());
        let mut resumed = watch();
        resumed.client(&encrypted).unwrap();
        resumed.server(&server_hello([9; 32])).unwrap();
        assert!(resumed.done);
        resumed.client(&record(22, &client_hello("blocked.test"))).unwrap();
    }

    #[test]
    fn the_same_name_again_is_fine_and_ends_the_watch() {
        for size in [1, 50] {
            let mut watch = watch();
            for piece in server_hello(RETRY).chunks(size) {
                watch.server(piece).unwrap();
                assert!(!watch.done);
            }
            for piece in record(22, &client_hello("GOOD.test")).chunks(size) {
                watch.client(piece).unwrap();
            }
            assert!(watch.done);
        }
    }

    #[test]
    fn a_server_that_chooses_or_refuses_ends_the_watch() {
        for answer in [server_hello([9; 32]), record(21, &[2, 40]), b"HTTP/1.1 400".to_vec()] {
            let mut watch = watch();
            for piece in answer.chunks(1) {
                watch.server(piece).unwrap();
            }
            assert!(watch.done, "{answer:?}");
        }
    }
}
