//! Drives one multiplexed connection over any async byte stream.
//!
//! One task per connection owns the transport (`driver`); handles and streams talk to it through the multiplexer
//! behind a lock (`shared`), which nobody holds across I/O. Invariant: whoever waits on a stream is woken by what the
//! peer does to that stream or by the end of the connection, never by another stream.

mod driver;
mod shared;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::Hello;
use crate::mux::Mux;
use crate::{Limits, Role};
use driver::{Driver, greet};
use shared::Shared;

/// Why a connection could not be made or ended.
#[derive(Debug, Clone, Error)]
pub enum ConnectionError {
    /// The peer speaks no version that we speak.
    #[error(
        "the other side speaks protocol versions {min} to {max}, this one {ours_min} to {ours_max}"
    )]
    Version { min: u16, max: u16, ours_min: u16, ours_max: u16 },
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// The transport failed or ended.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Error)]
pub enum OpenError {
    /// The peer refused.
    #[error("refused: {0}")]
    Refused(String),
    /// Too many streams are open, or the request is too large.
    #[error("over a limit of the connection: {0}")]
    Limit(&'static str),
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed(#[source] ConnectionError),
}

/// A handle on a connection; clones share it. The connection ends when the last handle, its [`Incoming`] and every
/// stream are gone, or when the transport ends.
#[derive(Debug)]
pub struct Connection {
    user: User,
}

/// The streams that the peer opens, in order.
#[derive(Debug)]
pub struct Incoming {
    user: User,
}

/// A stream that the peer asks for.
#[derive(Debug)]
pub struct IncomingStream {
    stream: Stream,
    payload: Vec<u8>,
}

/// One bidirectional byte stream with flow control and half-close.
///
/// `poll_shutdown` ends our direction; reading gives end of file when the peer ended its own. Dropping a stream whose
/// directions have not both ended resets it: the peer's writes fail with `ConnectionReset`, and so do its reads after
/// what was written before, as far as the window had room for it. A direction that was ended before the drop is still
/// carried whole: all that was written arrives, and then its end.
#[derive(Debug)]
pub struct Stream {
    user: User,
    id: u32,
    /// The multiplexer was told that we let go.
    gone: bool,
}

/// Keeps a connection alive.
#[derive(Debug)]
struct User(Arc<Shared>);

impl User {
    fn of(shared: &Arc<Shared>) -> Self {
        shared.join();
        Self(Arc::clone(shared))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self { user: User::of(&self.user.0) }
    }
}

impl Connection {
    /// Shakes hands on `transport` and starts a task that drives it (needs a tokio runtime). Waits for the peer as long
    /// as it takes: a caller that will not wraps this in a time-out.
    pub async fn establish<T>(
        transport: T,
        role: Role,
        limits: Limits,
    ) -> Result<(Self, Incoming), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ours = Hello::ours(limits);
        let (transport, theirs) = greet(transport, role, ours).await?;
        let version = ours.settle(&theirs).ok_or(ConnectionError::Version {
            min: theirs.version_min,
            max: theirs.version_max,
            ours_min: ours.version_min,
            ours_max: ours.version_max,
        })?;
        let shared = Arc::new(Shared::new(Mux::new(role, limits, theirs), version));
        let handles = (Self { user: User::of(&shared) }, Incoming { user: User::of(&shared) });
        tokio::spawn(Driver::new(transport, shared).run());
        Ok(handles)
    }

    /// Opens a stream with a request of at most [`Limits::open_payload`] bytes. Does not wait for the peer: a refusal
    /// shows up as a reset of the stream ([`Stream::reset_reason`]).
    #[expect(
        clippy::unused_async,
        reason = "part of the interface: a later version may wait for room"
    )]
    pub async fn open(&self, payload: &[u8]) -> Result<Stream, OpenError> {
        let id = self.user.0.open(payload)?;
        Ok(Stream::new(&self.user.0, id))
    }

    /// The protocol version both sides settled on.
    pub fn version(&self) -> u16 {
        self.user.0.version
    }

    /// Resolves when the connection has ended, with the reason.
    pub async fn closed(&self) -> ConnectionError {
        self.user.0.ended().await
    }

    /// Ends the connection after everything already written was handed to the transport.
    pub fn close(&self) {
        self.user.0.close();
    }
}

impl Incoming {
    /// The next stream the peer opens; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        let shared = &self.user.0;
        let (id, payload) = poll_fn(|context| shared.poll_incoming(context)).await?;
        Some(IncomingStream { stream: Stream::new(shared, id), payload })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.user.0.stop_taking();
    }
}

impl IncomingStream {
    /// What the peer asks for.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        self.stream.id
    }

    /// Takes the stream.
    pub fn accept(self) -> Stream {
        self.stream
    }

    /// Refuses it with one sentence for the peer (cut at 512 bytes).
    pub fn refuse(self, reason: &str) {
        self.stream.reset(reason);
    }
}

impl Stream {
    fn new(shared: &Arc<Shared>, id: u32) -> Self {
        Self { user: User::of(shared), id, gone: false }
    }

    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Why the peer reset the stream, if it did.
    pub fn reset_reason(&self) -> Option<String> {
        self.user.0.reset_reason(self.id)
    }

    /// Resets the stream with one sentence for the peer (cut at 512 bytes).
    pub fn reset(mut self, reason: &str) {
        self.gone = true;
        self.user.0.let_go(self.id, Some(reason));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.gone {
            self.user.0.let_go(self.id, None);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.user.0.poll_read(self.id, context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.user.0.poll_write(self.id, context, bytes)
    }

    /// The driver sends without delay whatever was written; there is nothing to wait for but the peer's credit.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.user.0.end_writing(self.id);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
