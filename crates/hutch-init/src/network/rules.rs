//! The rules that bring every connection to init and refuse everything else at once.
//!
//! What they would be in nft's own language:
//!
//! ```text
//! chain capture      to our own address: port 53 → the resolver, the explicit proxy as it is; all other tcp → capture
//! chain output       nat, output:       oifname egress, or to our own address: jump capture
//! chain prerouting   nat, prerouting:   routed to egress, or to our own address: jump capture    (containers)
//! chain refuse       filter, output:    what still leaves by egress: tcp reset, else admin-prohibited
//! chain forwarded    filter, forward:   the same for containers
//! ```
//!
//! Loopback traffic, and what containers say to each other, is routed elsewhere and not touched. Packets are only
//! directed here, never judged: that is the host's part.

use std::io;
use std::net::IpAddr;

use super::link::EGRESS;
use super::nft::{Hook, Kind, Refusal, Rule, Transaction, Transport};
use super::{ADDRESS, ADDRESS_V6, CAPTURE_PORT, DNS_PORT, PROXY_PORT};

const TABLE: &str = "hutch";
const CAPTURE: &str = "capture";
/// Where the kernel changes destinations.
const DESTINATIONS: i32 = -100;
/// Before the rules of a container engine, which may drop without a word.
const BEFORE_FILTERS: i32 = -10;
const OURS: [IpAddr; 2] = [IpAddr::V4(ADDRESS), IpAddr::V6(ADDRESS_V6)];

/// Hands the rules to the kernel.
pub(super) fn load() -> io::Result<()> {
    let mut rules = Transaction::table(TABLE)
        .chain(CAPTURE)
        .base_chain("output", Kind::Nat, Hook::Output, DESTINATIONS)
        .base_chain("prerouting", Kind::Nat, Hook::Prerouting, DESTINATIONS)
        .base_chain("refuse", Kind::Filter, Hook::Output, BEFORE_FILTERS)
        .base_chain("forwarded", Kind::Filter, Hook::Forward, BEFORE_FILTERS);
    for address in OURS {
        let ours = |transport, port| {
            Rule::default().for_address(address).transport(transport).for_port(port)
        };
        let all = Rule::default().family(address).transport(Transport::Tcp);
        rules = rules
            // Another name server is refused like everything else that is not TCP: nobody answers in its name.
            .rule(CAPTURE, ours(Transport::Udp, DNS_PORT).redirect(address, DNS_PORT))
            .rule(CAPTURE, ours(Transport::Tcp, DNS_PORT).redirect(address, DNS_PORT))
            .rule(CAPTURE, ours(Transport::Tcp, PROXY_PORT).accept())
            .rule(CAPTURE, all.redirect(address, CAPTURE_PORT));
    }
    rules = rules
        .rule("output", Rule::default().leaves_by(EGRESS).jump(CAPTURE))
        .rule("prerouting", Rule::default().routed_to(EGRESS).jump(CAPTURE))
        .rule("refuse", Rule::default().leaves_not_by(EGRESS).accept());
    for address in OURS {
        rules = rules
            .rule("output", Rule::default().for_address(address).jump(CAPTURE))
            .rule("prerouting", Rule::default().for_address(address).jump(CAPTURE))
            // The interface is still the one from before the destination was changed.
            .rule("refuse", Rule::default().for_address(address).accept());
    }
    for (chain, leaves) in [("refuse", false), ("forwarded", true)] {
        let rule = || if leaves { Rule::default().leaves_by(EGRESS) } else { Rule::default() };
        rules = rules
            .rule(chain, rule().transport(Transport::Tcp).refuse(Refusal::Reset))
            .rule(chain, rule().refuse(Refusal::Prohibited));
    }
    rules.commit()
}
