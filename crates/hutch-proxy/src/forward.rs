//! One request: judged, given its credential, sent, and its response on the way back.
//!
//! ```text
//!   judge host → connection (waiting one, or resolve, judge addresses, dial) → admit → prepare → send → answer
//! ```
//!
//! The same for HTTP/1 and HTTP/2, for requests to the explicit proxy and for those in connections of their own. What
//! comes back is the response, or the refusal in its place; either way there is a line in the log once it has ended.

mod passing;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hutch_policy::host::{Authority, Host, Port};
use hutch_policy::log::{How, Record};
use hutch_policy::policy::{Decision, HostVerdict, Verdict};
use hutch_policy::refusal::Refusal;
use hyper::body::{Body as _, Incoming};

use crate::exchange::{Answer, Body, Destination, Note, Prepared, Scrub, full};
use crate::gate::{Gate, State};
use crate::head::strip_hop;
use crate::live::{Admitted, Guard};
use crate::upstream::{Kept, Key, Sent, Unreachable};

pub(crate) use passing::Entry;
use passing::{Counted, Passing};

/// Tries on connections that turn out to be closed.
const TRIES: usize = 4;

/// Where the requests of a connection go.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// What was judged.
    pub(crate) authority: Authority,
    /// The name that a connection to an address gives itself.
    pub(crate) also: Option<Authority>,
    /// Whether TLS is spoken.
    pub(crate) secure: bool,
}

impl Place {
    /// The name by which the server is asked, and must prove itself.
    fn named(&self) -> &Authority {
        self.also.as_ref().unwrap_or(&self.authority)
    }
}

/// A request, taken apart.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Body,
    /// For the log: the version, of the client's side.
    pub(crate) version: Version,
    /// The protocol that the client wants to go on with.
    pub(crate) upgrade: Option<String>,
}

/// What comes back.
pub(crate) enum Outcome {
    /// A response.
    Response(Response<Body>),
    /// The server goes on with another protocol.
    Upgraded(Box<Upgraded>),
}

/// A connection that goes on with another protocol.
pub(crate) struct Upgraded {
    pub(crate) head: Response<()>,
    pub(crate) server: hyper::upgrade::OnUpgrade,
    pub(crate) guard: Guard,
    pub(crate) entry: Entry,
    pub(crate) scrub: Option<Box<dyn Scrub>>,
}

/// Something in the way, put into words.
enum Obstacle {
    Refused(Verdict),
    Failed { status: StatusCode, sentence: String },
}

impl From<Unreachable> for Obstacle {
    fn from(unreachable: Unreachable) -> Self {
        match unreachable {
            Unreachable::Refused(verdict) => Self::Refused(verdict),
            Unreachable::Failed { sentence, late } => {
                let status =
                    if late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
                Self::Failed { status, sentence }
            }
        }
    }
}

impl From<Verdict> for Obstacle {
    fn from(verdict: Verdict) -> Self {
        Self::Refused(verdict)
    }
}

fn broken(sentence: String) -> Obstacle {
    Obstacle::Failed { status: StatusCode::BAD_GATEWAY, sentence }
}

/// Forwards a request.
pub(crate) async fn forward(gate: &Arc<Gate>, place: &Place, asked: Asked) -> Outcome {
    let accept = asked.fields.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let accept = accept.map(str::to_owned);
    let how = if place.secure { How::Terminated } else { How::Plain };
    let mut record = gate.record(how, Decision::Allowed);
    let named = place.named();
    record.host = named.host.to_string();
    record.port = named.port.get();
    record.method = Some(asked.method.to_string());
    record.url = Some(url(place, &asked.path));
    record.protocol = Some(protocol(&asked));
    let mut entry = Entry::new(gate, record);
    match attempt(gate, place, asked, &mut entry).await {
        Ok(Ready::Response(response, passing)) => {
            let (parts, body) = response.into_parts();
            entry.record.status = Some(parts.status.as_u16());
            Outcome::Response(Response::from_parts(parts, passing.wrap(body, entry)))
        }
        Ok(Ready::Upgraded(head, server, guard, scrub)) => {
            entry.record.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
            Outcome::Upgraded(Box::new(Upgraded { head, server, guard, entry, scrub }))
        }
        Err(Obstacle::Refused(verdict)) => {
            entry.refuse(&verdict);
            Outcome::Response(refusal(gate, named, &verdict, accept.as_deref()))
        }
        Err(Obstacle::Failed { status, sentence }) => {
            entry.record.status = Some(status.as_u16());
            entry.record.error = Some(sentence.clone());
            Outcome::Response(plain(status, &sentence))
        }
    }
}

enum Ready {
    Response(Response<Body>, Passing),
    Upgraded(Response<()>, hyper::upgrade::OnUpgrade, Guard, Option<Box<dyn Scrub>>),
}

async fn attempt(
    gate: &Arc<Gate>,
    place: &Place,
    asked: Asked,
    entry: &mut Entry,
) -> Result<Ready, Obstacle> {
    let state = gate.state();
    let verdict = gate.judge_host(&state, &place.authority)?;
    entry.allow(verdict.verdict());
    if let Some(also) = &place.also {
        gate.judge_also(&state, &verdict, also)?;
    }
    let key = Key {
        place: place.authority.clone(),
        name: place.named().host.clone(),
        secure: place.secure,
        http1: asked.upgrade.is_some(),
    };
    // The addresses are judged before credentials are touched.
    let mut kept = connection(gate, &state, &key, &verdict, true).await?;
    let upgrade = asked.upgrade.clone();
    let bodiless = asked.method == Method::HEAD;
    let Prepared { request, credential, answer } =
        prepare(gate, &state, place, asked, entry).await?;
    entry.record.credential = credential;
    let guard = gate.admit(&admitted(place, kept.address))?;
    let sent = send(gate, &state, &key, &verdict, &mut kept, request, upgrade.as_deref());
    let response = tokio::select! {
        biased;
        () = guard.cut.cut() => return Err(cut().into()),
        sent = sent => sent?,
    };
    entry.record.address = kept.peer.map(|peer| peer.ip().to_string());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return upgraded(response, upgrade.is_some(), guard, answer).await;
    }
    let mut response = response.map(|body| match bodiless {
        // Some servers send one over HTTP/2, which is an error of the stream there.
        true => crate::exchange::empty(),
        false => body.map_err(Into::into).boxed_unsync(),
    });
    strip_hop(response.headers_mut());
    if let Some(answer) = answer {
        let received = tokio::select! {
            biased;
            () = guard.cut.cut() => return Err(cut().into()),
            received = answer.receive(response) => received,
        };
        response = received.map_err(|withheld| broken(withheld.0))?;
        if let Some(Note(note)) = response.extensions_mut().remove::<Note>() {
            entry.record.error = Some(note);
        }
    }
    // Made anew from the body that there is in the end; kept where there is none.
    if !bodiless && response.status() != StatusCode::NOT_MODIFIED {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(Ready::Response(response, Passing::new(guard, key, kept)))
}

fn cut() -> Verdict {
    Verdict::refused("<policy change>", "the policy was changed and no longer allows it")
}

fn admitted(place: &Place, address: Option<IpAddr>) -> Admitted {
    Admitted { place: place.authority.clone(), also: place.also.clone(), address, bypassed: false }
}

/// A connection to the place: one that waits, or a new one.
async fn connection(
    gate: &Gate,
    state: &State,
    key: &Key,
    verdict: &HostVerdict,
    waiting: bool,
) -> Result<Kept, Obstacle> {
    let pool = &gate.upstreams.pool;
    let passes = |address| gate.judge_address(state, verdict, &key.place, address).is_ok();
    if waiting && let Some(kept) = pool.take(key, passes) {
        return Ok(kept);
    }
    let way = gate.upstreams.find(gate, state, &key.place, verdict).await?;
    let dialed = gate.upstreams.dial(&way, &key.place).await?;
    let (address, peer) = (dialed.address, dialed.peer);
    let sender = gate.upstreams.handshake(key, dialed).await?;
    let mut kept = Kept { sender, address, peer, fresh: true };
    if let Some(shared) = kept.sender.share() {
        let first = std::mem::replace(&mut kept.sender, shared);
        pool.put(key.clone(), Kept { sender: first, address, peer, fresh: false });
    }
    Ok(kept)
}

async fn prepare(
    gate: &Gate,
    state: &State,
    place: &Place,
    asked: Asked,
    entry: &Entry,
) -> Result<Prepared, Obstacle> {
    let Asked { method, path, mut fields, body, version: _, upgrade: _ } = asked;
    strip_hop(&mut fields);
    fields.remove(header::HOST);
    let body = Counted::new(body, Arc::clone(&entry.sent)).boxed_unsync();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = fields;
    if gate.bypass(state, &place.authority, None).is_some() {
        return Ok(Prepared { request, credential: None, answer: None });
    }
    let destination = Destination { authority: place.authority.clone(), secure: place.secure };
    let prepared = gate.credentials.prepare(&destination, request).await;
    prepared.map_err(|withheld| broken(withheld.0))
}

/// Sends the request, on another connection if the one at hand turns out to be closed.
async fn send(
    gate: &Gate,
    state: &State,
    key: &Key,
    verdict: &HostVerdict,
    kept: &mut Kept,
    request: Request<Body>,
    upgrade: Option<&str>,
) -> Result<Response<Incoming>, Obstacle> {
    let (mut parts, mut body) = request.into_parts();
    // What can be sent again without harm, should a waiting connection be closed while we use it (RFC 9110, 9.2.2).
    let again = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
        && body.is_end_stream();
    parts.headers.remove(header::CONTENT_LENGTH);
    let path = std::mem::take(&mut parts.uri);
    for left in (0..TRIES).rev() {
        let mut head = parts.clone();
        address(&mut head, key, &path, kept.sender.is_http2(), upgrade)?;
        match kept.sender.send(Request::from_parts(head, body)).await {
            Sent::Response(response) => return Ok(response),
            Sent::Unsent(request) if left > 0 => body = request.into_body(),
            Sent::Failed if left > 0 && again && !kept.fresh => body = crate::exchange::empty(),
            Sent::Unsent(_) | Sent::Failed => break,
        }
        *kept = connection(gate, state, key, verdict, left > 1).await?;
    }
    Err(broken(format!("{} broke off the connection before it answered", key.name)))
}

/// Addresses a request to the server, in the way of its version.
fn address(
    head: &mut http::request::Parts,
    key: &Key,
    path: &Uri,
    http2: bool,
    upgrade: Option<&str>,
) -> Result<(), Obstacle> {
    let authority = shown(&Authority { host: key.name.clone(), port: key.place.port }, key.secure);
    let odd = || broken("the request cannot be addressed".to_owned());
    if http2 {
        head.version = Version::HTTP_2;
        let mut uri = path.clone().into_parts();
        uri.scheme = Some(if key.secure { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(authority.parse().map_err(|_| odd())?);
        head.uri = Uri::from_parts(uri).map_err(|_| odd())?;
    } else {
        head.version = Version::HTTP_11;
        head.uri = path.clone();
        let host = HeaderValue::try_from(authority).map_err(|_| odd())?;
        head.headers.insert(header::HOST, host);
        one_cookie(&mut head.headers);
        if let Some(protocols) = upgrade {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            let protocols = HeaderValue::try_from(protocols).map_err(|_| odd())?;
            head.headers.insert(header::UPGRADE, protocols);
        } else if head.headers.contains_key(header::TE) {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    Ok(())
}

/// A client of HTTP/2 may send its cookies in several fields, which are one in HTTP/1 (RFC 9113, 8.2.3).
fn one_cookie(fields: &mut HeaderMap) {
    let values: Vec<&[u8]> =
        fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if values.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&values.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, one);
    }
}

async fn upgraded(
    mut response: Response<Incoming>,
    asked: bool,
    guard: Guard,
    answer: Option<Box<dyn Answer>>,
) -> Result<Ready, Obstacle> {
    if !asked {
        return Err(broken("the server changed the protocol unasked".to_owned()));
    }
    let server = hyper::upgrade::on(&mut response);
    let scrub = answer.as_ref().and_then(|answer| answer.upgraded());
    let mut response = response.map(|_| crate::exchange::empty());
    if let Some(answer) = answer {
        response = answer.receive(response).await.map_err(|withheld| broken(withheld.0))?;
    }
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    strip_hop(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    Ok(Ready::Upgraded(Response::from_parts(parts, ()), server, guard, scrub))
}

/// The response that a refused client is given.
pub(crate) fn refusal(
    gate: &Gate,
    place: &Authority,
    verdict: &Verdict,
    accept: Option<&str>,
) -> Response<Body> {
    let (kind, body) = Refusal::new(&gate.sandbox, place, verdict).body(accept);
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A response of one sentence.
pub(crate) fn plain(status: StatusCode, sentence: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{sentence}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// An authority as it stands in a request: without the port that goes without saying.
fn shown(authority: &Authority, secure: bool) -> String {
    let default = if secure { Port::HTTPS } else { Port::HTTP };
    if authority.port == default { authority.host.to_string() } else { authority.to_string() }
}

fn url(place: &Place, path: &PathAndQuery) -> String {
    let scheme = if place.secure { "https" } else { "http" };
    format!("{scheme}://{}{path}", shown(place.named(), place.secure))
}

fn protocol(asked: &Asked) -> String {
    match &asked.upgrade {
        Some(protocol) => protocol.clone(),
        None if asked.version == Version::HTTP_2 => "h2".to_owned(),
        None if asked.version == Version::HTTP_10 => "http/1.0".to_owned(),
        None => "http/1.1".to_owned(),
    }
}

/// What a request in a connection of its own says of its host, against what the connection is for: the other name that
/// is to be judged, if the connection is to an address; or that they differ.
pub(crate) fn agreed(
    connection: &Place,
    host: &Authority,
    host_has_port: bool,
) -> Result<Option<Authority>, ()> {
    let host = host.clone().rewritten();
    if host_has_port && host.port != connection.authority.port {
        return Err(());
    }
    if host.host == connection.named().host {
        return Ok(connection.also.clone());
    }
    match (&connection.authority.host, &connection.also) {
        // To an address, without TLS that named anything: the request may name it.
        (Host::Address(_), None) => {
            Ok(Some(Authority { host: host.host, port: connection.authority.port }))
        }
        // The address itself, where TLS had a name: the server is the same one.
        (Host::Address(_), Some(_)) if host.host == connection.authority.host => {
            Ok(connection.also.clone())
        }
        _ => Err(()),
    }
}

/// A line for what was refused before it was a request.
pub(crate) fn refused_record(gate: &Gate, place: &Authority, verdict: &Verdict) -> Record {
    gate.record_of(How::Refused, place, verdict)
}
