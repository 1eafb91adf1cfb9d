//! HTTP towards the server: one connection of either version, and what is sent on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hutch_policy::host::Authority;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::tls::Protocols;
use super::{Dialed, Key, Unreachable, Upstreams};
use crate::exchange::Body;
use crate::stream::Io;

/// Requests at a time on one HTTP/2 connection; what servers commonly allow.
const STREAMS: usize = 100;
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Largest head of a response.
const LARGEST_HEAD: usize = 64 << 10;
const MOST_HEADERS: usize = 256;

/// Sends requests on one connection.
#[derive(Debug)]
pub(crate) enum Sender {
    /// One at a time.
    Http1(http1::SendRequest<Body>),
    /// Many.
    Http2 {
        sender: http2::SendRequest<Body>,
        /// How many are on their way, of all that share the connection.
        load: Arc<AtomicUsize>,
        /// This one is among them.
        counted: bool,
    },
}

/// What came of sending.
#[derive(Debug)]
pub(crate) enum Sent {
    /// The response's head has come.
    Response(Response<Incoming>),
    /// Nothing was sent, here it is again.
    Unsent(Box<Request<Body>>),
    /// It failed.
    Failed,
}

impl Sender {
    /// Whether requests can be sent.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Http1(sender) => !sender.is_closed(),
            Self::Http2 { sender, .. } => !sender.is_closed(),
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Http2 { .. })
    }

    pub(super) fn has_room(&self) -> bool {
        matches!(self, Self::Http2 { load, .. } if load.load(Ordering::Relaxed) < STREAMS)
    }

    /// Another sender on the same connection.
    pub(crate) fn share(&self) -> Option<Self> {
        let Self::Http2 { sender, load, .. } = self else { return None };
        load.fetch_add(1, Ordering::Relaxed);
        Some(Self::Http2 { sender: sender.clone(), load: Arc::clone(load), counted: true })
    }

    /// Whether the next request can be sent at once.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2 { sender, .. } => sender.is_ready(),
        }
    }

    /// Waits until the next request can be sent; false if none can.
    pub(crate) async fn settle(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2 { sender, .. } => sender.ready().await.is_ok(),
        }
    }

    /// Whether this is HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.is_shared()
    }

    /// Sends one request.
    pub(crate) async fn send(&mut self, request: Request<Body>) -> Sent {
        let sent = match self {
            Self::Http1(sender) => {
                if sender.ready().await.is_err() {
                    return Sent::Unsent(Box::new(request));
                }
                sender.try_send_request(request).await
            }
            Self::Http2 { sender, .. } => {
                if sender.ready().await.is_err() {
                    return Sent::Unsent(Box::new(request));
                }
                sender.try_send_request(request).await
            }
        };
        match sent {
            Ok(response) => Sent::Response(response),
            Err(mut error) => match error.take_message() {
                Some(request) => Sent::Unsent(Box::new(request)),
                None => {
                    tracing::debug!(error = %error.into_error(), "a request failed");
                    Sent::Failed
                }
            },
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Self::Http2 { load, counted: true, .. } = self {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Upstreams {
    /// Speaks HTTP on a connection that was just made.
    pub(crate) async fn handshake(&self, key: &Key, dialed: Dialed) -> Result<Sender, Unreachable> {
        if !key.secure {
            return http1(dialed.io, &key.place).await;
        }
        let protocols = if key.http1 { Protocols::Http1 } else { Protocols::Http };
        let host = &key.name;
        let stream = self.tls_of(host).connect(dialed.io, host, protocols).await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            http2(Box::new(stream), &key.place).await
        } else {
            http1(Box::new(stream), &key.place).await
        }
    }
}

async fn http1(io: Box<dyn Io>, place: &Authority) -> Result<Sender, Unreachable> {
    let handshake = http1::Builder::new()
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD * 2)
        .handshake(TokioIo::new(io))
        .await;
    let (sender, connection) = handshake
        .map_err(|_| Unreachable::failed(format!("the connection to {place} broke off")))?;
    tokio::spawn(connection.with_upgrades());
    Ok(Sender::Http1(sender))
}

async fn http2(io: Box<dyn Io>, place: &Authority) -> Result<Sender, Unreachable> {
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(LARGEST_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .handshake(TokioIo::new(io))
        .await;
    let (sender, connection) = handshake
        .map_err(|_| Unreachable::failed(format!("the connection to {place} broke off")))?;
    tokio::spawn(connection);
    Ok(Sender::Http2 { sender, load: Arc::default(), counted: false })
}
