//! Connections of the guest, from their first byte on: to the explicit proxy, captured, or asked for with `CONNECT`.
//!
//! ```text
//!   judge host ─ denied ──▶ HTTP: each request is told 403 · else: reset
//!      │
//!   resolve, judge addresses
//!      │
//!   bypassed ────────────▶ tunnel, unread
//!      │
//!   first bytes ─ TLS ───▶ name agrees? ─ terminate ─▶ requests inside
//!      │                                └ tunnel
//!      ├ HTTP ───────────▶ requests inside
//!      └ else ───────────▶ reset
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use hutch_policy::client_hello::ClientHello;
use hutch_policy::host::{Authority, Host, Port};
use hutch_policy::log::{How, Record};
use hutch_policy::policy::{Decision, HostVerdict, Verdict};
use hutch_wire::IncomingStream;
use hutch_wire::network::{Destination, Open};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::detect::{Spoken, detect};
use crate::exchange::{Body, Pending};
use crate::forward::{Entry, Place, plain, refusal, refused_record};
use crate::front::{Entrance, Front, is_proxy};
use crate::gate::{Gate, State, Treatment};
use crate::http1::{self, Reply};
use crate::http2;
use crate::live::Admitted;
use crate::retried::watched;
use crate::stream::{Io, Rewound};
use crate::tunnel::{Moved, relay};
use crate::upstream::{Dialed, Kept, Key, Unreachable, Way};

/// How long a client may take to say what it speaks.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// The same where it is refused anyway, unless it speaks HTTP.
const FIRST_BYTES_REFUSED: Duration = Duration::from_millis(500);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// The rule that refuses what is neither TLS nor HTTP.
const UNKNOWN: &str = "<not HTTP or TLS>";
/// The rule that refuses TLS that does not say for whom it is.
const NAMELESS: &str = "<no server name>";
/// The rule that refuses TLS for another server.
const OTHER_NAME: &str = "<server name mismatch>";
/// The rule that refuses TLS that cannot be read.
const BROKEN_TLS: &str = "<malformed TLS>";
/// The rule that refuses the proxy to the proxy.
const LOOP: &str = "<proxy loop>";

/// Takes a connection of the guest and serves it in a task of its own.
pub(crate) fn accept(gate: &Arc<Gate>, stream: IncomingStream) {
    let open: Open = match postcard::from_bytes(stream.payload()) {
        Ok(open) => open,
        Err(_) => return stream.refuse("not a connection"),
    };
    let place = match open {
        Open::Proxy => None,
        Open::Captured { destination, port } => match captured(&destination, port) {
            Some(place) if is_proxy(&place) => None,
            Some(place) => Some(place.rewritten()),
            None => return refuse_odd(gate, stream, &destination, port),
        },
    };
    let gate = Arc::clone(gate);
    let io: Box<dyn Io> = Box::new(stream.accept());
    tokio::spawn(async move {
        match place {
            None => proxy(gate, io).await,
            Some(place) => take_captured(&gate, io, place).await,
        }
    });
}

/// Serves a client of the explicit proxy.
pub(crate) async fn proxy(gate: Arc<Gate>, io: Box<dyn Io>) {
    let front = Front { gate, entrance: Entrance::Proxy };
    http1::serve(io, Bytes::new(), &front).await;
}

fn captured(destination: &Destination, port: u16) -> Option<Authority> {
    let host = match destination {
        Destination::Name(name) => Host::parse(name).ok()?,
        Destination::Address(address) => Host::from(*address),
    };
    Some(Authority { host, port: Port::new(port)? })
}

fn refuse_odd(gate: &Gate, stream: IncomingStream, destination: &Destination, port: u16) {
    let mut record = gate.record(How::Refused, Decision::Denied);
    record.rule = "<malformed destination>".to_owned();
    record.reason = "the destination is no host".to_owned();
    record.host = match destination {
        Destination::Name(name) => name.clone(),
        Destination::Address(address) => address.to_string(),
    };
    record.port = port;
    gate.log(record);
    stream.refuse("not a destination");
}

/// A place that may be connected to, and how.
struct Route {
    place: Authority,
    verdict: HostVerdict,
    state: Arc<State>,
    way: Way,
    treatment: Treatment,
    dialed: Option<Dialed>,
}

impl Route {
    /// Judges a place and its addresses; nothing is connected yet.
    async fn find(gate: &Gate, place: Authority) -> Result<Self, Unreachable> {
        let state = gate.state();
        let verdict = gate.judge_host(&state, &place).map_err(Unreachable::Refused)?;
        let way = gate.upstreams.find(gate, &state, &place, &verdict).await?;
        let treatment = treatment(gate, &state, &place, &way);
        Ok(Self { place, verdict, state, way, treatment, dialed: None })
    }

    async fn dial(&mut self, gate: &Gate) -> Result<Dialed, Unreachable> {
        match self.dialed.take() {
            Some(dialed) => Ok(dialed),
            None => gate.upstreams.dial(&self.way, &self.place).await,
        }
    }
}

/// A range bypasses a name only if all of its addresses lie in bypassed ones: any of them may be connected to.
fn treatment(gate: &Gate, state: &State, place: &Authority, way: &Way) -> Treatment {
    let of = |address: Option<IpAddr>| gate.treatment(state, place, address);
    match way {
        Way::Addresses(addresses) => {
            let bypassed = |address: &SocketAddr| of(Some(address.ip())) == Treatment::Bypass;
            if addresses.iter().all(bypassed) { Treatment::Bypass } else { of(None) }
        }
        Way::Configured(_) | Way::Proxy => of(None),
    }
}

async fn take_captured(gate: &Arc<Gate>, mut io: Box<dyn Io>, place: Authority) {
    match Route::find(gate, place.clone()).await {
        Ok(route) => inside(gate, io, route).await,
        Err(unreachable) => {
            // Whoever speaks HTTP is told why.
            if let Ok(Spoken::Http(before)) = detect(&mut *io, FIRST_BYTES_REFUSED).await {
                let place = Place { authority: place, also: None, secure: false };
                let front = Front { gate: Arc::clone(gate), entrance: Entrance::Inside(place) };
                http1::serve(io, before, &front).await;
            } else {
                log_unreachable(gate, &place, &unreachable);
            }
        }
    }
}

fn log_unreachable(gate: &Gate, place: &Authority, unreachable: &Unreachable) {
    gate.log(match unreachable {
        Unreachable::Refused(verdict) => refused_record(gate, place, verdict),
        Unreachable::Failed { sentence, .. } => failed_record(gate, place, sentence),
    });
}

fn failed_record(gate: &Gate, place: &Authority, sentence: &str) -> Record {
    let verdict = gate.state().policy.judge_host(&place.host, place.port).into_verdict();
    let mut record = gate.record_of(How::Tunnel, place, &verdict);
    record.error = Some(sentence.to_owned());
    record
}

/// Answers `CONNECT`.
pub(crate) async fn connect(gate: &Arc<Gate>, asked: Authority, accept: Option<&str>) -> Reply {
    if is_proxy(&asked) {
        return Reply::Response(loops(gate, &asked, accept));
    }
    let place = asked.rewritten();
    let mut route = match Route::find(gate, place.clone()).await {
        Ok(route) => route,
        Err(unreachable) => {
            return Reply::Response(not_connected(gate, &place, &unreachable, accept));
        }
    };
    if route.treatment != Treatment::Terminate {
        match route.dial(gate).await {
            Ok(dialed) => route.dialed = Some(dialed),
            Err(unreachable) => {
                return Reply::Response(not_connected(gate, &place, &unreachable, accept));
            }
        }
    }
    let gate = Arc::clone(gate);
    let then = move |io: Box<dyn Io>| -> Pending<'static, ()> {
        Box::pin(async move { inside(&gate, io, route).await })
    };
    Reply::Switch(Response::new(()), Box::new(then))
}

fn not_connected(
    gate: &Gate,
    place: &Authority,
    unreachable: &Unreachable,
    accept: Option<&str>,
) -> Response<Body> {
    let (mut record, response) = match unreachable {
        Unreachable::Refused(verdict) => {
            (refused_record(gate, place, verdict), refusal(gate, place, verdict, accept))
        }
        Unreachable::Failed { sentence, late } => {
            let status = if *late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
            (failed_record(gate, place, sentence), plain(status, sentence))
        }
    };
    record.method = Some("CONNECT".to_owned());
    record.status = Some(response.status().as_u16());
    gate.log(record);
    response
}

/// Refuses to go through the proxy to the proxy.
pub(crate) fn loops(gate: &Gate, place: &Authority, accept: Option<&str>) -> Response<Body> {
    let verdict = Verdict::refused(LOOP, "the proxy is not reached through itself");
    let mut record = refused_record(gate, place, &verdict);
    record.status = Some(StatusCode::FORBIDDEN.as_u16());
    gate.log(record);
    refusal(gate, place, &verdict, accept)
}

/// Serves a connection to a place that may be connected to.
async fn inside(gate: &Arc<Gate>, mut io: Box<dyn Io>, mut route: Route) {
    if route.treatment == Treatment::Bypass {
        return tunnel(gate, io, route, None, None, Bytes::new()).await;
    }
    let refuse = |rule: &str, reason: String| {
        gate.log(refused_record(gate, &route.place, &Verdict::refused(rule, reason)));
    };
    match detect(&mut *io, FIRST_BYTES).await {
        Ok(Spoken::Tls(hello, before)) => {
            let also = match agreed_name(&route.place, &hello) {
                Ok(also) => also,
                Err(verdict) => {
                    return gate.log(refused_record(gate, &route.place, &verdict));
                }
            };
            if let Some(also) = &also
                && let Err(verdict) = gate.judge_also(&route.state, &route.verdict, also)
            {
                return gate.log(refused_record(gate, also, &verdict));
            }
            if route.treatment == Treatment::Terminate {
                terminate(gate, io, route.place, also, before).await;
            } else {
                tunnel(gate, io, route, also, Some(hello), before).await;
            }
        }
        Ok(Spoken::Http(before)) => {
            reuse(gate, &mut route).await;
            let place = Place { authority: route.place, also: None, secure: false };
            let front = Front { gate: Arc::clone(gate), entrance: Entrance::Inside(place) };
            http1::serve(io, before, &front).await;
        }
        Ok(Spoken::BrokenTls(error)) => refuse(BROKEN_TLS, error.to_string()),
        Ok(Spoken::Other) => refuse(UNKNOWN, "it is neither TLS nor HTTP".to_owned()),
        Ok(Spoken::Silent) => refuse(UNKNOWN, "the client said nothing first".to_owned()),
        Ok(Spoken::Ended) => {
            io.shutdown().await.ok();
        }
        Err(error) => tracing::debug!(%error, "a connection of the guest broke off"),
    }
}

/// A connection that was made for a tunnel is used for the first request instead.
async fn reuse(gate: &Gate, route: &mut Route) {
    let Some(dialed) = route.dialed.take() else { return };
    let key = Key {
        place: route.place.clone(),
        name: route.place.host.clone(),
        secure: false,
        http1: false,
    };
    let (address, peer) = (dialed.address, dialed.peer);
    if let Ok(sender) = gate.upstreams.handshake(&key, dialed).await {
        gate.upstreams.pool.put(key, Kept { sender, address, peer, fresh: true });
    }
}

/// Whether the server name of the handshake is that of the place; for an address, the name is to be judged as well.
///
/// Of an encrypted ClientHello, the outer name is judged. Only the server that was allowed by that name can read the
/// other one, so what it may lead to is what that server chooses to serve.
fn agreed_name(place: &Authority, hello: &ClientHello) -> Result<Option<Authority>, Verdict> {
    let asked = hello.server_name.clone().map(Host::rewritten);
    match (&place.host, asked) {
        (Host::Name(_), None) => {
            let reason = format!("the TLS handshake does not name {}", place.host);
            Err(Verdict::refused(NAMELESS, reason))
        }
        (host, Some(asked)) if *host == asked => Ok(None),
        (Host::Name(_), Some(asked)) => {
            let reason =
                format!("the TLS handshake names {asked}, the connection is for {}", place.host);
            Err(Verdict::refused(OTHER_NAME, reason))
        }
        (Host::Address(_), None) => Ok(None),
        (Host::Address(_), Some(asked)) => Ok(Some(Authority { host: asked, port: place.port })),
    }
}

/// Passes the connection on, from the first byte on; a bypassed one, of which nothing was read, has no `hello`.
async fn tunnel(
    gate: &Arc<Gate>,
    mut client: Box<dyn Io>,
    mut route: Route,
    also: Option<Authority>,
    hello: Option<ClientHello>,
    before: Bytes,
) {
    let how = if hello.is_some() { How::Tunnel } else { How::Bypass };
    let named = also.as_ref().unwrap_or(&route.place);
    let mut entry = Entry::new(gate, gate.record_of(how, named, route.verdict.verdict()));
    if how == How::Tunnel {
        entry.record.protocol = Some("tls".to_owned());
    }
    let dialed = match route.dial(gate).await {
        Ok(dialed) => dialed,
        Err(Unreachable::Refused(verdict)) => return entry.refuse(&verdict),
        Err(Unreachable::Failed { sentence, .. }) => {
            entry.record.error = Some(sentence);
            return;
        }
    };
    entry.record.address = dialed.peer.map(|peer| peer.ip().to_string());
    let admitted = Admitted {
        place: route.place.clone(),
        also,
        address: dialed.address,
        bypassed: how == How::Bypass,
    };
    let guard = match gate.admit(&admitted) {
        Ok(guard) => guard,
        Err(verdict) => return entry.refuse(&verdict),
    };
    if !before.is_empty() {
        client = Box::new(Rewound::new(before, client));
    }
    let moved = Moved::default();
    let (mut server, mut renamed) = (dialed.io, None);
    if let Some(hello) = hello {
        let watched = watched(hello.server_name, client, server);
        (client, server) = (watched.0, watched.1);
        renamed = Some(watched.2);
    }
    let end = relay(&mut *client, &mut *server, &guard.cut, &moved, None).await;
    entry.ended(&moved, &end);
    if renamed.is_some_and(|renamed| renamed.load(Ordering::Relaxed)) {
        let reason = "a second TLS handshake message names another server";
        entry.refuse(&Verdict::refused(OTHER_NAME, reason));
    }
}

/// Ends the client's TLS here and serves the requests in it.
async fn terminate(
    gate: &Arc<Gate>,
    io: Box<dyn Io>,
    place: Authority,
    also: Option<Authority>,
    before: Bytes,
) {
    let host = also.as_ref().map_or(&place.host, |also| &also.host);
    let failed = |sentence: String| {
        let mut record = failed_record(gate, &place, &sentence);
        record.how = How::Terminated;
        record.protocol = Some("tls".to_owned());
        gate.log(record);
    };
    let config = match gate.state().ca.server(host) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, %host, "no certificate");
            return failed("no certificate could be made for it".to_owned());
        }
    };
    // Where HTTP/2 would hold too much, it is not offered.
    let slot = Arc::clone(&gate.http2).try_acquire_owned().ok();
    let config = if slot.is_some() { config } else { Arc::new(only_http1(&config)) };
    let handshake = TlsAcceptor::from(config).accept(Rewound::new(before, io));
    let stream = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return failed(format!("the client broke off the TLS handshake: {error}"));
        }
        Err(_) => return failed("the client's TLS handshake took too long".to_owned()),
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let entrance = Entrance::Inside(Place { authority: place.clone(), also, secure: true });
    let front = Front { gate: Arc::clone(gate), entrance };
    if http2 {
        http2::serve(Box::new(stream), front).await;
        drop(slot);
    } else {
        drop(slot);
        http1::serve(Box::new(stream), Bytes::new(), &front).await;
    }
}

fn only_http1(config: &ServerConfig) -> ServerConfig {
    let mut config = config.clone();
    config.alpn_protocols.retain(|protocol| protocol != b"h2");
    config
}
