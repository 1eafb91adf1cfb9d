//! The requests of one connection of the guest: to the explicit proxy, or inside a connection to one place.
//!
//! | connection | request | goes to |
//! | --- | --- | --- |
//! | explicit proxy | `CONNECT host:port` | a connection inside ([`crate::accept`]) |
//! | explicit proxy | `GET http://host/path` | that host |
//! | to one place | `GET /path`, `Host` or `:authority` of that place | that place; another host is 421 |

use std::sync::Arc;

use http::{Method, Response, StatusCode, Version};
use hutch_policy::host::{Authority, Host, Port};
use hutch_policy::policy::Verdict;
use hutch_wire::network::{PROXY_NAMES, PROXY_PORT};
use hyper::body::Body as _;

use crate::accept;
use crate::exchange::{Body, Pending, empty};
use crate::forward::{
    Asked, Outcome, Place, Upgraded, agreed, forward, plain, refusal, refused_record,
};
use crate::gate::Gate;
use crate::head::{Fault, Head, Target};
use crate::http1::{Reply, Service};
use crate::stream::Io;
use crate::tunnel::{Moved, relay};

/// The rule that refuses what is no proper request.
pub(crate) const MALFORMED: &str = "<malformed request>";
/// The rule that refuses requests whose host is not the connection's.
pub(crate) const FRONTING: &str = "<domain fronting>";
/// To whom asks for a tunnel within a connection.
const NESTED: &str = "CONNECT is for the proxy alone, not for what is reached through it";

/// What a connection of the guest is.
#[derive(Debug, Clone)]
pub(crate) enum Entrance {
    /// To the explicit proxy.
    Proxy,
    /// To one place.
    Inside(Place),
}

/// Answers the requests of a connection.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) gate: Arc<Gate>,
    pub(crate) entrance: Entrance,
}

/// Whether this is the explicit proxy itself.
pub(crate) fn is_proxy(place: &Authority) -> bool {
    let Host::Name(name) = &place.host else { return false };
    place.port.get() == PROXY_PORT && PROXY_NAMES.contains(&name.as_str())
}

impl Service for Front {
    fn call(&self, head: Head, body: Body) -> Pending<'_, Reply> {
        Box::pin(self.answer(head, body))
    }

    fn fault(&self, fault: Fault) -> Response<Body> {
        self.malformed(status_of(fault), &fault.to_string())
    }
}

fn proxy_name() -> hutch_policy::host::HostName {
    hutch_policy::host::HostName::parse(PROXY_NAMES[0])
        .unwrap_or_else(|_| hutch_policy::host::HostName::localhost())
}

fn proxy_port() -> Port {
    Port::new(PROXY_PORT).unwrap_or(Port::HTTP)
}

fn status_of(fault: Fault) -> StatusCode {
    match fault {
        Fault::TooLarge | Fault::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Fault::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        Fault::Trace => StatusCode::METHOD_NOT_ALLOWED,
        Fault::Expectation => StatusCode::EXPECTATION_FAILED,
        Fault::Coding => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl Front {
    /// Refuses what is no request here, with a line in the log.
    fn malformed(&self, status: StatusCode, sentence: &str) -> Response<Body> {
        let verdict = Verdict::refused(MALFORMED, sentence);
        let mut record = match &self.entrance {
            Entrance::Inside(place) => refused_record(&self.gate, &place.authority, &verdict),
            Entrance::Proxy => {
                let nowhere = Authority { host: Host::Name(proxy_name()), port: proxy_port() };
                refused_record(&self.gate, &nowhere, &verdict)
            }
        };
        record.status = Some(status.as_u16());
        self.gate.log(record);
        plain(status, sentence)
    }

    async fn answer(&self, head: Head, body: Body) -> Reply {
        match (&self.entrance, &head.target) {
            (Entrance::Proxy, Target::Authority(authority)) => {
                let accept = accept_of(&head);
                accept::connect(&self.gate, authority.clone(), accept.as_deref()).await
            }
            (Entrance::Proxy, Target::Absolute { secure: false, authority, path }) => {
                if is_proxy(authority) {
                    return Reply::Response(self.loops(authority, &head));
                }
                let place =
                    Place { authority: authority.clone().rewritten(), also: None, secure: false };
                let path = path.clone();
                self.forward(&place, head, path, body).await
            }
            (Entrance::Proxy, Target::Absolute { secure: true, .. }) => {
                Reply::Response(self.malformed(
                    StatusCode::BAD_REQUEST,
                    "an https URL is asked for with CONNECT, so that its TLS is the client's",
                ))
            }
            (Entrance::Proxy, Target::Origin(_) | Target::Asterisk) => {
                Reply::Response(self.malformed(
                    StatusCode::BAD_REQUEST,
                    "this is the sandbox's proxy: it is asked with CONNECT or with an absolute URL",
                ))
            }
            (Entrance::Inside(_), Target::Authority(_)) => {
                Reply::Response(self.malformed(StatusCode::METHOD_NOT_ALLOWED, NESTED))
            }
            (Entrance::Inside(place), Target::Absolute { secure, authority, path }) => {
                if *secure != place.secure {
                    return Reply::Response(self.fronting(
                        place,
                        authority,
                        accept_of(&head).as_deref(),
                    ));
                }
                let (authority, path) = (authority.clone(), path.clone());
                self.inside(place, head, &authority, true, path, body).await
            }
            (Entrance::Inside(place), Target::Origin(path)) => {
                let path = path.clone();
                let (host, has_port) = named(place, &head);
                self.inside(place, head, &host, has_port, path, body).await
            }
            (Entrance::Inside(place), Target::Asterisk) => {
                let (host, has_port) = named(place, &head);
                let path = http::uri::PathAndQuery::from_static("*");
                self.inside(place, head, &host, has_port, path, body).await
            }
        }
    }

    async fn inside(
        &self,
        place: &Place,
        head: Head,
        host: &Authority,
        has_port: bool,
        path: http::uri::PathAndQuery,
        body: Body,
    ) -> Reply {
        match agreed(place, host, has_port) {
            Ok(also) => {
                let place = Place { also, ..place.clone() };
                self.forward(&place, head, path, body).await
            }
            Err(()) => Reply::Response(self.fronting(place, host, accept_of(&head).as_deref())),
        }
    }

    async fn forward(
        &self,
        place: &Place,
        head: Head,
        path: http::uri::PathAndQuery,
        body: Body,
    ) -> Reply {
        // An upgrade with a body has no well-defined beginning of the other protocol.
        let upgrade = head.upgrade.filter(|_| body.is_end_stream());
        let asked = Asked {
            method: head.method,
            path,
            fields: head.fields,
            body,
            version: head.version,
            upgrade,
        };
        match forward(&self.gate, place, asked).await {
            Outcome::Response(response) => Reply::Response(response),
            Outcome::Upgraded(upgraded) => switch(*upgraded),
        }
    }

    /// Refuses a request whose host is not the one that the connection is for.
    pub(crate) fn fronting(
        &self,
        place: &Place,
        host: &Authority,
        accept: Option<&str>,
    ) -> Response<Body> {
        let reason = format!("the request is for {host}, its connection for {}", place.authority);
        let verdict = Verdict::refused(FRONTING, reason);
        let mut record = refused_record(&self.gate, &place.authority, &verdict);
        record.status = Some(StatusCode::MISDIRECTED_REQUEST.as_u16());
        self.gate.log(record);
        let mut response = refusal(&self.gate, host, &verdict, accept);
        *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        response
    }

    fn loops(&self, authority: &Authority, head: &Head) -> Response<Body> {
        accept::loops(&self.gate, authority, accept_of(head).as_deref())
    }
}

/// The host of a request in its own connection; HTTP/1.0 has none to say.
fn named(place: &Place, head: &Head) -> (Authority, bool) {
    match &head.host {
        Some(host) => (host.clone(), head.host_has_port),
        None => (place.also.as_ref().unwrap_or(&place.authority).clone(), true),
    }
}

fn accept_of(head: &Head) -> Option<String> {
    let accept = head.fields.get(http::header::ACCEPT)?;
    accept.to_str().ok().map(str::to_owned)
}

/// Goes on with another protocol, under the same judgement.
fn switch(upgraded: Upgraded) -> Reply {
    let Upgraded { head, server, guard, mut entry, scrub } = upgraded;
    let then = move |mut client: Box<dyn Io>| -> Pending<'static, ()> {
        Box::pin(async move {
            let Ok(server) = server.await else {
                return entry.failed("the server broke off");
            };
            let mut server = hyper_util::rt::TokioIo::new(server);
            let moved = Moved::default();
            let end = relay(&mut *client, &mut server, &guard.cut, &moved, scrub).await;
            entry.ended(&moved, &end);
        })
    };
    Reply::Switch(head, Box::new(then))
}

/// A request of HTTP/2.
pub(crate) async fn answer_http2(
    front: &Front,
    request: http::Request<hyper::body::Incoming>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let response = respond_http2(front, request).await;
    // The library sends every body that it is given, and a client takes one after HEAD for an error of the protocol.
    if head { without_body(response) } else { response }
}

/// The head of a response alone, with the length that the body would have had.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length {
        response.headers_mut().entry(http::header::CONTENT_LENGTH).or_insert(length.into());
    }
    response.map(|_| empty())
}

async fn respond_http2(
    front: &Front,
    request: http::Request<hyper::body::Incoming>,
) -> Response<Body> {
    use http_body_util::BodyExt as _;
    let Entrance::Inside(place) = &front.entrance else {
        return front.fault(Fault::Version);
    };
    let (parts, body) = request.into_parts();
    if parts.method == Method::TRACE || parts.method.as_str().eq_ignore_ascii_case("track") {
        return front.fault(Fault::Trace);
    }
    if parts.method == Method::CONNECT {
        // Also WebSocket over HTTP/2 (RFC 8441), which our settings do not offer: clients take HTTP/1.1 for it.
        return front.malformed(StatusCode::METHOD_NOT_ALLOWED, NESTED);
    }
    let host = match host_http2(&parts, place) {
        Ok(host) => host,
        Err(fault) => return front.fault(fault),
    };
    let accept = parts.headers.get(http::header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok()).map(str::to_owned);
    let Ok(also) = agreed(place, &host.0, host.1) else {
        return front.fronting(place, &host.0, accept.as_deref());
    };
    let path = parts.uri.into_parts().path_and_query;
    let path = path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    // What the parser of HTTP/1 takes, and no more: `*` and `?x` are other targets in a request line.
    let whole = path.as_str().starts_with('/') || (path == "*" && parts.method == Method::OPTIONS);
    if !whole || !path.as_str().is_ascii() || path.as_str().contains(['#', '\\']) {
        return front.fault(Fault::Target);
    }
    let place = Place { also, ..place.clone() };
    let body = if body.is_end_stream() { empty() } else { body.map_err(Into::into).boxed_unsync() };
    let asked = Asked {
        method: parts.method,
        path,
        fields: parts.headers,
        body,
        version: Version::HTTP_2,
        upgrade: None,
    };
    match forward(&front.gate, &place, asked).await {
        Outcome::Response(response) => response,
        Outcome::Upgraded(_) => plain(StatusCode::BAD_GATEWAY, "the server changed the protocol"),
    }
}

/// The one host of a request of HTTP/2: `:authority`, and `host` only if it says the same.
fn host_http2(parts: &http::request::Parts, place: &Place) -> Result<(Authority, bool), Fault> {
    let default = if place.secure { Port::HTTPS } else { Port::HTTP };
    let parse = |text: &str| {
        let host = Authority::parse_or(text, default).map_err(|_| Fault::Host)?;
        Ok((host, Authority::parse(text).is_ok()))
    };
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let field = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(value), None) => Some(parse(value.to_str().map_err(|_| Fault::Host)?)?),
        (Some(_), Some(_)) => return Err(Fault::HostCount),
    };
    let pseudo = parts.uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (pseudo, field) {
        (Some(pseudo), Some(field)) if pseudo.0 != field.0 => Err(Fault::HostMismatch),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Fault::HostCount),
    }
}
