//! The master side of a session's terminal as an async byte stream.
//!
//! Clones share the terminal, so that reading, writing and control go on at the same time. A master fails with `EIO`
//! once no process holds the terminal any more: that is the end of its output.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hutch_wire::guest::WindowSize;
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A terminal seen from its master side.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    /// Takes a master; it must not be shared with anyone who expects it to block.
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps its descriptor open and the same, all that the new function's contract asks"
    )]
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { master: Arc::new(AsyncFd::new(master)?) })
    }

    /// Gives it a new size; the kernel tells the foreground process group.
    pub(crate) fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Sends a signal to the foreground process group; an error = there is none.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // The kernel gives the group's number as we see it, not as the container does.
        let group = tcgetpgrp(self.master.get_ref())?;
        Ok(rustix::process::kill_process_group(group, signal)?)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.master.poll_read_ready(context))?;
            let into = buffer.initialize_unfilled();
            match guard.try_io(|master| Ok(rustix::io::read(master, into)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::IO) => return Poll::Ready(Ok(())),
                    _ => return Poll::Ready(Err(error)),
                },
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.master.poll_write_ready(context))?;
            match guard.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal's two directions end together, with its last process.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, openpt, unlockpt};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Terminal, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (Terminal::new(master).unwrap(), slave)
    }

    #[tokio::test]
    async fn bytes_pass_and_the_last_process_ends_them() {
        let (mut terminal, slave) = pair();
        terminal.write_all(b"typed\r").await.unwrap();
        let mut line = [0; 16];
        assert_eq!(rustix::io::read(&slave, &mut line).unwrap(), 6);
        assert_eq!(&line[..6], b"typed\n");
        rustix::io::write(&slave, b"answer").unwrap();
        drop(slave);
        let mut output = String::new();
        terminal.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "typed\r\nanswer");
    }

    #[tokio::test]
    async fn the_size_arrives() {
        let (terminal, slave) = pair();
        terminal.resize(WindowSize { rows: 12, columns: 34 }).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (12, 34));
        assert!(terminal.signal(Signal::INT).is_err(), "nobody is in the foreground");
    }
}
