//! Drives one multiplexed connection over any async byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Limits, Role};

/// Why a connection could not be made or ended.
#[derive(Debug, Clone, Error)]
pub enum ConnectionError {
    /// The peer speaks no version that we speak.
    #[error("the other side speaks protocol versions {min} to {max}, this one {ours_min} to {ours_max}")]
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
#[derive(Debug, Clone)]
pub struct Connection {}

/// The streams that the peer opens, in order.
#[derive(Debug)]
pub struct Incoming {}

/// A stream that the peer asks for.
#[derive(Debug)]
pub struct IncomingStream {}

/// One bidirectional byte stream with flow control and half-close.
///
/// `poll_shutdown` ends our direction; reading gives end of file when the peer ended its own. Dropping a stream whose
/// directions have not both ended resets it: the peer's reads and writes fail with `ConnectionReset`.
#[derive(Debug)]
pub struct Stream {}

impl Connection {
    /// Shakes hands on `transport` and starts a task that drives it (needs a tokio runtime).
    pub async fn establish<T>(
        _transport: T,
        _role: Role,
        _limits: Limits,
    ) -> Result<(Self, Incoming), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        todo!()
    }

    /// Opens a stream with a request of at most [`Limits::open_payload`] bytes. Does not wait for the peer: a refusal
    /// shows up as a reset of the stream ([`Stream::reset_reason`]).
    pub async fn open(&self, _payload: &[u8]) -> Result<Stream, OpenError> {
        todo!()
    }

    /// The protocol version both sides settled on.
    pub fn version(&self) -> u16 {
        todo!()
    }

    /// Resolves when the connection has ended, with the reason.
    pub async fn closed(&self) -> ConnectionError {
        todo!()
    }

    /// Ends the connection after everything already written was handed to the transport.
    pub fn close(&self) {
        todo!()
    }
}

impl Incoming {
    /// The next stream the peer opens; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        todo!()
    }
}

impl IncomingStream {
    /// What the peer asks for.
    pub fn payload(&self) -> &[u8] {
        todo!()
    }
    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        todo!()
    }
    /// Takes the stream.
    pub fn accept(self) -> Stream {
        todo!()
    }
    /// Refuses it with one sentence for the peer (cut at 512 bytes).
    pub fn refuse(self, _reason: &str) {
        todo!()
    }
}

impl Stream {
    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        todo!()
    }
    /// Why the peer reset the stream, if it did.
    pub fn reset_reason(&self) -> Option<String> {
        todo!()
    }
    /// Resets the stream with one sentence for the peer.
    pub fn reset(self, _reason: &str) {
        todo!()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        todo!()
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        todo!()
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }
}
