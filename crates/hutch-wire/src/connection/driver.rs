//! The task that moves bytes between the transport and the multiplexer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{ConnectionError, Shared};
use crate::Role;
use crate::frame::{Frame, HELLO_PREFIX, Hello, Violation};
use crate::mux::Event;

/// Bytes read from the transport at once.
const INPUT: usize = 64 * 1024;
/// Rounds before other tasks get a turn.
const ROUNDS: usize = 32;

/// Exchanges greetings; gives the transport back with the peer's.
pub(super) async fn greet<T>(
    transport: T,
    role: Role,
    ours: Hello,
) -> Result<(T, Hello), ConnectionError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(transport);
    let write = async {
        writer.write_all(&ours.encode()).await.map_err(|error| lost(&error))?;
        writer.flush().await.map_err(|error| lost(&error))
    };
    let read = async {
        let mut prefix = [0; HELLO_PREFIX];
        reader.read_exact(&mut prefix).await.map_err(|error| lost(&error))?;
        let mut rest = vec![0; Hello::rest(&prefix).map_err(|violation| broke(&violation))?];
        reader.read_exact(&mut rest).await.map_err(|error| lost(&error))?;
        Hello::decode(&rest).map_err(|violation| broke(&violation))
    };
    let theirs = match role {
        // A transport may hold less than a greeting, and the other side may wait for ours: both at once.
        Role::Client => tokio::try_join!(write, read)?.1,
        // Not a byte before the client's: a guest that is saved while it waits here goes on with whoever comes.
        Role::Server => {
            let theirs = read.await?;
            write.await?;
            theirs
        }
    };
    Ok((reader.unsplit(writer), theirs))
}

fn lost(error: &io::Error) -> ConnectionError {
    ConnectionError::Lost(error.to_string())
}

fn broke(violation: &Violation) -> ConnectionError {
    ConnectionError::Protocol(violation.to_string())
}

/// Owns the transport for as long as the connection lives.
pub(super) struct Driver<T> {
    transport: T,
    shared: Arc<Shared>,
    /// Frames on their way out.
    out: Vec<u8>,
    /// How much of `out` the transport has taken.
    sent: usize,
    flush_due: bool,
    input: Box<[u8]>,
    events: Vec<Event>,
}

/// What a look at the transport gave.
enum Step {
    Progress,
    Idle,
    /// Nobody uses the connection any more, and everything was sent.
    Finished,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(transport: T, shared: Arc<Shared>) -> Self {
        Self {
            transport,
            shared,
            out: Vec::new(),
            sent: 0,
            flush_due: false,
            input: vec![0; INPUT].into_boxed_slice(),
            events: Vec::new(),
        }
    }

    /// Runs until the connection ends.
    pub(super) async fn run(mut self) {
        let end = poll_fn(|context| self.poll(context)).await;
        match &end {
            None => {
                self.say_bye("", true).await;
                self.shared.end(ConnectionError::Lost("this side closed the connection".into()));
            }
            Some(ConnectionError::Protocol(why)) => {
                self.say_bye(&format!("this side broke the protocol: {why}"), false).await;
            }
            Some(_) => {}
        }
        if let Some(end) = end {
            self.shared.end(end);
        }
        // The transport is dropped next; that it does not end politely changes nothing.
        poll_fn(|context| {
            Poll::Ready(Pin::new(&mut self.transport).poll_shutdown(context).is_ready())
        })
        .await;
    }

    /// `None` = everything was sent and nobody uses the connection any more.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<ConnectionError>> {
        for _ in 0..ROUNDS {
            let wrote = match self.write(context) {
                Ok(Step::Finished) => return Poll::Ready(None),
                Ok(step) => step,
                // What the peer said last is more telling than that it no longer listens.
                Err(error) => match self.read_all(context) {
                    Ok(()) => return Poll::Ready(Some(lost(&error))),
                    Err(end) => return Poll::Ready(Some(end)),
                },
            };
            let read = match self.read(context) {
                Ok(step) => step,
                Err(end) => return Poll::Ready(Some(end)),
            };
            if matches!((wrote, read), (Step::Idle, Step::Idle)) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn write(&mut self, context: &mut Context<'_>) -> io::Result<Step> {
        let mut step = Step::Idle;
        loop {
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
                let finished =
                    self.shared.transmit(&mut self.out, &mut self.events, context.waker());
                if finished {
                    return Ok(Step::Finished);
                }
                if self.out.is_empty() {
                    if self.flush_due
                        && let Poll::Ready(flushed) =
                            Pin::new(&mut self.transport).poll_flush(context)
                    {
                        flushed?;
                        self.flush_due = false;
                    }
                    return Ok(step);
                }
            }
            let left = &self.out[self.sent..];
            match Pin::new(&mut self.transport).poll_write(context, left) {
                Poll::Pending => return Ok(step),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    self.flush_due = true;
                    // One batch, then reading has its turn: a peer that only takes may not keep us from it.
                    if self.sent == self.out.len() && matches!(step, Step::Progress) {
                        return Ok(step);
                    }
                    step = Step::Progress;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
    }

    fn read(&mut self, context: &mut Context<'_>) -> Result<Step, ConnectionError> {
        let mut buffer = ReadBuf::new(&mut self.input);
        match Pin::new(&mut self.transport).poll_read(context, &mut buffer) {
            Poll::Pending => Ok(Step::Idle),
            Poll::Ready(Err(error)) => Err(lost(&error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                Err(ConnectionError::Lost("the transport ended".into()))
            }
            Poll::Ready(Ok(())) => {
                self.shared.receive(buffer.filled(), &mut self.events)?;
                Ok(Step::Progress)
            }
        }
    }

    /// Reads what is there, up to a bound, in search of the reason for an end.
    fn read_all(&mut self, context: &mut Context<'_>) -> Result<(), ConnectionError> {
        for _ in 0..ROUNDS {
            if matches!(self.read(context)?, Step::Idle) {
                break;
            }
        }
        Ok(())
    }

    /// Says that and why the connection ends; waits for the transport only when asked to.
    async fn say_bye(&mut self, reason: &str, wait: bool) {
        Frame::Bye { reason }.encode(&mut self.out);
        poll_fn(|context| {
            while self.sent < self.out.len() {
                let left = &self.out[self.sent..];
                match Pin::new(&mut self.transport).poll_write(context, left) {
                    Poll::Ready(Ok(count @ 1..)) => self.sent += count,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending if wait => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                }
            }
            match Pin::new(&mut self.transport).poll_flush(context) {
                Poll::Pending if wait => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        // Only the first end counts; this one is for a runtime that drops its tasks.
        self.shared.end(ConnectionError::Lost("its driver was stopped".into()));
    }
}
