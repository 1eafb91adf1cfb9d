//! Decodes a compressed answer that was to come uncompressed, so that it can be looked through.
//!
//! Requests with a credential ask for `identity`. A server that compresses all the same is decoded where the coding is
//! in the standard library of HTTP (gzip, deflate); others are not let through, because nobody can see what is in them.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::BodyExt as _;

use crate::exchange::{Body, BodyError, Withheld};

/// Input is decoded in pieces of this size: at most about a thousand times as much comes out of one.
const PIECE: usize = 512;

/// Gives a body without content coding and corrects the headers; withholds one of an unknown coding.
pub(crate) fn decoded(headers: &mut HeaderMap, body: Body) -> Result<Body, Withheld> {
    let mut codings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let text = value.to_str().unwrap_or("unreadable").to_ascii_lowercase();
        codings.extend(text.split(',').map(|coding| coding.trim().to_owned()));
    }
    codings.retain(|coding| !coding.is_empty() && coding != "identity");
    let decoder = match codings.as_slice() {
        [] => return Ok(body),
        [coding] if coding == "gzip" || coding == "x-gzip" => {
            Decoder::Gzip(MultiGzDecoder::new(Vec::new()))
        }
        [coding] if coding == "deflate" => Decoder::Deflate(ZlibDecoder::new(Vec::new())),
        _ => {
            return Err(Withheld(
                "the server compressed its answer to a request with a credential in a way that cannot be looked through"
                    .to_owned(),
            ));
        }
    };
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    Ok(Decoded { inner: body, decoder, input: Bytes::new(), later: VecDeque::new(), ended: false }
        .boxed_unsync())
}

enum Decoder {
    Gzip(MultiGzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Decoder {
    fn decode(&mut self, input: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => {
                decoder.write_all(input)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.write_all(input)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    fn finish(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => {
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }
}

struct Decoded {
    inner: Body,
    decoder: Decoder,
    input: Bytes,
    /// What comes after the data that is left in the decoder.
    later: VecDeque<Frame<Bytes>>,
    ended: bool,
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if !this.input.is_empty() {
                let piece = this.input.split_to(this.input.len().min(PIECE));
                let out = match this.decoder.decode(&piece) {
                    Ok(out) => out,
                    Err(error) => {
                        this.ended = true;
                        this.input = Bytes::new();
                        return Poll::Ready(Some(Err(error.into())));
                    }
                };
                if !out.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                }
                continue;
            }
            if let Some(frame) = this.later.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.input = data,
                    Err(trailers) => this.later.push_back(trailers),
                },
                Some(Err(error)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.ended = true;
                    match this.decoder.finish() {
                        Ok(out) if out.is_empty() => {}
                        Ok(out) => this.later.push_front(Frame::data(out.into())),
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    }
                }
            }
        }
    }
}
