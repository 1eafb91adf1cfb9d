//! Moves the bytes of one stream of a session, in one direction.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::pty::Terminal;

/// Bytes moved at once.
const PIECE: usize = 32 * 1024;
/// Output that is still taken after the time for it is over; a pipe holds no more.
const LATE_MAX: usize = 64 * 1024;
/// How long a broken stream waits for the word that its session was detached: the two may overtake each other.
const WORD: Duration = Duration::from_millis(100);

/// What a pump has to know of its session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    /// It goes on without the host.
    pub(super) detached: bool,
    /// The command has ended; output is taken up to this moment.
    pub(super) ended: Option<Instant>,
}

/// Our ends of a session's byte streams, until a pump takes them.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
    pub(super) terminal: Option<Terminal>,
    /// No stream will come for the output.
    pub(super) unwatched: bool,
}

impl Pipes {
    /// Output that no stream has come for.
    pub(super) fn has_output(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some() || self.terminal.is_some()
    }
}

/// Our end of a pipe that we write.
pub(super) fn sender(end: OwnedFd) -> io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(end)
}

/// Our end of a pipe that we read.
pub(super) fn receiver(end: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(end)
}

/// Takes output that nobody wants, so that the process does not wait for ever.
pub(super) fn discard(pumps: &mut JoinSet<()>, pipes: &mut Pipes, phase: &watch::Sender<Phase>) {
    for pipe in [pipes.stdout.take(), pipes.stderr.take()].into_iter().flatten() {
        pumps.spawn(output(pipe, tokio::io::sink(), phase.subscribe()));
    }
    if let Some(terminal) = pipes.terminal.take() {
        pumps.spawn(output(terminal, tokio::io::sink(), phase.subscribe()));
    }
}

/// From the process to the host, to the end of the output or of the time for it.
pub(super) async fn output<R, W>(mut from: R, mut to: W, mut phase: watch::Receiver<Phase>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; PIECE];
    let mut wanted = true;
    let mut late = 0;
    let over = over(phase.clone());
    tokio::pin!(over);
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = &mut over => break,
        };
        let Ok(count @ 1..) = read else { break };
        if wanted && to.write_all(&buffer[..count]).await.is_err() {
            if !told_detached(&mut phase).await {
                // The process learns that nobody reads: its next write fails.
                return;
            }
            wanted = false;
        }
        if phase.borrow().ended.is_some_and(|deadline| deadline <= Instant::now()) {
            late += count;
            if late > LATE_MAX {
                break;
            }
        }
    }
    // A host that is gone does not miss the end.
    to.shutdown().await.ok();
}

/// From the host to the process, until either ends.
pub(super) async fn input<R, W>(mut from: R, mut to: W, mut phase: watch::Receiver<Phase>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Err(_) => {
                if told_detached(&mut phase).await {
                    // The process keeps an input that merely says nothing any more; the session's end takes it away.
                    std::future::pending::<()>().await;
                }
                return;
            }
        }
    }
}

/// Resolves when the time for output is over.
async fn over(mut phase: watch::Receiver<Phase>) {
    let ended = phase.wait_for(|phase| phase.ended.is_some()).await.map(|phase| phase.ended);
    if let Ok(Some(deadline)) = ended {
        sleep_until(deadline).await;
    }
}

/// Whether the session was detached, or is within a moment.
async fn told_detached(phase: &mut watch::Receiver<Phase>) -> bool {
    matches!(timeout(WORD, phase.wait_for(|phase| phase.detached)).await, Ok(Ok(_)))
}
