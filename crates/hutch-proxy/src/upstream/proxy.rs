//! The proxy that the host itself must use: HTTP `CONNECT`, over TLS too, and SOCKS5.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hutch_policy::host::{Authority, Host, Port};
use hutch_policy::pattern::Cidr;
use hutch_policy::settings::UpstreamProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::tls::{Protocols, Tls};
use super::{Unreachable, UpstreamsError, addresses, race};
use crate::stream::{Io, Rewound};

/// How long the proxy may take to connect onward.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest head of its answer.
const LONGEST_HEAD: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Https,
    Socks5,
}

/// The host's proxy.
pub(super) struct HostProxy {
    kind: Kind,
    place: Authority,
    login: Option<(String, String)>,
    except: Vec<Exception>,
    tls: Tls,
}

impl std::fmt::Debug for HostProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostProxy").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What is reached without it.
#[derive(Debug, PartialEq, Eq)]
enum Exception {
    All,
    /// The host, and all below it.
    Host(Host, Option<Port>),
    Range(Cidr),
}

impl HostProxy {
    pub(super) fn new(settings: &UpstreamProxy, tls: &Tls) -> Result<Self, UpstreamsError> {
        let wrong = |problem| UpstreamsError::Proxy { problem };
        let (scheme, rest) = settings.url.split_once("://").unwrap_or(("http", &settings.url));
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return Err(wrong("its URL is neither http://, https:// nor socks5://")),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                let decoded = unescaped(user).zip(unescaped(password));
                (
                    Some(decoded.ok_or_else(|| wrong("its user or password is badly escaped"))?),
                    place,
                )
            }
            None => (None, rest),
        };
        let port = Port::new(port).unwrap_or(Port::HTTP);
        let place = Authority::parse_or(place, port).map_err(|_| wrong("its URL names no host"))?;
        if let Some((user, password)) = &login
            && kind == Kind::Socks5
            && (user.len() > 255 || password.len() > 255)
        {
            return Err(wrong("its user or password is too long for SOCKS5"));
        }
        let except = settings.except.iter().filter_map(|text| exception(text)).collect();
        Ok(Self { kind, place, login, except, tls: tls.clone() })
    }

    /// Whether a place is reached through it.
    pub(super) fn carries(&self, place: &Authority) -> bool {
        let loopback = match place.host {
            Host::Address(address) => address.is_loopback(),
            Host::Name(_) => place.host.is_machine(),
        };
        !loopback && !self.except.iter().any(|exception| exception.covers(place))
    }

    /// Connects through it.
    pub(super) async fn tunnel(&self, place: &Authority) -> Result<Box<dyn Io>, Unreachable> {
        let late =
            || Unreachable::late(format!("the host's proxy did not connect to {place} in time"));
        timeout(ANSWER, self.open(place)).await.map_err(|_| late())?
    }

    async fn open(&self, place: &Authority) -> Result<Box<dyn Io>, Unreachable> {
        let unreachable = |_| Unreachable::failed("the host's proxy cannot be reached");
        let addresses = addresses(&self.place).await.map_err(unreachable)?;
        let mut io: Box<dyn Io> =
            Box::new(race(&addresses, &self.place).await.map_err(unreachable)?);
        if self.kind == Kind::Https {
            io = Box::new(self.tls.connect(io, &self.place.host, Protocols::Other).await?);
        }
        let broken = |_| Unreachable::failed("the host's proxy broke off");
        match self.kind {
            Kind::Socks5 => self.socks(io, place).await.map_err(broken)?,
            Kind::Http | Kind::Https => self.connect(io, place).await.map_err(broken)?,
        }
    }

    async fn connect(
        &self,
        mut io: Box<dyn Io>,
        place: &Authority,
    ) -> std::io::Result<Result<Box<dyn Io>, Unreachable>> {
        let mut head = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some((user, password)) = &self.login {
            head.push_str("Proxy-Authorization: Basic ");
            STANDARD.encode_string(format!("{user}:{password}"), &mut head);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        io.write_all(head.as_bytes()).await?;
        io.flush().await?;
        let mut answer = Vec::new();
        let end = loop {
            if answer.len() > LONGEST_HEAD || io.read_buf(&mut answer).await? == 0 {
                return Ok(Err(Unreachable::failed("the host's proxy does not answer properly")));
            }
            if let Some(end) = answer.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let status = answer.get(..12).and_then(|line| std::str::from_utf8(line).ok());
        let status =
            status.filter(|line| line.starts_with("HTTP/1.")).and_then(|line| line.get(9..));
        let sentence = match status {
            Some(status) if status.starts_with('2') => {
                let after = answer.split_off(end);
                return Ok(Ok(Box::new(Rewound::new(after, io))));
            }
            Some("407") => "the host's proxy wants another user or password".to_owned(),
            Some(status) if status.bytes().all(|byte| byte.is_ascii_digit()) => {
                format!("the host's proxy refused to connect to {place} with status {status}")
            }
            _ => "the host's proxy does not answer properly".to_owned(),
        };
        Ok(Err(Unreachable::failed(sentence)))
    }

    /// RFC 1928 and RFC 1929.
    async fn socks(
        &self,
        mut io: Box<dyn Io>,
        place: &Authority,
    ) -> std::io::Result<Result<Box<dyn Io>, Unreachable>> {
        let odd = || Ok(Err(Unreachable::failed("the host's proxy does not answer properly")));
        let method = if self.login.is_some() { 2 } else { 0 };
        io.write_all(&[5, 1, method]).await?;
        io.flush().await?;
        let mut two = [0; 2];
        io.read_exact(&mut two).await?;
        if two != [5, method] {
            return Ok(Err(Unreachable::failed(
                "the host's proxy wants another way of signing in",
            )));
        }
        if let Some((user, password)) = &self.login {
            let mut message = vec![1];
            for text in [user, password] {
                message.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                message.extend_from_slice(text.as_bytes());
            }
            io.write_all(&message).await?;
            io.flush().await?;
            io.read_exact(&mut two).await?;
            if two[1] != 0 {
                return Ok(Err(Unreachable::failed(
                    "the host's proxy wants another user or password",
                )));
            }
        }
        let mut message = vec![5, 1, 0];
        match &place.host {
            Host::Address(std::net::IpAddr::V4(address)) => {
                message.push(1);
                message.extend_from_slice(&address.octets());
            }
            Host::Address(std::net::IpAddr::V6(address)) => {
                message.push(4);
                message.extend_from_slice(&address.octets());
            }
            Host::Name(name) => {
                message.push(3);
                // A host name has at most 253 bytes.
                message.push(u8::try_from(name.as_str().len()).unwrap_or(u8::MAX));
                message.extend_from_slice(name.as_str().as_bytes());
            }
        }
        message.extend_from_slice(&place.port.get().to_be_bytes());
        io.write_all(&message).await?;
        io.flush().await?;
        let mut answer = [0; 4];
        io.read_exact(&mut answer).await?;
        if answer[0] != 5 {
            return odd();
        }
        if answer[1] != 0 {
            let sentence = format!("the host's proxy refused to connect to {place}");
            return Ok(Err(Unreachable::failed(sentence)));
        }
        let length = match answer[3] {
            1 => 4,
            4 => 16,
            3 => usize::from(io.read_u8().await?),
            _ => return odd(),
        };
        let mut bound = vec![0; length + 2];
        io.read_exact(&mut bound).await?;
        Ok(Ok(io))
    }
}

impl Exception {
    fn covers(&self, place: &Authority) -> bool {
        match (self, &place.host) {
            (Self::All, _) => true,
            (Self::Range(range), Host::Address(address)) => range.covers(*address),
            (Self::Range(_), Host::Name(_)) => false,
            (Self::Host(host, port), theirs) => {
                let below = match (host, theirs) {
                    (Host::Name(domain), Host::Name(name)) => {
                        name.parents().any(|parent| parent == domain.as_str())
                    }
                    _ => false,
                };
                (host == theirs || below) && port.is_none_or(|port| port == place.port)
            }
        }
    }
}

/// One entry of `NO_PROXY`; what is none excepts nothing.
fn exception(text: &str) -> Option<Exception> {
    let text = text.trim();
    if text == "*" {
        return Some(Exception::All);
    }
    if text.contains('/') {
        return Cidr::parse(text).ok().map(Exception::Range);
    }
    let text = text.trim_start_matches("*.").trim_start_matches('.');
    match Authority::parse(text) {
        Ok(place) => Some(Exception::Host(place.host, Some(place.port))),
        Err(_) => Host::parse(text).ok().map(|host| Exception::Host(host, None)),
    }
}

/// Undoes `%41`.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let digit = |at: usize| char::from(*rest.get(at)?).to_digit(16);
            bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}
