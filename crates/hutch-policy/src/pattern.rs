//! Host patterns and address ranges, as users write them in rules.
//!
//! | pattern | covers |
//! | --- | --- |
//! | `example.com`, `10.0.0.1`, `::1` | exactly that host, at any port |
//! | `example.com:443`, `10.0.0.1:80`, `[::1]:80` | that host, at that port |
//! | `*.example.com`, `*.example.com:443` | its subdomains at every depth, not itself |
//! | `*:443` | any host, at that port |
//! | `*` | everything |
//!
//! The most specific pattern decides ([`HostPattern::specificity`]): exact host with port, exact host, wildcards with
//! the longest domain first and with port before without, `*:port`, `*`. The names of the user's machine are
//! `localhost` here too, so that a rule for either opens and closes the same thing.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use crate::address;
use crate::host::{Host, HostError, HostName, Port, split_port};

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has a scheme.
    #[error("{pattern:?} is a URL; a pattern is a host, as in `example.com` or `example.com:443`")]
    Url {
        /// As it was written.
        pattern: String,
    },
    /// It has a path or a prefix length.
    #[error(
        "{pattern:?} has a `/`; a pattern is a host, and ranges of addresses are given as CIDR rules"
    )]
    Slash {
        /// As it was written.
        pattern: String,
    },
    /// An asterisk stands where none may.
    #[error(
        "{pattern:?} has an asterisk in the wrong place: `*`, `*:443` and `*.example.com` are patterns"
    )]
    Wildcard {
        /// As it was written.
        pattern: String,
    },
    /// The host or the port is none.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What a pattern says about the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPart {
    /// Exactly this one.
    Exact(Host),
    /// Every subdomain of this name.
    Under(HostName),
    /// Any.
    Any,
}

/// A pattern for hosts and ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern {
    host: HostPart,
    port: Option<Port>,
}

impl HostPattern {
    /// Reads a pattern; see the table above.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        let shown = || pattern.chars().take(253).collect::<String>();
        if pattern.contains("://") {
            return Err(PatternError::Url { pattern: shown() });
        }
        if pattern.contains('/') {
            return Err(PatternError::Slash { pattern: shown() });
        }
        let (host, port) = split_port(pattern)?;
        let host = match host.strip_prefix('*') {
            Some("") => HostPart::Any,
            Some(domain) => match domain.strip_prefix('.') {
                Some(domain) if !domain.contains('*') => match Host::parse(domain)? {
                    Host::Name(name) => HostPart::Under(name),
                    // An address has no subdomains.
                    Host::Address(_) => return Err(PatternError::Wildcard { pattern: shown() }),
                },
                _ => return Err(PatternError::Wildcard { pattern: shown() }),
            },
            None if host.contains('*') => return Err(PatternError::Wildcard { pattern: shown() }),
            None => HostPart::Exact(Host::parse(host)?.rewritten()),
        };
        Ok(Self { host, port })
    }

    /// What it says about the host.
    pub fn host(&self) -> &HostPart {
        &self.host
    }

    /// The one port that it covers, or all.
    pub fn port(&self) -> Option<Port> {
        self.port
    }

    /// Whether it covers a host at a port.
    pub fn covers(&self, host: &Host, port: Port) -> bool {
        let host = host.clone().rewritten();
        self.port.is_none_or(|only| only == port)
            && match &self.host {
                HostPart::Exact(exact) => *exact == host,
                // Parents begin after a dot: `*.io` does not cover `evilio`.
                HostPart::Under(domain) => match &host {
                    Host::Name(name) => name.parents().any(|parent| parent == domain.as_str()),
                    Host::Address(_) => false,
                },
                HostPart::Any => true,
            }
    }

    /// Compares two patterns that cover the same host and port: the greater one decides. Equal ones are the same
    /// pattern, though they may have been spelled differently.
    pub fn specificity(&self, other: &Self) -> Ordering {
        let rank = |pattern: &Self| match &pattern.host {
            HostPart::Exact(_) => (2, 0, pattern.port.is_some()),
            HostPart::Under(domain) => (1, domain.as_str().len(), pattern.port.is_some()),
            HostPart::Any => (0, 0, pattern.port.is_some()),
        };
        rank(self).cmp(&rank(other))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            // Brackets are for telling the port apart.
            (HostPart::Exact(Host::Address(address)), None) => address.fmt(f),
            (HostPart::Exact(host), _) => host.fmt(f),
            (HostPart::Under(domain), _) => write!(f, "*.{domain}"),
            (HostPart::Any, _) => f.write_str("*"),
        }?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        Self::parse(pattern)
    }
}

/// A text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a range of addresses, as `10.0.0.0/8` or `fc00::/7` is")]
pub struct CidrError {
    text: String,
}

/// A range of addresses: `10.0.0.0/8`, `fc00::/7`, or one address.
///
/// Bits beyond the prefix are ignored, as in the files of `docker sandbox`: `10.1.2.3/8` is `10.0.0.0/8`. An IPv4 range
/// covers its addresses in their IPv4-mapped form too, and a range of mapped addresses is that IPv4 range; an IPv6
/// range covers no IPv4 address, so that `::/0` is all of IPv6 and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

impl Cidr {
    /// Reads a range.
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError { text: text.chars().take(64).collect() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        // Not by the parser of `ipnet`, which takes `010.0.0.0` for `10.0.0.0`.
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let net = match prefix {
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                let prefix = prefix.parse().map_err(|_| error())?;
                IpNet::new(address, prefix).map_err(|_| error())?
            }
            Some(_) => return Err(error()),
            None => IpNet::from(address),
        };
        Ok(Self(unmapped(net).trunc()))
    }

    /// Whether it covers an address as it is; see [`address::faces`] for what else an address may be.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.0.contains(&address::canonical(address))
    }

    /// Whether it covers all of another range.
    pub fn contains(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }
}

fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(net, IpNet::V4)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests;
