//! The way out: where a host is, whether each of its addresses may be connected to, and the connection itself.
//!
//! ```text
//!   find      resolve on the host, judge every address       →  Way: the checked addresses, nothing else
//!   dial      connect to one of exactly those (RFC 8305), or to the configured gateway, or through the host's proxy
//!   connect   TLS with ALPN where it is asked for, then HTTP/1.1 or HTTP/2
//!   pool      connections that wait for the next request to the same place
//! ```

mod http;
mod pool;
mod proxy;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hutch_policy::host::{Authority, Host, HostError};
use hutch_policy::policy::{HostVerdict, Verdict};
use hutch_policy::settings::NetworkSettings;
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::gate::{Gate, State};
use crate::stream::Io;

pub(crate) use http::{Sender, Sent};
pub(crate) use pool::{Kept, Key, Pool};
use proxy::HostProxy;
use tls::Tls;
pub(crate) use tls::native_roots;

/// How long the host may take to resolve a name.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an address is waited for before the next is tried beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are looked at.
const ADDRESSES: usize = 32;

/// Why the settings of the upstreams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamsError {
    /// Not a host.
    #[error("an upstream's host is not one")]
    Host(#[from] HostError),
    /// Certificates that cannot be read.
    #[error("the certificates of {what} cannot be used")]
    Roots {
        /// Whose.
        what: String,
    },
    /// The TLS library refuses.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// Not a proxy's URL.
    #[error("the host's proxy cannot be used: {problem}")]
    Proxy {
        /// What is wrong; without the URL, which may hold a password.
        problem: &'static str,
    },
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(crate) enum Unreachable {
    /// The policy refuses an address.
    Refused(Verdict),
    /// It did not work: one sentence for the client.
    Failed {
        /// The sentence.
        sentence: String,
        /// It took too long.
        late: bool,
    },
}

impl Unreachable {
    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed { sentence: sentence.into(), late: false }
    }

    fn late(sentence: impl Into<String>) -> Self {
        Self::Failed { sentence: sentence.into(), late: true }
    }
}

/// A way to a place that was judged.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// To one of these, all of which passed.
    Addresses(Vec<SocketAddr>),
    /// To where the user says that the host is.
    Configured(SocketAddr),
    /// Through the host's own proxy.
    Proxy,
}

/// A connection and the judged address that it leads to.
pub(crate) struct Dialed {
    pub(crate) io: Box<dyn Io>,
    /// None where no address was judged.
    pub(crate) address: Option<IpAddr>,
    /// For the log.
    pub(crate) peer: Option<SocketAddr>,
}

#[derive(Debug)]
struct Configured {
    address: SocketAddr,
    tls: Option<Tls>,
}

/// Everything about the way out that does not change.
#[derive(Debug)]
pub(crate) struct Upstreams {
    configured: HashMap<Host, Configured>,
    proxy: Option<HostProxy>,
    tls: Tls,
    pub(crate) pool: Pool,
}

impl Upstreams {
    pub(crate) fn new(
        settings: &NetworkSettings,
        roots: Arc<RootCertStore>,
    ) -> Result<Self, UpstreamsError> {
        let roots = tls::with_extra(roots, &settings.extra_roots_pem)?;
        let tls = Tls::new(Arc::clone(&roots))?;
        let mut configured = HashMap::new();
        for upstream in &settings.upstreams {
            let own = upstream.roots_pem.as_ref().map(|pem| tls::only(&upstream.host, pem));
            let own = own.transpose()?.map(Tls::new).transpose()?;
            let entry = Configured { address: upstream.address, tls: own };
            configured.insert(Host::parse(&upstream.host)?.rewritten(), entry);
        }
        let proxy = settings.upstream_proxy.as_ref();
        let proxy = proxy.map(|proxy| HostProxy::new(proxy, &tls)).transpose()?;
        Ok(Self { configured, proxy, tls, pool: Pool::default() })
    }

    /// Whether the user says where this host is.
    pub(crate) fn is_configured(&self, host: &Host) -> bool {
        self.configured.contains_key(host)
    }

    fn tls_of(&self, host: &Host) -> &Tls {
        self.configured.get(host).and_then(|entry| entry.tls.as_ref()).unwrap_or(&self.tls)
    }

    /// Resolves a host that the policy passed, and judges every address that it has.
    pub(crate) async fn find(
        &self,
        gate: &Gate,
        state: &State,
        place: &Authority,
        verdict: &HostVerdict,
    ) -> Result<Way, Unreachable> {
        if let Some(entry) = self.configured.get(&place.host) {
            return Ok(Way::Configured(entry.address));
        }
        let by_proxy = self.proxy.as_ref().is_some_and(|proxy| proxy.carries(place));
        let addresses = match addresses(place).await {
            Ok(addresses) => addresses,
            // A host behind a proxy often resolves nothing itself; the proxy does.
            Err(_) if by_proxy => return Ok(Way::Proxy),
            Err(error) => return Err(error),
        };
        for address in &addresses {
            gate.judge_address(state, verdict, place, Some(address.ip()))
                .map_err(Unreachable::Refused)?;
        }
        Ok(if by_proxy { Way::Proxy } else { Way::Addresses(addresses) })
    }

    /// Connects.
    pub(crate) async fn dial(&self, way: &Way, place: &Authority) -> Result<Dialed, Unreachable> {
        match (way, &self.proxy) {
            (Way::Configured(address), _) => {
                let stream = race(std::slice::from_ref(address), place).await?;
                Ok(Dialed { io: Box::new(stream), address: None, peer: Some(*address) })
            }
            (Way::Proxy, Some(proxy)) => {
                let io = proxy.tunnel(place).await?;
                Ok(Dialed { io, address: None, peer: None })
            }
            (Way::Proxy, None) => Err(Unreachable::failed("there is no proxy to go through")),
            (Way::Addresses(addresses), _) => {
                let stream = race(addresses, place).await?;
                let peer = stream.peer_addr().ok();
                let address = peer.map(|peer| peer.ip());
                Ok(Dialed { io: Box::new(stream), address, peer })
            }
        }
    }
}

/// The addresses of a place, as this machine resolves it now.
pub(crate) async fn addresses(place: &Authority) -> Result<Vec<SocketAddr>, Unreachable> {
    let port = place.port.get();
    let found = match &place.host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        // Never asked for: nobody shall say that the user's machine is elsewhere.
        Host::Name(_) if place.host.is_machine() => vec![
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
        ],
        Host::Name(name) => {
            let lookup = timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), port))).await;
            let found = lookup
                .map_err(|_| {
                    Unreachable::late(format!("the name {name} could not be resolved in time"))
                })?
                .map_err(|_| Unreachable::failed(format!("the name {name} cannot be resolved")))?;
            let mut unique: Vec<SocketAddr> = Vec::new();
            for address in found {
                if !unique.contains(&address) {
                    unique.push(address);
                }
            }
            unique
        }
    };
    if found.is_empty() || found.len() > ADDRESSES {
        return Err(Unreachable::failed(format!("the name {} has no usable address", place.host)));
    }
    Ok(found)
}

/// Connects to the first of these that answers.
async fn race(addresses: &[SocketAddr], place: &Authority) -> Result<TcpStream, Unreachable> {
    let mut attempts = JoinSet::new();
    let mut waiting = interleaved(addresses).into_iter();
    let mut last = None;
    if let Some(address) = waiting.next() {
        attempts.spawn(connect(address));
    }
    loop {
        let more = waiting.len() > 0;
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = Some(error),
                Some(Err(_)) => {}
                None if more => {}
                None => break,
            },
            () = sleep(STAGGER), if more => {}
        }
        if let Some(address) = waiting.next() {
            attempts.spawn(connect(address));
        }
    }
    let late = last.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let why = match last.map(|error| error.kind()) {
        Some(io::ErrorKind::ConnectionRefused) => "it refuses connections",
        Some(io::ErrorKind::TimedOut) => "it does not answer",
        Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            "no network leads there"
        }
        _ => "the connection failed",
    };
    Err(Unreachable::Failed { sentence: format!("{place} cannot be reached: {why}"), late })
}

/// One family after the other, beginning with the one that the resolver prefers (RFC 8305, 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let (mut same, mut other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .iter()
        .copied()
        .partition(|address: &SocketAddr| address.is_ipv4() == first.is_ipv4());
    let mut order = Vec::with_capacity(addresses.len());
    same.reverse();
    other.reverse();
    while !same.is_empty() || !other.is_empty() {
        order.extend(same.pop());
        order.extend(other.pop());
    }
    order
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
