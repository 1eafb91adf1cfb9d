//! What goes out: a response, with a framing that no two readers read differently.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, Version, header};
use hyper::body::{Body as _, Frame};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Asked;
use crate::exchange::{Body, BodyError};

/// Bytes that are collected before they are written.
const BATCH: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length,
    Chunked,
    Close,
}

/// Writes a response; whether the connection can be used for another request. `gone` resolves when the client is gone.
pub(super) async fn write<W, G>(
    writer: &mut W,
    response: Response<Body>,
    asked: Asked,
    gone: impl Fn() -> G,
) -> io::Result<bool>
where
    W: AsyncWrite + Unpin,
    G: Future<Output = io::Error>,
{
    let (parts, mut body) = response.into_parts();
    let bodiless = asked.head
        || parts.status.is_informational()
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED;
    let length = body.size_hint().exact();
    let framing = match length {
        _ if bodiless => Framing::None,
        Some(_) => Framing::Length,
        None if asked.version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::Close,
    };
    let keep = asked.keep_alive && framing != Framing::Close;
    let mut out = BytesMut::with_capacity(1024);
    status_line(&mut out, parts.status);
    fields(&mut out, &parts.headers, bodiless && parts.status != StatusCode::NO_CONTENT);
    match (framing, length) {
        (Framing::Length, Some(length)) => {
            put(&mut out, format_args!("content-length: {length}\r\n"));
        }
        (Framing::Chunked, _) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    if !keep {
        out.extend_from_slice(b"connection: close\r\n");
    } else if asked.version == Version::HTTP_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if framing != Framing::None {
        write_body(writer, &mut out, &mut body, framing, gone).await?;
    }
    writer.write_all(&out).await?;
    writer.flush().await?;
    Ok(keep)
}

/// Writes a body; what of it is left in `out` at the end is still to be written.
async fn write_body<W, G>(
    writer: &mut W,
    out: &mut BytesMut,
    body: &mut Body,
    framing: Framing,
    gone: impl Fn() -> G,
) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    G: Future<Output = io::Error>,
{
    let mut left = body.size_hint().exact();
    loop {
        let frame = match soon(body).await {
            Some(frame) => frame,
            None => {
                // Nothing more at the moment: what there is goes out now.
                writer.write_all(out).await?;
                writer.flush().await?;
                out.clear();
                tokio::select! {
                    frame = next(body) => frame,
                    error = gone() => return Err(error),
                }
            }
        };
        let Some(frame) = frame else {
            if framing == Framing::Chunked {
                out.extend_from_slice(b"0\r\n\r\n");
            }
            break;
        };
        match frame.map_err(io::Error::other)?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                if let Some(left) = &mut left {
                    *left =
                        left.checked_sub(data.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
                }
                send(writer, out, &data, framing).await?;
            }
            Err(frame) => {
                if framing == Framing::Chunked {
                    out.extend_from_slice(b"0\r\n");
                    if let Ok(trailers) = frame.into_trailers() {
                        fields(out, &trailers, false);
                    }
                    out.extend_from_slice(b"\r\n");
                }
                break;
            }
        }
    }
    if framing == Framing::Length && left != Some(0) {
        // Shorter than it said: the client must not take it for whole.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The head of a response after which the stream is something else.
pub(super) fn switch_head(response: &Response<()>) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    status_line(&mut out, response.status());
    for (name, value) in response.headers() {
        field(&mut out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    out: &mut BytesMut,
    data: &Bytes,
    framing: Framing,
) -> io::Result<()> {
    if framing == Framing::Chunked {
        put(out, format_args!("{:x}\r\n", data.len()));
    }
    if out.len() + data.len() <= BATCH {
        out.extend_from_slice(data);
    } else {
        writer.write_all(out).await?;
        out.clear();
        writer.write_all(data).await?;
    }
    if framing == Framing::Chunked {
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

type Next = Option<Result<Frame<Bytes>, BodyError>>;

async fn next(body: &mut Body) -> Next {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// The next frame, if it is there.
async fn soon(body: &mut Body) -> Option<Next> {
    poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        })
    })
    .await
}

fn status_line(out: &mut BytesMut, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or_default();
    put(out, format_args!("HTTP/1.1 {} {reason}\r\n", status.as_str()));
}

/// All fields but those that frame a message or belong to one hop.
fn fields(out: &mut BytesMut, fields: &HeaderMap, with_length: bool) {
    for (name, value) in fields {
        let framing = *name == header::TRANSFER_ENCODING
            || *name == header::CONNECTION
            || *name == header::UPGRADE
            || (*name == header::CONTENT_LENGTH && !with_length);
        if !framing {
            field(out, name.as_str(), value.as_bytes());
        }
    }
}

fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    use bytes::BufMut as _;
    // Writing to memory that grows does not fail.
    out.writer().write_fmt(text).ok();
}
