//! What comes in: bytes ahead, and the body of the request that is being served.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncReadExt as _, ReadHalf};
use tokio::sync::Notify;

use crate::chunked::{Chunked, Part};
use crate::exchange::{Body, BodyError, empty, full};
use crate::head::{Fault, Framing};
use crate::stream::Io;

/// Bytes that are read at once.
const READ: usize = 64 << 10;
/// Bytes of later requests that are read while one is served.
const AHEAD: usize = 64 << 10;

/// The incoming half of a connection.
pub(super) struct Reader {
    io: ReadHalf<Box<dyn Io>>,
    buffer: BytesMut,
    ended: bool,
    body: Decode,
    /// The body is not wanted any more: whoever still reads it gets an error.
    detached: bool,
}

/// What is left of the current body.
enum Decode {
    Length(u64),
    Chunked(Chunked),
}

impl Decode {
    fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_done(),
        }
    }
}

fn locked(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    pub(super) fn new(io: ReadHalf<Box<dyn Io>>, before: Bytes) -> Self {
        Self {
            io,
            buffer: BytesMut::from(before),
            ended: false,
            body: Decode::Length(0),
            detached: false,
        }
    }

    pub(super) fn into_parts(self) -> (ReadHalf<Box<dyn Io>>, Bytes) {
        (self.io, self.buffer.freeze())
    }

    /// Reads more; false at the end.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        // Read into a buffer of the connection's own only once there is something: one that waits holds no memory.
        self.buffer.reserve(READ);
        let mut target = (&mut self.buffer).limit(READ);
        let read = pin!(self.io.read_buf(&mut target)).poll(context);
        match read {
            Poll::Pending => {
                if self.buffer.is_empty() {
                    self.buffer = BytesMut::new();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(0)) => {
                self.ended = true;
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(true)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.detached {
                return Poll::Ready(Some(Err("the body is no longer wanted".into())));
            }
            match &mut self.body {
                Decode::Length(0) => return Poll::Ready(None),
                Decode::Length(left) if !self.buffer.is_empty() => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= count as u64;
                    let data = self.buffer.split_to(count).freeze();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Decode::Length(_) => {}
                Decode::Chunked(chunked) if chunked.is_done() => return Poll::Ready(None),
                Decode::Chunked(chunked) => match chunked.next(&mut self.buffer) {
                    Err(fault) => {
                        self.detached = true;
                        return Poll::Ready(Some(Err(fault.into())));
                    }
                    Ok(Some(Part::Data(data))) => {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(Some(Part::End(trailers))) if trailers.is_empty() => {
                        return Poll::Ready(None);
                    }
                    Ok(Some(Part::End(trailers))) => {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Ok(None) => {}
                },
            }
            match ready!(self.poll_more(context)) {
                Ok(true) => {}
                // Ended within the body: it must not look whole.
                Ok(false) => {
                    self.detached = true;
                    return Poll::Ready(Some(Err(Fault::Body.into())));
                }
                Err(error) => {
                    self.detached = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

/// Waits until there are more than so many bytes; false when there will not be.
pub(super) async fn arrived(reader: &Mutex<Reader>, length: usize) -> io::Result<bool> {
    poll_fn(|context| {
        let mut reader = locked(reader);
        while reader.buffer.len() <= length {
            match ready!(reader.poll_more(context)) {
                Ok(true) => {}
                other => return Poll::Ready(other),
            }
        }
        Poll::Ready(Ok(true))
    })
    .await
}

/// Looks at what is there, and says how much that is.
pub(super) fn look<T>(reader: &Mutex<Reader>, look: impl FnOnce(&[u8]) -> T) -> (T, usize) {
    let reader = locked(reader);
    (look(&reader.buffer), reader.buffer.len())
}

/// Takes so many bytes, which are there.
pub(super) fn take(reader: &Mutex<Reader>, count: usize) -> BytesMut {
    locked(reader).buffer.split_to(count)
}

/// Reads what is left of the body, within bounds; whether the next request can be read.
pub(super) async fn drained(reader: &Mutex<Reader>, most: usize, at_most: Duration) -> bool {
    {
        let reader = locked(reader);
        if reader.body.is_done() {
            return !reader.detached;
        }
        if reader.detached {
            return false;
        }
    }
    let mut left = most;
    let drain = poll_fn(|context| {
        let mut reader = locked(reader);
        loop {
            match ready!(reader.poll_body(context)) {
                None => return Poll::Ready(true),
                Some(Err(_)) => return Poll::Ready(false),
                Some(Ok(frame)) => {
                    left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                    if left == 0 {
                        return Poll::Ready(false);
                    }
                }
            }
        }
    });
    let drained = tokio::time::timeout(at_most, drain).await.unwrap_or(false);
    // Whoever still sends it on must not take an end for its end.
    locked(reader).detached = !drained;
    drained
}

/// What the body tells whoever serves the connection.
#[derive(Debug, Default)]
pub(super) struct Signal {
    wants_continue: AtomicBool,
    changed: Notify,
}

/// What happened while a request is served.
pub(super) enum Event {
    /// The body is wanted, and the client waits to be told so.
    Continue,
    /// The client is gone.
    Gone(io::Error),
}

impl Signal {
    /// Waits for what happens.
    pub(super) async fn event(&self, reader: &Mutex<Reader>) -> Event {
        loop {
            if self.wants_continue.swap(false, Ordering::AcqRel) {
                return Event::Continue;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                error = gone(reader) => return Event::Gone(error),
            }
        }
    }

    /// Waits until the client is gone.
    pub(super) async fn gone(&self, reader: &Mutex<Reader>) -> io::Error {
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                error = gone(reader) => return error,
            }
        }
    }
}

/// Waits until the stream fails, reading ahead within a bound. A client that has nothing more to say is not gone.
async fn gone(reader: &Mutex<Reader>) -> io::Error {
    poll_fn(|context| {
        let mut reader = locked(reader);
        // As long as there is a body to read, its reader sees that.
        while reader.body.is_done() && reader.buffer.len() < AHEAD {
            match ready!(reader.poll_more(context)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    })
    .await
}

/// The body of the request whose head was just read.
pub(super) fn body(
    reader: &Arc<Mutex<Reader>>,
    framing: Framing,
    expects_continue: bool,
) -> (Body, Arc<Signal>) {
    let signal = Arc::new(Signal::default());
    let mut state = locked(reader);
    state.detached = false;
    state.body = match framing {
        Framing::Length(length) => {
            // Most bodies are here already.
            let there = usize::try_from(length).is_ok_and(|length| length <= state.buffer.len());
            if there {
                state.body = Decode::Length(0);
                let count = usize::try_from(length).unwrap_or(0);
                let body =
                    if count == 0 { empty() } else { full(state.buffer.split_to(count).freeze()) };
                return (body, signal);
            }
            Decode::Length(length)
        }
        Framing::Chunked => Decode::Chunked(Chunked::default()),
    };
    drop(state);
    let body = RequestBody {
        reader: Arc::clone(reader),
        signal: Arc::clone(&signal),
        waits: expects_continue,
    };
    (body.boxed_unsync(), signal)
}

struct RequestBody {
    reader: Arc<Mutex<Reader>>,
    signal: Arc<Signal>,
    waits: bool,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.waits {
            self.waits = false;
            self.signal.wants_continue.store(true, Ordering::Release);
            self.signal.changed.notify_one();
        }
        let mut reader = locked(&self.reader);
        let frame = ready!(reader.poll_body(context));
        if reader.body.is_done() {
            // Now somebody else must see whether the client is still there.
            self.signal.changed.notify_one();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let reader = locked(&self.reader);
        reader.body.is_done() && !reader.detached
    }

    fn size_hint(&self) -> SizeHint {
        match locked(&self.reader).body {
            Decode::Length(left) => SizeHint::with_exact(left),
            Decode::Chunked(_) => SizeHint::default(),
        }
    }
}
