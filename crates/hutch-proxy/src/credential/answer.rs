//! The way back of requests that were given a credential, or would have been.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::ext::ReasonPhrase;

use crate::exchange::{Answer, Body, Note, Pending, Scrub, Withheld};
use crate::scrub::body::scrubbed;
use crate::scrub::decode::decoded;
use crate::scrub::{Needles, Scrubber};

/// Scrubs head, body, trailers, and what follows an upgrade.
#[derive(Debug)]
pub(super) struct ScrubbedAnswer {
    needles: Arc<Needles>,
    bodiless: bool,
}

impl ScrubbedAnswer {
    pub(super) fn to<B>(request: &Request<B>, needles: Arc<Needles>) -> Self {
        Self { needles, bodiless: request.method() == Method::HEAD }
    }
}

/// Scrubs a response. One without a body keeps the headers that tell of one.
pub(crate) fn scrub_response(
    needles: &Arc<Needles>,
    bodiless: bool,
    response: Response<Body>,
) -> Result<Response<Body>, Withheld> {
    let (mut parts, body) = response.into_parts();
    // A server may write anything there; the standard phrase is put in its place.
    parts.extensions.remove::<ReasonPhrase>();
    needles.scrub_headers(&mut parts.headers);
    let none = bodiless
        || parts.status.is_informational()
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if none {
        return Ok(Response::from_parts(parts, body));
    }
    let body = decoded(&mut parts.headers, body)?;
    Ok(Response::from_parts(parts, scrubbed(body, Arc::clone(needles))))
}

impl Answer for ScrubbedAnswer {
    fn receive(
        self: Box<Self>,
        response: Response<Body>,
    ) -> Pending<'static, Result<Response<Body>, Withheld>> {
        Box::pin(async move { scrub_response(&self.needles, self.bodiless, response) })
    }

    fn upgraded(&self) -> Option<Box<dyn Scrub>> {
        Some(Box::new(Scrubber::new(Arc::clone(&self.needles))))
    }
}

/// Says for the log why the server does not know the client.
#[derive(Debug)]
pub(super) struct NotedAnswer {
    pub(super) note: String,
}

impl Answer for NotedAnswer {
    fn receive(
        self: Box<Self>,
        mut response: Response<Body>,
    ) -> Pending<'static, Result<Response<Body>, Withheld>> {
        if response.status() == StatusCode::UNAUTHORIZED {
            response.extensions_mut().insert(Note(self.note));
        }
        Box::pin(std::future::ready(Ok(response)))
    }
}
