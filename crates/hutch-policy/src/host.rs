//! Hosts, ports and both together, as a client or a user writes them: one value for each, however it was spelled.
//!
//! A [`HostName`] is lower case, has no trailing dot, and is punycode where it was not ASCII. What any resolver would
//! read as an address is a [`Host::Address`], never a name. What is neither is an error: nothing passes unread.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use crate::address;

/// The longest text that is looked at; a name of 253 bytes may be longer before it is put in its one form.
const LONGEST_TEXT: usize = 1024;
/// The longest name (RFC 1035, without the dots at the wire format's ends).
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Names of the user's own machine, as the sandbox sees it; on the port of the proxy itself they are the proxy.
pub const MACHINE_NAMES: [&str; 2] = ["host.docker.internal", "gateway.docker.internal"];
/// What the user's own machine is called by rules, and what those names are rewritten to.
pub const LOCALHOST: &str = "localhost";

/// Why a text is no host, port or authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is there.
    #[error("the host is empty")]
    Empty,
    /// Longer than any name.
    #[error("the host is longer than {LONGEST_NAME} characters")]
    TooLong,
    /// A part between dots has no characters.
    #[error("{host:?} has an empty part between dots")]
    EmptyLabel {
        /// As it was written.
        host: String,
    },
    /// A part between dots is longer than the domain name system allows.
    #[error("{host:?} has a part of more than {LONGEST_LABEL} characters")]
    LongLabel {
        /// As it was written.
        host: String,
    },
    /// A character that no host has.
    #[error("{host:?} contains {character:?}, which no host name has")]
    Character {
        /// As it was written.
        host: String,
        /// The first such character.
        character: char,
    },
    /// A name in Unicode or punycode that stands for nothing.
    #[error("{host:?} is not a valid internationalised name")]
    International {
        /// As it was written.
        host: String,
    },
    /// It ends in a number or stands in brackets, and is no address.
    #[error("{host:?} is written like an address and is none")]
    Address {
        /// As it was written.
        host: String,
    },
    /// A name was asked for, and it is an address.
    #[error("{host:?} is an address, not a name")]
    NotName {
        /// As it was written.
        host: String,
    },
    /// The port is no number from 1 to 65535.
    #[error("{port:?} is not a port: a number from 1 to 65535 is")]
    Port {
        /// As it was written.
        port: String,
    },
    /// No port follows.
    #[error("{host:?} has no port")]
    NoPort {
        /// As it was written.
        host: String,
    },
}

/// A host name in its one form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Reads a name; an address in any form is refused.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        match Host::parse(text)? {
            Host::Name(name) => Ok(name),
            Host::Address(_) => Err(HostError::NotName { host: text.to_owned() }),
        }
    }

    /// `localhost`.
    pub fn localhost() -> Self {
        Self(Arc::from(LOCALHOST))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domains that the name lies under, longest first: `a.b.c` gives `b.c`, then `c`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(dot, _)| &self.0[dot + 1..])
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text)
    }
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// To be resolved.
    Name(HostName),
    /// In its one form ([`address::canonical`]).
    Address(IpAddr),
}

impl Host {
    /// Reads a host without port. An IPv6 address may stand in brackets and have a zone, which is dropped: an address
    /// of one link is judged, and refused or not, as that address on all of them.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > LONGEST_TEXT {
            return Err(HostError::TooLong);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(parse_ipv6);
            return address
                .map(Self::from)
                .ok_or_else(|| HostError::Address { host: text.to_owned() });
        }
        if text.contains(':')
            && let Some(address) = parse_ipv6(text)
        {
            return Ok(Self::from(address));
        }
        parse_name_or_ipv4(text)
    }

    /// The host with the names of the user's machine replaced by `localhost`.
    pub fn rewritten(self) -> Self {
        match &self {
            Self::Name(name) if MACHINE_NAMES.contains(&name.as_str()) => {
                Self::Name(HostName::localhost())
            }
            _ => self,
        }
    }

    /// Whether this is the user's own machine by one of its names: connected to at loopback, never resolved.
    pub fn is_machine(&self) -> bool {
        match self {
            Self::Name(name) => {
                name.as_str() == LOCALHOST || MACHINE_NAMES.contains(&name.as_str())
            }
            Self::Address(_) => false,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(address::canonical(address))
    }
}

impl From<Ipv6Addr> for Host {
    fn from(address: Ipv6Addr) -> Self {
        Self::from(IpAddr::V6(address))
    }
}

impl From<HostName> for Host {
    fn from(name: HostName) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Host {
    /// As it stands before a port: an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text)
    }
}

/// A TCP port that can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// HTTP's.
    pub const HTTP: Self = Self::constant(80);
    /// HTTPS's.
    pub const HTTPS: Self = Self::constant(443);

    const fn constant(port: u16) -> Self {
        match NonZeroU16::new(port) {
            Some(port) => Self(port),
            None => Self(NonZeroU16::MIN),
        }
    }

    /// Any port but 0.
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    /// Reads decimal digits: no sign, no leading zero, nothing that two readers may read differently.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let port = if plain { text.parse().ok() } else { None };
        port.map(Self).ok_or_else(|| HostError::Port { port: shortened(text) })
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host with a port: `example.com:443`, `10.0.0.1:80`, `[::1]:80`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// Where.
    pub host: Host,
    /// At which port.
    pub port: Port,
}

impl Authority {
    /// Reads a host that a port follows.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        match split_port(text)? {
            (host, Some(port)) => Ok(Self { host: Host::parse(host)?, port }),
            (host, None) => Err(HostError::NoPort { host: shortened(host) }),
        }
    }

    /// Reads a host that a port may follow.
    pub fn parse_or(text: &str, default: Port) -> Result<Self, HostError> {
        let (host, port) = split_port(text)?;
        Ok(Self { host: Host::parse(host)?, port: port.unwrap_or(default) })
    }

    /// The authority with the names of the user's machine replaced by `localhost`.
    pub fn rewritten(self) -> Self {
        Self { host: self.host.rewritten(), port: self.port }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Takes the port off; an IPv6 address without brackets has none.
pub(crate) fn split_port(text: &str) -> Result<(&str, Option<Port>), HostError> {
    let colon = match text.rfind(']') {
        Some(bracket) => text[bracket..].find(':').map(|colon| bracket + colon),
        None if text.matches(':').count() > 1 => None,
        None => text.find(':'),
    };
    match colon {
        Some(colon) => Ok((&text[..colon], Some(Port::parse(&text[colon + 1..])?))),
        None => Ok((text, None)),
    }
}

fn parse_ipv6(text: &str) -> Option<Ipv6Addr> {
    let address = match text.split_once('%') {
        Some((address, zone)) => {
            // In a URL the sign is itself escaped, as `%25`.
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-~".contains(c);
            if zone.is_empty() || !zone.chars().all(plain) {
                return None;
            }
            address
        }
        None => text,
    };
    address.parse().ok()
}

fn parse_name_or_ipv4(text: &str) -> Result<Host, HostError> {
    let host = || shortened(text);
    // Also what the mapping below would take away silently: a name with an invisible character is nobody's.
    let odd = |c: &char| {
        c.is_control()
            || c.is_whitespace()
            || matches!(*c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
            || (c.is_ascii() && !c.is_ascii_alphanumeric() && !matches!(*c, '.' | '-' | '_'))
    };
    if let Some(character) = text.chars().find(odd) {
        return Err(HostError::Character { host: host(), character });
    }
    let ascii = Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| HostError::International { host: host() })?;
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    if name.is_empty() {
        return Err(HostError::EmptyLabel { host: host() });
    }
    // The mapping gives ASCII, but might give characters of it that were not there before.
    if let Some(character) = name.chars().find(odd) {
        return Err(HostError::Character { host: host(), character });
    }
    if address::ends_in_number(name) {
        return address::parse_ipv4(name)
            .map(|address| Host::Address(address.into()))
            .ok_or_else(|| HostError::Address { host: host() });
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(HostError::EmptyLabel { host: host() });
        }
        if label.len() > LONGEST_LABEL {
            return Err(HostError::LongLabel { host: host() });
        }
    }
    if name.len() > LONGEST_NAME {
        return Err(HostError::TooLong);
    }
    Ok(Host::Name(HostName(Arc::from(name))))
}

/// The text as errors show it.
fn shortened(text: &str) -> String {
    text.chars().take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests;
