//! The seams between the engine and what belongs to credentials and the log: who knows secrets is here a trait.
//!
//! For every request that passed the policy the engine asks its [`Credentials`] to prepare it: they replace headers,
//! and where they must the body, and may leave an [`Answer`] through which the response goes on its way back, so that
//! nothing of what was put in comes out again. Bodies are streams in both directions: an adapter may hold back what it
//! cannot judge yet and nothing more. What happened becomes a [`Record`] and goes to the [`Recorder`].

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hutch_policy::host::Authority;
use hutch_policy::log::Record;

/// Why a body broke off.
pub type BodyError = Box<dyn Error + Send + Sync>;
/// The body of a request or response.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// A future of an object's method.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A body of nothing.
pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Where a request goes and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Host and port, as they were judged.
    pub authority: Authority,
    /// Whether it goes over TLS.
    pub secure: bool,
}

/// A request ready to be sent.
pub struct Prepared {
    /// What is sent. Its `content-length` is made anew from the body's exact size, where it has one.
    pub request: Request<Body>,
    /// The service whose credential it was given, for the log.
    pub credential: Option<String>,
    /// What the response goes through.
    pub answer: Option<Box<dyn Answer>>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The headers hold the secret.
        f.debug_struct("Prepared").field("credential", &self.credential).finish_non_exhaustive()
    }
}

/// A request or a response that may not go on, with one sentence for the client that says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Withheld(pub String);

/// What [`Answer::receive`] has to say about a response, in its extensions, for the log: that a 401 came because the host
/// has no credential for the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note(pub String);

/// Gives requests their credentials.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// Prepares a request that passed the policy. The headers that belong to one hop were removed before.
    fn prepare<'a>(
        &'a self,
        destination: &'a Destination,
        request: Request<Body>,
    ) -> Pending<'a, Result<Prepared, Withheld>>;

    /// Each service's name, and where its credential was found, never what it is.
    fn sources(&self) -> Pending<'_, Vec<(String, Option<String>)>>;
}

/// Takes the response to a prepared request.
pub trait Answer: Send {
    /// Gives the response that the client gets.
    fn receive(
        self: Box<Self>,
        response: Response<Body>,
    ) -> Pending<'static, Result<Response<Body>, Withheld>>;

    /// What the bytes from the server go through after the connection was upgraded (WebSocket); none for unchanged.
    fn upgraded(&self) -> Option<Box<dyn Scrub>> {
        None
    }
}

/// Changes a stream of bytes in place, without changing its length.
pub trait Scrub: Send {
    /// Takes what arrived and appends to `out` what may go on: what is held back comes out with later bytes, or, at
    /// the `end`, now.
    fn scrub(&mut self, arrived: &[u8], end: bool, out: &mut Vec<u8>);

    /// Whether [`Scrub::release`] would give anything.
    fn releasable(&self) -> bool {
        false
    }

    /// Nothing followed for a while: appends those of the bytes held back that tell nothing.
    fn release(&mut self, _out: &mut Vec<u8>) {}
}

/// Keeps what happened.
pub trait Recorder: Send + Sync + fmt::Debug {
    /// Adds a line to the log. Never waits for a disk.
    fn append(&self, record: Record);
}

/// The credentials of a sandbox that has none.
#[derive(Debug)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn prepare<'a>(
        &'a self,
        _: &'a Destination,
        request: Request<Body>,
    ) -> Pending<'a, Result<Prepared, Withheld>> {
        Box::pin(async { Ok(Prepared { request, credential: None, answer: None }) })
    }

    fn sources(&self) -> Pending<'_, Vec<(String, Option<String>)>> {
        Box::pin(async { Vec::new() })
    }
}

/// Tells the worker's own log, and keeps nothing.
#[derive(Debug)]
pub struct Tracing;

impl Recorder for Tracing {
    fn append(&self, record: Record) {
        tracing::info!(
            place = record.place(),
            rule = record.rule,
            decision = record.decision.as_str()
        );
    }
}
