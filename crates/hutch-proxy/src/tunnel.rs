//! Moves bytes between two streams until both directions have ended.
//!
//! The end of one direction goes on as an end of that direction alone. A direction that waits holds no memory: its
//! buffer is taken when there are bytes. An error of either side ends both, by a reset.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncReadExt as _;
use tokio::time::Sleep;

use crate::exchange::Scrub;
use crate::live::Cut;
use crate::scrub::body::QUIET;
use crate::stream::Io;

/// Bytes that are moved at once.
const BUFFER: usize = 64 << 10;

/// How many bytes went which way.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the client.
    pub(crate) sent: AtomicU64,
    /// To the client.
    pub(crate) received: AtomicU64,
}

/// How a tunnel ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides had said all.
    Closed,
    /// A side broke off.
    Broken(io::Error),
    /// The policy no longer allows it.
    Cut,
}

/// Moves bytes until the end; `scrub` sees those that go to the client.
pub(crate) async fn relay(
    client: &mut dyn Io,
    server: &mut dyn Io,
    cut: &Cut,
    moved: &Moved,
    scrub: Option<Box<dyn Scrub>>,
) -> End {
    let mut up = Direction::new(None);
    let mut down = Direction::new(scrub);
    let both = poll_fn(|context| {
        let up = up.poll(context, client, server, &moved.sent)?;
        let down = down.poll(context, server, client, &moved.received)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        () = cut.cut() => End::Cut,
        outcome = both => match outcome {
            Ok(()) => End::Closed,
            Err(error) => End::Broken(error),
        }
    }
}

struct Direction {
    buffer: Vec<u8>,
    start: usize,
    state: State,
    needs_flush: bool,
    scrub: Option<Box<dyn Scrub>>,
    /// Runs while nothing comes and something is held back.
    quiet: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Moving,
    Ending,
    Ended,
}

impl Direction {
    fn new(scrub: Option<Box<dyn Scrub>>) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            state: State::Moving,
            needs_flush: false,
            scrub,
            quiet: None,
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut dyn Io,
        to: &mut dyn Io,
        count: &AtomicU64,
    ) -> io::Result<Poll<()>> {
        match self.poll_move(context, from, to, count) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    fn poll_move(
        &mut self,
        context: &mut Context<'_>,
        from: &mut dyn Io,
        to: &mut dyn Io,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        // So much in one turn; then others have theirs.
        for _ in 0..16 {
            while self.start < self.buffer.len() {
                let rest = &self.buffer[self.start..];
                let written = ready!(Pin::new(&mut *to).poll_write(context, rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += written;
                self.needs_flush = true;
                count.fetch_add(written as u64, Ordering::Relaxed);
            }
            match self.state {
                State::Moving => {}
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context))?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            match self.poll_fill(context, from) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(context))?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Fills the empty buffer; at the end of the stream the state changes.
    fn poll_fill(&mut self, context: &mut Context<'_>, from: &mut dyn Io) -> Poll<io::Result<()>> {
        self.start = 0;
        self.buffer.clear();
        self.buffer.reserve_exact(BUFFER);
        let read = match pin!(from.read_buf(&mut self.buffer)).poll(context) {
            Poll::Pending => {
                self.buffer = Vec::new();
                return self.poll_quiet(context).map(Ok);
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(read)) => read,
        };
        self.quiet = None;
        if read == 0 {
            self.state = State::Ending;
        }
        if let Some(scrub) = &mut self.scrub {
            let mut clean = Vec::with_capacity(self.buffer.len());
            scrub.scrub(&self.buffer, read == 0, &mut clean);
            self.buffer = clean;
        }
        Poll::Ready(Ok(()))
    }

    /// After a moment without more, the few held bytes go on that may: somebody waits for the end of a message.
    fn poll_quiet(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(scrub) = self.scrub.as_mut().filter(|scrub| scrub.releasable()) else {
            return Poll::Pending;
        };
        let quiet = self.quiet.get_or_insert_with(|| Box::pin(tokio::time::sleep(QUIET)));
        ready!(quiet.as_mut().poll(context));
        self.quiet = None;
        scrub.release(&mut self.buffer);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests;
