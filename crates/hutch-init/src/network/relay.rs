//! Moves the bytes of one connection between its socket and its stream, both ways.
//!
//! Each direction ends by itself (half-close). A direction that breaks ends both at once: the socket with a TCP reset,
//! the stream with a reset of its own. Nothing is read before what was read before it is written, so each side waits
//! for the other. One exception: a host that has answered and let go reads no more, but what it said must arrive, so
//! what the program still sends is thrown away for a while.

use std::io;
use std::time::Duration;

use hutch_wire::Stream;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes moved at once by a connection that says little; thousands of them are idle.
const SMALL: usize = 2 * 1024;
/// Bytes moved at once by one that says much.
const LARGE: usize = 64 * 1024;

/// How long a host that has let go may still be sent to.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Which side of a direction broke.
#[derive(Debug, Clone, Copy)]
enum Broken {
    Read,
    Write,
}

impl From<Broken> for io::Error {
    fn from(_: Broken) -> Self {
        io::ErrorKind::BrokenPipe.into()
    }
}

/// Runs until both directions have ended.
pub(super) async fn relay(mut socket: TcpStream, stream: Stream) {
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let (mut from_program, mut to_program) = socket.split();
    let moved = tokio::try_join!(upwards(&mut from_program, &mut to_host), async {
        Ok::<(), io::Error>(one_way(&mut from_host, &mut to_program).await?)
    });
    if moved.is_err() {
        reset(socket);
        from_host.unsplit(to_host).reset("the connection in the guest broke");
    }
}

/// Ends a connection with a TCP reset.
pub(super) fn reset(socket: TcpStream) {
    // Without it the socket just closes, which says less but ends all the same.
    set_socket_linger(&socket, Some(Duration::ZERO)).ok();
    drop(socket);
}

/// From the program to the host.
async fn upwards<R, W>(from: &mut R, to: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match one_way(from, to).await {
        Err(Broken::Write) => timeout(LAST_WORDS, discard(from)).await?,
        result => Ok(result?),
    }
}

async fn discard<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<()> {
    let mut buffer = vec![0; SMALL];
    while from.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn one_way<R, W>(from: &mut R, to: &mut W) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; SMALL];
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| Broken::Read)?;
        if count == 0 {
            return to.shutdown().await.map_err(|_| Broken::Write);
        }
        to.write_all(&buffer[..count]).await.map_err(|_| Broken::Write)?;
        if count == buffer.len() && count < LARGE {
            buffer.resize(LARGE, 0);
        }
    }
}
