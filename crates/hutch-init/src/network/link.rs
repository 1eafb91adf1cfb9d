//! The interface that everything leaves by and nothing gets out of: `egress`, with the addresses that init listens on
//! and a route to everywhere (rtnetlink(7)).
//!
//! What gets as far as the interface, past all rules (a frame from a packet socket), finds a queue without room: its
//! sender has an error at once.

use std::io;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::netlink::{ACK, Batch, Body, CREATE, EXCLUSIVE, REQUEST};
use super::{ADDRESS, ADDRESS_V6};
use crate::log;

/// Name of the interface.
pub(super) const EGRESS: &str = "egress";

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_QUEUE: u16 = 36;
const UP: u32 = 1;
const INET: u8 = 2;
const INET6: u8 = 10;

const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_INFO_KIND: u16 = 1;
const LINK_FAMILIES: u16 = 26;
const INET6_GENERATE_ADDRESS: u16 = 8;
/// No link-local address, and so nobody who asks for routers.
const GENERATE_NONE: u8 = 1;

const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// Nobody else can have the address.
const NO_DUPLICATE_DETECTION: u8 = 0x02;

const ROUTE_INTERFACE: u16 = 4;
const ROUTE_PREFERRED_SOURCE: u16 = 7;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const TYPE_UNICAST: u8 = 1;

const QUEUE_KIND: u16 = 1;
const QUEUE_OPTIONS: u16 = 2;
/// The place of the one queue of an interface (`TC_H_ROOT`).
const ROOT: u32 = 0xffff_ffff;

/// Makes the interface. `kind` is the driver: one that takes packets and drops them.
pub(super) fn make(kind: &str) -> io::Result<()> {
    let mut link = Batch::default();
    link.message(NEW_LINK, REQUEST | ACK | CREATE | EXCLUSIVE, &new_link(kind));
    link.send(None)?;
    let index = index(EGRESS)?;
    let mut quiet = Batch::default();
    quiet.message(NEW_LINK, REQUEST | ACK, &without_own_address(index));
    quiet.send(None)?;
    up(index)?;
    let mut rest = Batch::default();
    let create = REQUEST | ACK | CREATE;
    rest.message(NEW_ADDRESS, create, &new_address(index, INET, 32, &ADDRESS.octets()));
    rest.message(NEW_ADDRESS, create, &new_address(index, INET6, 128, &ADDRESS_V6.octets()));
    rest.message(NEW_ROUTE, create, &default_route(index, INET, &ADDRESS.octets()));
    rest.message(NEW_ROUTE, create, &default_route(index, INET6, &ADDRESS_V6.octets()));
    rest.send(None)?;
    let mut queue = Batch::default();
    queue.message(NEW_QUEUE, create, &no_room(index));
    if let Err(error) = queue.send(None) {
        // The frames are dropped all the same.
        log::warn(format!("{EGRESS} takes frames without a word: {error}"));
    }
    Ok(())
}

fn index(name: &str) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(name_to_index(&socket, name)?)
}

/// `struct ifinfomsg` and attributes.
fn new_link(kind: &str) -> Body {
    let mut body = Body::new(&[0; 16]);
    body.text(LINK_NAME, EGRESS).nested(LINK_INFO, |info| {
        info.text(LINK_INFO_KIND, kind);
    });
    body
}

fn without_own_address(index: u32) -> Body {
    let mut body = Body::new(&changed_link(index, 0));
    body.nested(LINK_FAMILIES, |families| {
        families.nested(u16::from(INET6), |inet6| {
            inet6.bytes(INET6_GENERATE_ADDRESS, &[GENERATE_NONE]);
        });
    });
    body
}

/// `struct ifinfomsg` for an interface that is there and gets these flags.
fn changed_link(index: u32, flags: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed
}

/// `struct tcmsg` and attributes of a queue that has room for nothing.
fn no_room(index: u32) -> Body {
    let mut fixed = vec![0; 4];
    for word in [index, 0, ROOT, 0] {
        fixed.extend_from_slice(&word.to_ne_bytes());
    }
    let mut body = Body::new(&fixed);
    let packets = 0_u32;
    body.text(QUEUE_KIND, "pfifo").bytes(QUEUE_OPTIONS, &packets.to_ne_bytes());
    body
}

/// `struct ifaddrmsg` and attributes.
fn new_address(index: u32, family: u8, prefix: u8, address: &[u8]) -> Body {
    let flags = if family == INET6 { NO_DUPLICATE_DETECTION } else { 0 };
    let [a, b, c, d] = index.to_ne_bytes();
    let mut body = Body::new(&[family, prefix, flags, SCOPE_UNIVERSE, a, b, c, d]);
    body.bytes(ADDRESS_LOCAL, address).bytes(ADDRESS_ADDRESS, address);
    body
}

/// `struct rtmsg` and attributes.
fn default_route(index: u32, family: u8, source: &[u8]) -> Body {
    let mut body = Body::new(&[
        family,
        0,
        0,
        0,
        TABLE_MAIN,
        PROTOCOL_BOOT,
        SCOPE_UNIVERSE,
        TYPE_UNICAST,
        0,
        0,
        0,
        0,
    ]);
    body.bytes(ROUTE_INTERFACE, &index.to_ne_bytes()).bytes(ROUTE_PREFERRED_SOURCE, source);
    body
}

/// Brings up an interface that is there.
pub(crate) fn up(index: u32) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.message(NEW_LINK, REQUEST | ACK, &Body::new(&changed_link(index, UP)));
    batch.send(None)
}
