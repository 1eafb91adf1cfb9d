//! What the driver, the handles and the streams of a connection share.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;
use tokio::sync::watch;

use super::{ConnectionError, OpenError};
use crate::mux::{Event, Mux, Read, StreamError};

/// One connection.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) version: u16,
    state: Mutex<State>,
    ended: watch::Sender<Option<ConnectionError>>,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    wakers: HashMap<u32, Wakers>,
    driver: Option<Waker>,
    /// Opened by the peer and not yet taken; bounded by the stream limit.
    incoming: VecDeque<(u32, Vec<u8>)>,
    taker: Option<Waker>,
    /// Nobody takes streams of the peer any more.
    deaf: bool,
    /// Handles and streams that keep the connection alive.
    users: usize,
    closing: bool,
    end: Option<ConnectionError>,
}

#[derive(Debug, Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
}

impl Shared {
    pub(super) fn new(mux: Mux, version: u16) -> Self {
        Self {
            version,
            state: Mutex::new(State {
                mux,
                wakers: HashMap::new(),
                driver: None,
                incoming: VecDeque::new(),
                taker: None,
                deaf: false,
                users: 0,
                closing: false,
                end: None,
            }),
            ended: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state machine would still be in one of its states.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The driver's side.

    /// Frames to send; `true` = all was sent and nobody uses the connection.
    pub(super) fn transmit(
        &self,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
        driver: &Waker,
    ) -> bool {
        let mut state = self.lock();
        state.mux.transmit(out, events);
        state.tell(events);
        if !state.driver.as_ref().is_some_and(|known| known.will_wake(driver)) {
            state.driver = Some(driver.clone());
        }
        out.is_empty() && (state.closing || state.users == 0) && state.mux.is_drained()
    }

    /// Takes bytes of the peer.
    pub(super) fn receive(
        &self,
        bytes: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnectionError> {
        let mut state = self.lock();
        let taken = state.mux.receive(bytes, events);
        if let Some(Event::Bye(reason)) = events.last() {
            let mut why = "the other side ended it".to_owned();
            if !reason.is_empty() {
                why.push_str(": ");
                why.push_str(reason);
            }
            events.pop();
            state.tell(events);
            return Err(ConnectionError::Lost(why));
        }
        state.tell(events);
        taken.map_err(|violation| ConnectionError::Protocol(violation.to_string()))
    }

    /// Ends the connection for everyone; only the first end counts.
    pub(super) fn end(&self, end: ConnectionError) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        state.end = Some(end.clone());
        state.incoming.clear();
        for wakers in std::mem::take(&mut state.wakers).into_values() {
            wake(wakers.read);
            wake(wakers.write);
        }
        wake(state.taker.take());
        drop(state);
        self.ended.send_replace(Some(end));
    }

    // The users' side.

    pub(super) fn join(&self) {
        self.lock().users += 1;
    }

    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.users -= 1;
        if state.users == 0 {
            wake(state.driver.take());
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        wake(state.driver.take());
    }

    pub(super) async fn ended(&self) -> ConnectionError {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // The sender is in `self`.
            Ok(None) | Err(_) => ConnectionError::Lost("its driver was stopped".into()),
        }
    }

    pub(super) fn open(&self, payload: &[u8]) -> Result<u32, OpenError> {
        let mut state = self.lock();
        state.is_open().map_err(OpenError::Closed)?;
        let stream = state.mux.open(payload).map_err(OpenError::Limit)?;
        wake(state.driver.take());
        Ok(stream)
    }

    pub(super) fn poll_incoming(&self, context: &Context<'_>) -> Poll<Option<(u32, Vec<u8>)>> {
        let mut state = self.lock();
        if let Some(next) = state.incoming.pop_front() {
            return Poll::Ready(Some(next));
        }
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        state.taker = Some(context.waker().clone());
        Poll::Pending
    }

    pub(super) fn stop_taking(&self) {
        let mut state = self.lock();
        state.deaf = true;
        for (stream, _) in std::mem::take(&mut state.incoming) {
            state.mux.reset(stream, NOBODY);
        }
        wake(state.driver.take());
    }

    pub(super) fn poll_read(
        &self,
        stream: u32,
        context: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        let read = state.mux.read(stream, buffer.remaining(), |bytes| buffer.put_slice(bytes));
        match read {
            Ok(Read::Bytes(_)) => {
                // Only when credit became due is there something for the driver.
                if state.mux.has_output() {
                    wake(state.driver.take());
                }
                Poll::Ready(Ok(()))
            }
            Ok(Read::End) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(state.stream_error(stream, error))),
            Ok(Read::Blocked) => {
                if let Some(end) = &state.end {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        end.clone(),
                    )));
                }
                state.wakers.entry(stream).or_default().read = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_write(
        &self,
        stream: u32,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.lock();
        if let Err(end) = state.is_open() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, end)));
        }
        match state.mux.write(stream, bytes) {
            Ok(0) => {
                state.wakers.entry(stream).or_default().write = Some(context.waker().clone());
                Poll::Pending
            }
            Ok(count) => {
                wake(state.driver.take());
                Poll::Ready(Ok(count))
            }
            Err(error) => Poll::Ready(Err(state.stream_error(stream, error))),
        }
    }

    pub(super) fn end_writing(&self, stream: u32) {
        let mut state = self.lock();
        state.mux.end(stream);
        wake(state.driver.take());
    }

    pub(super) fn reset_reason(&self, stream: u32) -> Option<String> {
        self.lock().mux.reset_reason(stream).map(str::to_owned)
    }

    pub(super) fn let_go(&self, stream: u32, reset: Option<&str>) {
        let mut state = self.lock();
        state.wakers.remove(&stream);
        match reset {
            Some(reason) => state.mux.reset(stream, reason),
            None => state.mux.release(stream),
        }
        wake(state.driver.take());
    }

    #[cfg(test)]
    pub(super) fn streams_in_use(&self) -> usize {
        self.lock().mux.in_use()
    }
}

/// What the peer reads when nobody takes its streams.
const NOBODY: &str = "nobody takes streams here";

impl State {
    fn is_open(&self) -> Result<(), ConnectionError> {
        match &self.end {
            Some(end) => Err(end.clone()),
            None if self.closing => {
                Err(ConnectionError::Lost("this side closed the connection".into()))
            }
            None => Ok(()),
        }
    }

    fn stream_error(&self, stream: u32, error: StreamError) -> io::Error {
        match error {
            StreamError::Ended => io::Error::new(
                io::ErrorKind::BrokenPipe,
                "this side ended its direction of the stream",
            ),
            StreamError::Reset => {
                let reason = self.mux.reset_reason(stream).unwrap_or_default();
                let reason =
                    if reason.is_empty() { "the other side gave the stream up" } else { reason };
                io::Error::new(io::ErrorKind::ConnectionReset, reason)
            }
        }
    }

    fn tell(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Opened { stream, .. } if self.deaf || self.closing => {
                    self.mux.reset(stream, NOBODY);
                }
                Event::Opened { stream, payload } => {
                    self.incoming.push_back((stream, payload));
                    wake(self.taker.take());
                }
                Event::Readable(stream) => {
                    wake(self.wakers.get_mut(&stream).and_then(|wakers| wakers.read.take()));
                }
                Event::Writable(stream) => {
                    wake(self.wakers.get_mut(&stream).and_then(|wakers| wakers.write.take()));
                }
                Event::Reset(stream) => {
                    let wakers = self.wakers.remove(&stream).unwrap_or_default();
                    wake(wakers.read);
                    wake(wakers.write);
                }
                // Ends the connection, which wakes everyone.
                Event::Bye(_) => {}
            }
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
