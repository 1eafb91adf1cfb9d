//! Reads the head of an HTTP/1 request, strictly: what two readers might read differently is refused, not repaired.
//!
//! Pure: bytes in, a [`Head`] or a [`Fault`] out. What passes is taken apart and written anew for the server, so that
//! no byte of the client's framing goes on. Refused beside what RFC 9112 forbids:
//!
//! | shape | why |
//! | --- | --- |
//! | bare LF, empty lines before the request line, obs-fold | allowed to be tolerated, so read in two ways |
//! | `Content-Length` twice, even with the same value, or as a list; with `Transfer-Encoding` at all | request smuggling |
//! | any transfer coding but exactly `chunked` | a coding that we would have to understand |
//! | `Host` twice, missing, or another one than in the request target | which one decides? |
//! | `TRACE`, `TRACK` | the answer would show what was put into the request |
//!
//! An upgrade to HTTP/2 (`h2c`), in which requests would not be seen, is passed over as RFC 9110 (7.8) allows: the request
//! stays one of HTTP/1. Java's client asks for it with every plain request.

mod fields;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Version};
use hutch_policy::host::{Authority, Port};

pub(crate) use fields::{content_length, parse as parse_fields};

/// The longest head.
pub(crate) const LONGEST: usize = 64 << 10;
/// The most fields of a head.
pub(crate) const MOST_FIELDS: usize = 128;
/// The longest method.
const LONGEST_METHOD: usize = 32;

/// Why a request is not one that can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line that ends in LF alone, or CR within a line.
    #[error("a line of the request does not end in CR LF")]
    LineEnd,
    /// An empty line before the request.
    #[error("there is an empty line before the request")]
    LeadingLine,
    /// Over a limit.
    #[error("the head of the request is too large")]
    TooLarge,
    /// Too many fields.
    #[error("the request has too many header fields")]
    TooManyFields,
    /// The request line is not of three parts.
    #[error("the request line is malformed")]
    RequestLine,
    /// Not a method.
    #[error("the method of the request is malformed")]
    Method,
    /// Not one of HTTP/1.1 and HTTP/1.0.
    #[error("the request is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// Not a target.
    #[error("the target of the request is malformed")]
    Target,
    /// A field line that is not one.
    #[error("a header field of the request is malformed")]
    Field,
    /// A field that goes on in the next line.
    #[error("a header field of the request is folded over two lines")]
    Folded,
    /// No host, or two.
    #[error("the request does not have exactly one Host")]
    HostCount,
    /// A host that is none.
    #[error("the Host of the request is malformed")]
    Host,
    /// Two hosts that differ.
    #[error("the target of the request and its Host differ")]
    HostMismatch,
    /// A length that is not one.
    #[error("the Content-Length of the request is malformed or there twice")]
    Length,
    /// Two kinds of framing.
    #[error("the request has both a Content-Length and a Transfer-Encoding")]
    TwoFramings,
    /// Not `chunked`.
    #[error("the Transfer-Encoding of the request is not exactly `chunked`")]
    Coding,
    /// TRACE.
    #[error("the method TRACE is not forwarded")]
    Trace,
    /// An expectation that we do not know.
    #[error("the expectation of the request is not known")]
    Expectation,
    /// A body that is not framed as announced.
    #[error("the body of the request is malformed")]
    Body,
}

/// Where a request says that it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/path`.
    Origin(PathAndQuery),
    /// `http://host/path`, to a proxy.
    Absolute {
        /// Whether it says `https`.
        secure: bool,
        /// Host and port.
        authority: Authority,
        /// The rest.
        path: PathAndQuery,
    },
    /// `host:port`, with `CONNECT` alone.
    Authority(Authority),
    /// `*`, with `OPTIONS` alone.
    Asterisk,
}

/// How the body of a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With a last chunk.
    Chunked,
}

/// A request's head.
#[derive(Debug, Clone)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Where to.
    pub target: Target,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// All fields, in order.
    pub fields: HeaderMap,
    /// The field `Host`.
    pub host: Option<Authority>,
    /// The field `Host` has a port.
    pub host_has_port: bool,
    /// How the body ends.
    pub framing: Framing,
    /// The client waits before it sends the body.
    pub expects_continue: bool,
    /// The client wants to go on with the next request.
    pub keep_alive: bool,
    /// The protocols of `Upgrade` but HTTP's own, if `Connection` names it.
    pub upgrade: Option<String>,
}

/// Finds the end of a head as bytes arrive; every byte is looked at once.
#[derive(Debug, Default)]
pub struct Finder {
    seen: usize,
}

impl Finder {
    /// The length of the head with its last line, once all of it is in `bytes`, which only grows between the calls.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        if matches!(bytes.first(), Some(b'\r' | b'\n')) {
            return Err(Fault::LeadingLine);
        }
        while let Some(at) = bytes[self.seen..].iter().position(|byte| *byte == b'\n') {
            let at = self.seen + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Fault::LineEnd);
            }
            self.seen = at + 1;
            if self.seen > LONGEST {
                return Err(Fault::TooLarge);
            }
            if bytes[..self.seen].ends_with(b"\r\n\r\n") {
                return Ok(Some(self.seen));
            }
        }
        self.seen = bytes.len();
        if self.seen > LONGEST { Err(Fault::TooLarge) } else { Ok(None) }
    }
}

/// Reads a whole head, whose end [`Finder`] found.
pub fn parse(bytes: &[u8]) -> Result<Head, Fault> {
    let lines = bytes.strip_suffix(b"\r\n\r\n").ok_or(Fault::LineEnd)?;
    let (line, rest) = match lines.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => (&lines[..end], &lines[end + 2..]),
        None => (lines, &[][..]),
    };
    let (method, target, version) = request_line(line)?;
    let fields = fields::parse(rest)?;
    if fields.len() > MOST_FIELDS {
        return Err(Fault::TooManyFields);
    }
    let target = parse_target(&method, target)?;
    let (host, host_has_port) = host(&fields, version, &target)?;
    let framing = framing(&fields, version)?;
    let connection = fields::tokens(&fields, &header::CONNECTION)?;
    let upgrade = upgrade(&fields, &connection)?;
    let expects_continue = match fields.get(header::EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            version == Version::HTTP_11
        }
        Some(_) => return Err(Fault::Expectation),
    };
    let has = |token: &str| connection.iter().any(|name| name == token);
    let keep_alive = if version == Version::HTTP_11 {
        !has("close")
    } else {
        has("keep-alive") && !has("close")
    };
    Ok(Head {
        method,
        target,
        version,
        fields,
        host,
        host_has_port,
        framing,
        expects_continue,
        keep_alive,
        upgrade,
    })
}

fn request_line(line: &[u8]) -> Result<(Method, &str, Version), Fault> {
    // Also keeps out every control character, and with them CR.
    if !line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(Fault::RequestLine);
    }
    let line = std::str::from_utf8(line).map_err(|_| Fault::RequestLine)?;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::RequestLine);
    };
    if method.is_empty() || method.len() > LONGEST_METHOD {
        return Err(Fault::Method);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Fault::Method)?;
    if method == Method::TRACE || method.as_str().eq_ignore_ascii_case("track") {
        return Err(Fault::Trace);
    }
    // Methods are case-sensitive; one that differs from a known one by case alone is read as that one by some.
    if method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(Fault::Method);
    }
    let version = match version {
        "HTTP/1.1" => Version::HTTP_11,
        "HTTP/1.0" => Version::HTTP_10,
        _ => return Err(Fault::Version),
    };
    Ok((method, target, version))
}

fn parse_target(method: &Method, target: &str) -> Result<Target, Fault> {
    if *method == Method::CONNECT {
        return Authority::parse(target).map(Target::Authority).map_err(|_| Fault::Target);
    }
    // A fragment never leaves a client; a backslash is a slash to some.
    if target.contains(['#', '\\']) {
        return Err(Fault::Target);
    }
    let path = |path: &str| PathAndQuery::try_from(path).map_err(|_| Fault::Target);
    if target == "*" {
        return if *method == Method::OPTIONS { Ok(Target::Asterisk) } else { Err(Fault::Target) };
    }
    if target.starts_with('/') {
        return path(target).map(Target::Origin);
    }
    let (scheme, rest) = target.split_once("://").ok_or(Fault::Target)?;
    let (secure, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (false, Port::HTTP),
        "https" => (true, Port::HTTPS),
        _ => return Err(Fault::Target),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let authority = Authority::parse_or(authority, port).map_err(|_| Fault::Target)?;
    let path = match rest {
        "" => PathAndQuery::from_static("/"),
        rest if rest.starts_with('?') => path(&format!("/{rest}"))?,
        rest => path(rest)?,
    };
    Ok(Target::Absolute { secure, authority, path })
}

fn host(
    fields: &HeaderMap,
    version: Version,
    target: &Target,
) -> Result<(Option<Authority>, bool), Fault> {
    let mut all = fields.get_all(header::HOST).iter();
    let value = match (all.next(), all.next()) {
        (Some(value), None) => value,
        (None, None) if version == Version::HTTP_10 => return Ok((None, false)),
        _ => return Err(Fault::HostCount),
    };
    let text = value.to_str().map_err(|_| Fault::Host)?;
    let port = match target {
        Target::Absolute { secure: true, .. } => Port::HTTPS,
        Target::Authority(authority) => authority.port,
        _ => Port::HTTP,
    };
    let host = Authority::parse_or(text, port).map_err(|_| Fault::Host)?;
    let has_port = Authority::parse(text).is_ok();
    let agrees = match target {
        Target::Absolute { authority, .. } => *authority == host,
        // Some clients leave out the port here.
        Target::Authority(authority) => authority.host == host.host,
        Target::Origin(_) | Target::Asterisk => true,
    };
    if agrees { Ok((Some(host), has_port)) } else { Err(Fault::HostMismatch) }
}

fn framing(fields: &HeaderMap, version: Version) -> Result<Framing, Fault> {
    let length = content_length(fields)?;
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next(), length) {
        (None, _, length) => Ok(Framing::Length(length.unwrap_or(0))),
        (Some(_), _, Some(_)) => Err(Fault::TwoFramings),
        (Some(coding), None, None)
            if version == Version::HTTP_11
                && coding.as_bytes().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(Framing::Chunked)
        }
        _ => Err(Fault::Coding),
    }
}

/// What the connection may be changed to: never another version of HTTP.
fn upgrade(fields: &HeaderMap, connection: &[String]) -> Result<Option<String>, Fault> {
    let mut protocols = fields::tokens(fields, &header::UPGRADE)?;
    protocols.retain(|name| name != "h2c" && name != "h2" && !name.starts_with("http/"));
    let asked = connection.iter().any(|name| name == "upgrade") && !protocols.is_empty();
    Ok(asked.then(|| protocols.join(", ")))
}

/// Takes away the fields that belong to one hop, and those that `Connection` names.
pub(crate) fn strip_hop(fields: &mut HeaderMap) {
    // `TE: trailers` says what the client can take, and goes on as that alone. Looked at first: `Connection` names it.
    let trailers = fields::tokens(fields, &header::TE)
        .is_ok_and(|tokens| tokens.iter().any(|token| token == "trailers"));
    let named = fields::tokens(fields, &header::CONNECTION).unwrap_or_default();
    for name in named {
        if let Ok(name) = HeaderName::try_from(name) {
            fields.remove(name);
        }
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
    ] {
        fields.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        fields.remove(name);
    }
    fields.remove(header::TE);
    if trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests;
