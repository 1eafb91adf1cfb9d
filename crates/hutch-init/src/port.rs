//! One virtio-serial port as an async byte stream.
//!
//! A port exists without anyone at the host's end: then reading gives end of file, and polling says that the peer hung
//! up, at once and for ever. So [`Port::connected`] first waits, on an edge-triggered epoll of its own, for a host; only
//! then is there a [`PortStream`]. An end of file there means that the host has gone.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// An open port. Only one may be open at a time for a device.
#[derive(Debug)]
pub struct Port {
    file: OwnedFd,
}

impl Port {
    /// Opens a port's device file.
    pub fn open(device: &Path) -> io::Result<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)?;
        Ok(Self { file: file.into() })
    }

    /// Waits until the host is at the other end, and gives a stream to it.
    pub async fn connected(&self) -> io::Result<PortStream> {
        if !self.has_host()? {
            self.drain()?;
            let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&edges, &self.file, epoll::EventData::new_u64(0), flags)?;
            let edges = registered(edges, Interest::READABLE)?;
            while !self.has_host()? {
                let mut ready = edges.readable().await?;
                let mut events = Vec::with_capacity(1);
                epoll::wait(
                    ready.get_inner(),
                    spare_capacity(&mut events),
                    Some(&Timespec::default()),
                )?;
                ready.clear_ready();
            }
        }
        Ok(PortStream {
            file: registered(self.file.try_clone()?, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Forgets what a host that has gone had sent: the next one begins anew.
    fn drain(&self) -> io::Result<()> {
        let mut forgotten = [0; 4096];
        loop {
            match rustix::io::read(&self.file, &mut forgotten) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The port itself, for someone who reads and writes it without tokio. It does not block.
    pub fn into_fd(self) -> OwnedFd {
        self.file
    }

    fn has_host(&self) -> io::Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default()))?;
        Ok(!fds[0].revents().contains(PollFlags::HUP))
    }
}

#[expect(
    deprecated,
    reason = "an OwnedFd keeps its descriptor open and the same, all that the new function's contract asks"
)]
fn registered(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(file, interest)
}

/// The bytes between init and the host, until the host goes.
#[derive(Debug)]
pub struct PortStream {
    file: AsyncFd<OwnedFd>,
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.file.poll_read_ready(context))?;
            let into = buffer.initialize_unfilled();
            let wanted = into.len();
            match guard.try_io(|file| Ok(rustix::io::read(file, into)?)) {
                Ok(Ok(count)) => {
                    debug_assert!(count <= wanted);
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.file.poll_write_ready(context))?;
            match guard.try_io(|file| Ok(rustix::io::write(file, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Written bytes are in the device's queue already.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A port has no half-close.
        Poll::Ready(Ok(()))
    }
}
