//! IP addresses as they really are: one form for each, whatever it is disguised as, and the ranges that are special.
//!
//! An IPv6 address may carry an IPv4 address to which a gateway on the way delivers it. Such an address is judged as
//! itself *and* as everything it may carry: [`faces`] gives the list, and one refused face refuses the address.
//!
//! | range | what happens to a connection |
//! | --- | --- |
//! | `0.0.0.0/8`, `::`, multicast, broadcast | refused always: none of them is a destination, and Linux connects `0.0.0.0` to itself |
//! | CGNAT `100.64.0.0/10`, `192.0.0.0/24`, `240.0.0.0/4`, site-local `fec0::/10`, Azure's `168.63.129.16` | refused unless its host is allowed by a rule: private networks and metadata that the configured ranges do not name |
//! | `198.18.0.0/15` | refused when asked for as an address, unless by a rule: the guest's resolver gives these out, and a host behind such a resolver of its own would reach a name that was never judged; a name may resolve there |
//! | documentation ranges | nothing: nobody is there |
//! | private, loopback, link-local, metadata at `169.254.169.254` | the configuration's `blockedCIDRs` decides |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a special range means for a connection into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Refused whatever the configuration says.
    Never,
    /// Refused unless a rule allows the host.
    UnlessAllowed,
    /// Refused unless a rule allows the host, but only when the address itself was asked for.
    LiteralUnlessAllowed,
}

/// A range of addresses with a meaning of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialRange {
    /// Its first address.
    pub network: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
    /// What it is, after "is": `a multicast address`.
    pub what: &'static str,
    /// What happens to a connection into it.
    pub treatment: Treatment,
}

impl SpecialRange {
    const fn v4(network: [u8; 4], prefix: u8, what: &'static str, treatment: Treatment) -> Self {
        let [a, b, c, d] = network;
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix, what, treatment }
    }

    const fn v6(first: u16, prefix: u8, what: &'static str, treatment: Treatment) -> Self {
        Self {
            network: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)),
            prefix,
            what,
            treatment,
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for SpecialRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The special ranges, as the table above says; broadcast stands before the reserved range that it lies in.
pub const SPECIAL: &[SpecialRange] = &[
    SpecialRange::v4([0, 0, 0, 0], 8, "an unspecified address", Treatment::Never),
    SpecialRange::v4([224, 0, 0, 0], 4, "a multicast address", Treatment::Never),
    SpecialRange::v4([255, 255, 255, 255], 32, "the broadcast address", Treatment::Never),
    SpecialRange::v6(0, 128, "an unspecified address", Treatment::Never),
    SpecialRange::v6(0xff00, 8, "a multicast address", Treatment::Never),
    SpecialRange::v4(
        [100, 64, 0, 0],
        10,
        "a carrier's or overlay network's private address",
        Treatment::UnlessAllowed,
    ),
    SpecialRange::v4([192, 0, 0, 0], 24, "a protocol address", Treatment::UnlessAllowed),
    SpecialRange::v4([240, 0, 0, 0], 4, "a reserved address", Treatment::UnlessAllowed),
    SpecialRange::v4(
        [168, 63, 129, 16],
        32,
        "a cloud's address for its own machines",
        Treatment::UnlessAllowed,
    ),
    SpecialRange::v6(0xfec0, 10, "a private address", Treatment::UnlessAllowed),
    SpecialRange::v4(
        [198, 18, 0, 0],
        15,
        "an address that stands for a name",
        Treatment::LiteralUnlessAllowed,
    ),
];

/// The special range that an address, or an IPv4 address that it carries, lies in.
pub fn special(address: IpAddr) -> Option<&'static SpecialRange> {
    let faces = faces(address);
    // In the table's order: what is refused always comes before what a rule can allow.
    SPECIAL.iter().find(|range| faces.iter().any(|face| range.contains(*face)))
}

/// The one form of an address: an IPv4-mapped IPv6 address is that IPv4 address.
///
/// Nothing else is folded: packets to a 6to4 address do not go where those to its IPv4 address go.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Everything that an address must be judged as: itself, in its one form, then every IPv4 address that it may carry.
pub fn faces(address: IpAddr) -> Vec<IpAddr> {
    let address = canonical(address);
    let mut faces = vec![address];
    if let IpAddr::V6(address) = address {
        faces.extend(carried(address).into_iter().map(IpAddr::V4));
    }
    faces
}

/// The IPv4 addresses that an IPv6 address may be delivered to.
fn carried(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let octets = address.octets();
    let at = |from: usize| {
        Ipv4Addr::new(octets[from], octets[from + 1], octets[from + 2], octets[from + 3])
    };
    let mut carried = Vec::new();
    match address.segments() {
        // Loopback and unspecified are IPv6 addresses of their own, not compatible forms.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return carried,
        // IPv4-compatible ::/96 (RFC 4291 2.5.5.1) and the translated ::ffff:0:0:0/96 (RFC 2765).
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => carried.push(at(12)),
        // NAT64's well-known prefix (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => carried.push(at(12)),
        // NAT64's local prefix (RFC 8215), of a length that only the network knows.
        [0x64, 0xff9b, 1, ..] => carried.extend(carried_by_local_nat64(octets)),
        // Teredo (RFC 4380): the server's address, and the client's, inverted.
        [0x2001, 0, ..] => {
            carried.push(at(4));
            carried.push(Ipv4Addr::from_bits(!at(12).to_bits()));
        }
        // 6to4 (RFC 3056).
        [0x2002, ..] => carried.push(at(2)),
        _ => {}
    }
    // ISATAP (RFC 5214) below any prefix: the interface identifier, with either value of the u and g bits.
    if octets[8] & 0xfc == 0 && octets[9..12] == [0, 0x5e, 0xfe] {
        carried.push(at(12));
    }
    carried
}

/// The readings of an address in 64:ff9b:1::/48 by the prefix lengths of RFC 6052, section 2.2; octet 8 is skipped.
///
/// A reading that gives 0.0.0.0/8 is a wrong guess of the length, unless there is no other.
fn carried_by_local_nat64(o: [u8; 16]) -> Vec<Ipv4Addr> {
    let readings = [
        Ipv4Addr::new(o[6], o[7], o[9], o[10]),
        Ipv4Addr::new(o[7], o[9], o[10], o[11]),
        Ipv4Addr::new(o[9], o[10], o[11], o[12]),
        Ipv4Addr::new(o[12], o[13], o[14], o[15]),
    ];
    let likely: Vec<Ipv4Addr> =
        readings.into_iter().filter(|reading| reading.octets()[0] != 0).collect();
    if likely.is_empty() { vec![Ipv4Addr::UNSPECIFIED] } else { likely }
}

/// Reads an IPv4 address in any of the forms that `inet_aton` knows: one to four parts, each decimal, octal with a
/// leading `0` or hexadecimal with a leading `0x`, the last part filling what remains.
///
/// [`None`] for what is no such address; see [`ends_in_number`] for why that is then no host name either.
pub(crate) fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = Vec::with_capacity(4);
    for part in text.split('.') {
        if parts.len() == 4 {
            return None;
        }
        parts.push(parse_part(part)?);
    }
    let last = parts.pop()?;
    let mut bits = 0_u64;
    for part in &parts {
        if *part > 255 {
            return None;
        }
        bits = (bits << 8) | part;
    }
    let remaining = 8 * (4 - u32::try_from(parts.len()).ok()?);
    if last >= 1_u64 << remaining {
        return None;
    }
    u32::try_from((bits << remaining) | last).ok().map(Ipv4Addr::from_bits)
}

fn parse_part(part: &str) -> Option<u64> {
    let (digits, radix) = match part.as_bytes() {
        [] => return None,
        [b'0', b'x' | b'X', digits @ ..] => (digits, 16),
        [b'0', digits @ ..] if !digits.is_empty() => (digits, 8),
        digits => (digits, 10),
    };
    // A bare `0x` is zero, as in browsers; a sign is not a digit here, as it is for `from_str_radix`.
    let mut value = 0_u64;
    for digit in digits {
        let digit = char::from(*digit).to_digit(radix)?;
        value = value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Whether the last label is a number, so that the text is an IPv4 address or nothing.
///
/// No top-level domain is a number, and resolvers read such text as an address: it must not pass as a name.
pub(crate) fn ends_in_number(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or(text);
    match last.as_bytes() {
        [] => false,
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
pub(crate) mod tests;
