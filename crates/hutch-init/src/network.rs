//! The guest's end of the network: there is no device that leads anywhere, yet every connection finds its way.
//!
//! ```text
//!   programs, containers ── TCP ──▶ rules ──▶ capture ──┐
//!            │      └────── DNS ──▶ rules ──▶ resolver  ├─▶ uplink ──▶ port ──▶ proxy worker on the host
//!            └── HTTP_PROXY ──▶ host.docker.internal ───┘
//! ```
//!
//! [`Prepared::make`] is the part that is the same for every sandbox: the interface `egress` with a route to everywhere,
//! the rules, and sockets that listen. [`start`] serves them. Invariant: nothing here decides what is allowed. A
//! connection that the host refuses ends with a TCP reset, and what is not TCP is refused by the kernel at once.

pub(crate) mod link;
pub(crate) mod netlink;

mod capture;
mod dns;
mod names;
mod nft;
mod relay;
mod resolver;
mod rules;
mod uplink;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

pub use uplink::Uplink;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::log;
use names::Names;

/// Address of the explicit proxy and the resolver; `host.docker.internal` in the guest.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
/// The same for IPv6.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x7574, 0x6368, 0, 0, 0, 0, 0xfe);
/// Kind of the interface in the guest: takes packets and drops them.
pub(crate) const DRIVER: &str = "dummy";
/// Where the explicit proxy listens.
const PROXY_PORT: u16 = hutch_wire::network::PROXY_PORT;
/// Where captured connections arrive.
const CAPTURE_PORT: u16 = 3129;
const DNS_PORT: u16 = 53;

/// Settings of the kernel.
const SETTINGS: [(&str, &str); 4] = [
    // Without it, what containers send and is not captured is dropped without a word instead of refused.
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // Everybody may send pings, as programs expect; where they cannot go the kernel says so.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // Every refusal is told: by itself the kernel tells a container one in a second, and the other programs wait.
    ("/proc/sys/net/ipv4/icmp_ratemask", "0"),
    ("/proc/sys/net/ipv6/icmp/ratelimit", "0"),
];

/// What is there before anyone knows which sandbox this is.
#[derive(Debug)]
pub struct Prepared {
    proxy: Vec<TcpListener>,
    captured: Vec<TcpListener>,
    queries: Vec<UdpSocket>,
    resolver: Vec<TcpListener>,
}

/// A step of the network that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The interface could not be made.
    #[error("cannot make the interface {name}: {0}", name = link::EGRESS)]
    Interface(#[source] io::Error),
    /// The rules were not taken.
    #[error("cannot load the packet rules: {0}")]
    Rules(#[source] io::Error),
    /// A socket could not listen.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

impl Prepared {
    /// Makes interface, rules and sockets in this network namespace. `driver` is the kind of the interface: `dummy`
    /// wherever the kernel has it.
    pub fn make(driver: &str) -> Result<Self, NetworkError> {
        for (setting, value) in SETTINGS {
            if let Err(error) = set(setting, value) {
                log::warn(format!("{setting} unchanged: {error}"));
            }
        }
        link::make(driver).map_err(NetworkError::Interface)?;
        rules::load().map_err(NetworkError::Rules)?;
        let listen = |port| {
            addresses(port)
                .map(|address| {
                    listen(address).map_err(|source| NetworkError::Listen { address, source })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let queries = addresses(DNS_PORT)
            .map(|address| bind(address).map_err(|source| NetworkError::Listen { address, source }))
            .collect::<Result<_, _>>()?;
        let prepared = Self {
            proxy: listen(PROXY_PORT)?,
            captured: listen(CAPTURE_PORT)?,
            queries,
            resolver: listen(DNS_PORT)?,
        };
        prepared.use_once();
        Ok(prepared)
    }

    /// Makes a connection of each kind, which nobody hears of.
    ///
    /// The kernel changes its own code when something of the network is used for the first time, and QEMU before 8.1 may
    /// get that wrong (docs/design/002, "A race"). Here it costs a start, which is made again; later it costs a sandbox.
    fn use_once(&self) {
        /// A place that nobody has (RFC 5737, RFC 3849): connections to it are captured.
        const NOWHERE: [IpAddr; 2] = [
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        ];
        let captured = NOWHERE.map(|address| SocketAddr::new(address, 80)).into_iter();
        connect_once(&self.captured, captured);
        connect_once(&self.proxy, addresses(PROXY_PORT));
        connect_once(&self.resolver, addresses(DNS_PORT));
        for (queries, address) in self.queries.iter().zip(addresses(DNS_PORT)) {
            let asked = UdpSocket::bind((unspecified(address), 0))
                .and_then(|socket| socket.send_to(&[0], address));
            if asked.is_ok() {
                drop(queries.recv(&mut [0]));
            }
        }
    }
}

/// Connects to each address, says a byte, and takes the connection from the listener of that place in the order.
fn connect_once(listeners: &[TcpListener], addresses: impl Iterator<Item = SocketAddr>) {
    const AT_MOST: Duration = Duration::from_millis(200);
    let at_most = Timespec::try_from(AT_MOST).ok();
    for (listener, address) in listeners.iter().zip(addresses) {
        let connected = TcpStream::connect_timeout(&address, AT_MOST);
        let said = connected.and_then(|mut stream| stream.write_all(&[0]).map(|()| stream));
        // Without a way there is nothing to take, and nothing was changed.
        if said.is_ok() {
            poll(&mut [PollFd::new(listener, PollFlags::IN)], at_most.as_ref()).ok();
            drop(listener.accept());
        }
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Serves what was prepared, in tasks of this runtime, for as long as it runs.
pub fn start(prepared: Prepared, uplink: &Uplink) -> io::Result<()> {
    let names = Arc::new(Names::default());
    for queries in prepared.queries {
        let queries = tokio::net::UdpSocket::from_std(queries)?;
        tokio::spawn(resolver::datagrams(queries, Arc::clone(&names)));
    }
    for listener in prepared.resolver {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(resolver::streams(listener, Arc::clone(&names)));
    }
    let capture = capture::Capture::new(uplink.clone(), names);
    for (listeners, how) in
        [(prepared.proxy, capture::How::Proxy), (prepared.captured, capture::How::Captured)]
    {
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(capture.clone().accept(listener, how));
        }
    }
    Ok(())
}

fn addresses(port: u16) -> impl Iterator<Item = SocketAddr> {
    [IpAddr::V4(ADDRESS), IpAddr::V6(ADDRESS_V6)]
        .into_iter()
        .map(move |address| SocketAddr::new(address, port))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // The backlog of the standard library is too short for a thousand connections at once.
    const BACKLOG: i32 = 4096;
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set(setting: &str, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).open(setting)?.write_all(value.as_bytes())
}
