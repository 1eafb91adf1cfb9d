//! Takes connections, finds out where each was meant to go, and hands it to the host.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hutch_wire::Limits;
use hutch_wire::network::{Destination, Open, PROXY_NAMES};
use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::names::{InUse, Meaning, Names};
use super::relay::{relay, reset};
use super::uplink::Uplink;
use super::{ADDRESS, ADDRESS_V6};
use crate::log;

/// Pause when no more connections can be taken at the moment, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// How a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// To the explicit proxy.
    Proxy,
    /// To somewhere else.
    Captured,
}

/// What all listeners share.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    uplink: Uplink,
    names: Arc<Names>,
    /// One for each stream that the wire carries at once.
    room: Arc<Semaphore>,
}

impl Capture {
    pub(super) fn new(uplink: Uplink, names: Arc<Names>) -> Self {
        Self { uplink, names, room: Arc::new(Semaphore::new(Limits::default().streams)) }
    }

    /// Takes connections for ever.
    pub(super) async fn accept(self, listener: TcpListener, how: How) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => self.take(socket, how),
                Err(error) => {
                    // One that is gone already is no reason to wait, the others are.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn take(&self, socket: TcpStream, how: How) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return reset(socket);
        };
        let Some((open, in_use)) = self.meant_for(&socket, how) else { return reset(socket) };
        tokio::spawn(carry(self.uplink.clone(), socket, open, (permit, in_use)));
    }

    /// Where the connection was meant to go. `None` when that is nowhere.
    fn meant_for(&self, socket: &TcpStream, how: How) -> Option<(Open, Option<InUse>)> {
        if how == How::Proxy {
            return Some((Open::Proxy, None));
        }
        let meant = original(socket).ok()?;
        let port = meant.port();
        if port == 0 {
            return None;
        }
        let address = meant.ip().to_canonical();
        if [IpAddr::V4(ADDRESS), IpAddr::V6(ADDRESS_V6)].contains(&address) {
            let destination = Destination::Name(PROXY_NAMES[0].to_owned());
            return Some((Open::Captured { destination, port }, None));
        }
        let (destination, in_use) = match self.names.meaning(address) {
            Meaning::Name(in_use) => (Destination::Name(in_use.name().to_owned()), Some(in_use)),
            Meaning::Address => (Destination::Address(address), None),
            Meaning::Nothing => return None,
        };
        Some((Open::Captured { destination, port }, in_use))
    }
}

/// Carries one connection. What it holds is given back when it ends.
async fn carry(
    uplink: Uplink,
    socket: TcpStream,
    open: Open,
    held: (OwnedSemaphorePermit, Option<InUse>),
) {
    socket.set_nodelay(true).ok();
    match uplink.open(&open).await {
        Ok(stream) => relay(socket, stream).await,
        Err(error) => {
            log::info(format!("connection not carried: {error}"));
            reset(socket);
        }
    }
    drop(held);
}

/// Where the program connected to, before the rules sent the connection here.
fn original(socket: &TcpStream) -> io::Result<SocketAddr> {
    Ok(match socket.local_addr()? {
        SocketAddr::V4(_) => ip_original_dst(socket)?.into(),
        SocketAddr::V6(_) => ipv6_original_dst(socket)?.into(),
    })
}
