//! A body that goes through a [`Scrubber`], data and trailers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::Sleep;

use super::{Needles, Scrubber};
use crate::exchange::{Body, BodyError, Scrub as _};

/// After so long without more, the few bytes go out that may.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

/// Puts a scrubber around a body.
pub(crate) fn scrubbed(inner: Body, needles: Arc<Needles>) -> Body {
    let scrubber = Scrubber::new(needles);
    Scrubbed { inner, scrubber, trailers: None, ended: false, quiet: None }.boxed_unsync()
}

struct Scrubbed {
    inner: Body,
    scrubber: Scrubber,
    /// They come after what was held back.
    trailers: Option<Frame<Bytes>>,
    ended: bool,
    quiet: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Scrubbed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(trailers)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let out = match Pin::new(&mut this.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.quiet = None;
                    match frame.into_data() {
                        Ok(data) => this.scrubber.push(data),
                        Err(frame) => {
                            let mut trailers = frame.into_trailers().unwrap_or_default();
                            this.scrubber.needles.scrub_headers(&mut trailers);
                            this.trailers = Some(Frame::trailers(trailers));
                            this.scrubber.finish()
                        }
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    this.ended = true;
                    this.scrubber.finish()
                }
                Poll::Pending => {
                    if !this.scrubber.releasable() {
                        return Poll::Pending;
                    }
                    let quiet =
                        this.quiet.get_or_insert_with(|| Box::pin(tokio::time::sleep(QUIET)));
                    match quiet.as_mut().poll(context) {
                        Poll::Ready(()) => {
                            this.quiet = None;
                            let mut out = Vec::new();
                            this.scrubber.release(&mut out);
                            Bytes::from(out)
                        }
                        Poll::Pending => return Poll::Pending,
                    }
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_held = self.trailers.is_none() && self.scrubber.held() == 0;
        nothing_held && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.scrubber.held() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
