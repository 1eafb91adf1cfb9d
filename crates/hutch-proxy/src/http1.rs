//! HTTP/1 as the server of the guest: one request after the other on a stream, each handed to a [`Service`].
//!
//! Heads and bodies are read by our own strict parsers ([`crate::head`], [`crate::chunked`]); responses are written with
//! a framing of our own making. Bodies are streams both ways: a chunk goes on as soon as it is there, and is not read
//! before the last one went on. After a request that cannot be read the connection ends: nobody knows where the next
//! one would begin.

mod request;
mod response;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Response, Version};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::exchange::{Body, Pending};
use crate::head::{Fault, Finder, Framing, Head, parse};
use crate::stream::{Io, Rewound};

use request::Reader;

/// How long a head may take from its first byte to its last.
const HEAD: Duration = Duration::from_secs(30);
/// How long a connection may wait for its next request.
const IDLE: Duration = Duration::from_secs(300);
/// What is read of a body that nobody wanted, so that the next request can be read.
const DRAINED: usize = 256 << 10;
const DRAIN: Duration = Duration::from_secs(2);

/// What happens to a request.
pub(crate) enum Reply {
    /// It is answered.
    Response(Response<Body>),
    /// It is answered with a head alone; then the stream is something else.
    Switch(Response<()>, Box<dyn FnOnce(Box<dyn Io>) -> Pending<'static, ()> + Send>),
}

/// Answers requests.
pub(crate) trait Service: Send + Sync {
    /// Answers one; the body's bytes are counted by whoever reads them.
    fn call(&self, head: Head, body: Body) -> Pending<'_, Reply>;

    /// Answers what is no request.
    fn fault(&self, fault: Fault) -> Response<Body>;
}

/// What is to be known of a request to answer it.
#[derive(Debug, Clone, Copy)]
struct Asked {
    head: bool,
    version: Version,
    keep_alive: bool,
}

/// Serves a stream to its end; `before` was read from it already.
pub(crate) async fn serve(io: Box<dyn Io>, before: Bytes, service: &dyn Service) {
    // An error means that the client is gone or that a body broke off: dropping the stream resets it.
    if let Err(error) = Connection::new(io, before).serve(service).await {
        tracing::debug!(%error, "a connection of the guest broke off");
    }
}

struct Connection {
    reader: Arc<Mutex<Reader>>,
    writer: WriteHalf<Box<dyn Io>>,
}

impl Connection {
    fn new(io: Box<dyn Io>, before: Bytes) -> Self {
        let (reader, writer) = tokio::io::split(io);
        Self { reader: Arc::new(Mutex::new(Reader::new(reader, before))), writer }
    }

    async fn serve(mut self, service: &dyn Service) -> io::Result<()> {
        let mut idle = HEAD;
        loop {
            let head = match read_head(&self.reader, idle).await {
                Ok(Some(head)) => head,
                Ok(None) => return self.writer.shutdown().await,
                Err(Ended::Fault(fault)) => return self.refuse(service.fault(fault)).await,
                Err(Ended::Late) => return self.writer.shutdown().await,
                Err(Ended::Io(error)) => return Err(error),
            };
            idle = IDLE;
            let asked = Asked {
                head: head.method == Method::HEAD,
                version: head.version,
                keep_alive: head.keep_alive,
            };
            if head.method == Method::CONNECT && head.framing != Framing::Length(0) {
                return self.refuse(service.fault(Fault::Body)).await;
            }
            let (body, signal) = request::body(&self.reader, head.framing, head.expects_continue);
            let reply = {
                let mut call = service.call(head, body);
                loop {
                    tokio::select! {
                        biased;
                        reply = &mut call => break reply,
                        event = signal.event(&self.reader) => match event {
                            request::Event::Continue => {
                                self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                                self.writer.flush().await?;
                            }
                            request::Event::Gone(error) => return Err(error),
                        },
                    }
                }
            };
            match reply {
                Reply::Response(response) => {
                    let whole = response::write(&mut self.writer, response, asked, || {
                        signal.gone(&self.reader)
                    });
                    let keep = whole.await?;
                    if !keep || !request::drained(&self.reader, DRAINED, DRAIN).await {
                        return self.writer.shutdown().await;
                    }
                }
                Reply::Switch(response, then) => {
                    self.writer.write_all(&response::switch_head(&response)).await?;
                    self.writer.flush().await?;
                    let Some(io) = self.whole() else {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    };
                    then(io).await;
                    return Ok(());
                }
            }
        }
    }

    async fn refuse(&mut self, response: Response<Body>) -> io::Result<()> {
        let asked = Asked { head: false, version: Version::HTTP_11, keep_alive: false };
        response::write(&mut self.writer, response, asked, std::future::pending).await?;
        self.writer.shutdown().await
    }

    /// The stream again, with what was read ahead.
    fn whole(self) -> Option<Box<dyn Io>> {
        let reader = Arc::into_inner(self.reader)?;
        let reader = reader.into_inner().ok()?;
        let (half, before): (ReadHalf<Box<dyn Io>>, Bytes) = reader.into_parts();
        let io = half.unsplit(self.writer);
        Some(if before.is_empty() { io } else { Box::new(Rewound::new(before, io)) })
    }
}

/// The next head; none at the end of the stream.
async fn read_head(reader: &Mutex<Reader>, idle: Duration) -> Result<Option<Head>, Ended> {
    if !timeout(idle, request::arrived(reader, 0)).await.map_err(|_| Ended::Late)?? {
        return Ok(None);
    }
    timeout(HEAD, async {
        let mut finder = Finder::default();
        loop {
            let (found, length) = request::look(reader, |bytes| finder.find(bytes));
            if let Some(end) = found.map_err(Ended::Fault)? {
                let bytes: BytesMut = request::take(reader, end);
                return parse(&bytes).map(Some).map_err(Ended::Fault);
            }
            if !request::arrived(reader, length).await? {
                return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    })
    .await
    .map_err(|_| Ended::Late)?
}

/// Why there is no further request.
enum Ended {
    Fault(Fault),
    Late,
    Io(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
