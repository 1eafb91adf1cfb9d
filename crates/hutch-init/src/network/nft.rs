//! Writes nf_tables requests: tables, chains and rules of expressions (`linux/netfilter/nf_tables.h`).
//!
//! Only what [`super::rules`] needs. There is no `nft` in the initramfs: it would bring three libraries, and starting it
//! takes longer under emulation than everything that this module does.

use std::io;
use std::net::IpAddr;

use rustix::net::netlink::NETFILTER;

use super::netlink::{ACK, APPEND, Batch, Body, CREATE, REQUEST};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

/// Registers: the verdict, and two of 16 bytes.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const REGISTER_2: u32 = 2;

/// Size of an interface's name in a register.
const NAME_SIZE: usize = 16;

/// Where a base chain hooks into the packets' way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Filter,
    Nat,
}

/// A fixed property of a packet.
#[derive(Debug, Clone, Copy)]
enum Meta {
    OutputName = 7,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

#[derive(Debug, Clone, Copy)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy)]
pub(super) enum Transport {
    Tcp = 6,
    Udp = 17,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    /// ICMP or ICMPv6 "administratively prohibited".
    Prohibited,
    /// A TCP reset.
    Reset,
}

/// A rule: expressions that are looked at in order, as long as each holds.
#[derive(Debug, Default)]
pub(super) struct Rule(Vec<(&'static str, Body)>);

impl Rule {
    /// The packet leaves by this interface.
    pub(super) fn leaves_by(self, name: &str) -> Self {
        self.meta(Meta::OutputName).compare(Compare::Equal, &padded(name))
    }

    /// The packet leaves by another interface.
    pub(super) fn leaves_not_by(self, name: &str) -> Self {
        self.meta(Meta::OutputName).compare(Compare::NotEqual, &padded(name))
    }

    /// The route to the packet's destination goes out by this interface.
    pub(super) fn routed_to(self, name: &str) -> Self {
        const RESULT_NAME: u32 = 2;
        const DESTINATION: u32 = 2;
        self.expression("fib", |fib| {
            fib.be32(1, REGISTER).be32(2, RESULT_NAME).be32(3, DESTINATION);
        })
        .compare(Compare::Equal, &padded(name))
    }

    /// The packet is for this address.
    pub(super) fn for_address(self, address: IpAddr) -> Self {
        let rule = self.family(address);
        match address {
            IpAddr::V4(address) => {
                rule.payload(1, 16, 4).compare(Compare::Equal, &address.octets())
            }
            IpAddr::V6(address) => {
                rule.payload(1, 24, 16).compare(Compare::Equal, &address.octets())
            }
        }
    }

    /// The packet is of the family that this address has.
    pub(super) fn family(self, address: IpAddr) -> Self {
        self.meta(Meta::NetworkProtocol).compare(Compare::Equal, &[family_of(address)])
    }

    /// The packet is of this protocol.
    pub(super) fn transport(self, transport: Transport) -> Self {
        self.meta(Meta::TransportProtocol).compare(Compare::Equal, &[transport as u8])
    }

    /// The packet, known to be TCP or UDP, is for this port.
    pub(super) fn for_port(self, port: u16) -> Self {
        self.payload(2, 2, 2).compare(Compare::Equal, &port.to_be_bytes())
    }

    /// From here on the connection goes to this address and port.
    pub(super) fn redirect(self, address: IpAddr, port: u16) -> Self {
        const DESTINATION: u32 = 1;
        let family = u32::from(family_of(address));
        let rule = match address {
            IpAddr::V4(address) => self.load(REGISTER, &address.octets()),
            IpAddr::V6(address) => self.load(REGISTER, &address.octets()),
        };
        rule.load(REGISTER_2, &port.to_be_bytes()).expression("nat", |nat| {
            nat.be32(1, DESTINATION).be32(2, family).be32(3, REGISTER).be32(5, REGISTER_2);
        })
    }

    /// The chain is done with the packet.
    pub(super) fn accept(self) -> Self {
        const ACCEPT: u32 = 1;
        self.verdict(ACCEPT, None)
    }

    /// Another chain goes on with the packet.
    pub(super) fn jump(self, chain: &str) -> Self {
        const JUMP: u32 = (-3_i32).cast_unsigned();
        self.verdict(JUMP, Some(chain))
    }

    /// The packet goes nowhere, and the sender is told.
    pub(super) fn refuse(self, refusal: Refusal) -> Self {
        const RESET: u32 = 1;
        const UNREACHABLE: u32 = 2;
        const ADMINISTRATIVELY_PROHIBITED: u8 = 3;
        self.expression("reject", |reject| {
            match refusal {
                Refusal::Reset => reject.be32(1, RESET),
                Refusal::Prohibited => {
                    reject.be32(1, UNREACHABLE).bytes(2, &[ADMINISTRATIVELY_PROHIBITED])
                }
            };
        })
    }

    fn meta(self, key: Meta) -> Self {
        self.expression("meta", |meta| {
            meta.be32(1, REGISTER).be32(2, key as u32);
        })
    }

    /// Bytes of the network (1) or transport (2) header.
    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", |payload| {
            payload.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
        })
    }

    fn compare(self, how: Compare, value: &[u8]) -> Self {
        self.expression("cmp", |cmp| {
            cmp.be32(1, REGISTER).be32(2, how as u32).nested(3, |data| {
                data.bytes(1, value);
            });
        })
    }

    fn load(self, register: u32, value: &[u8]) -> Self {
        self.expression("immediate", |immediate| {
            immediate.be32(1, register).nested(2, |data| {
                data.bytes(1, value);
            });
        })
    }

    fn verdict(self, code: u32, chain: Option<&str>) -> Self {
        self.expression("immediate", |immediate| {
            immediate.be32(1, VERDICT).nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.be32(1, code);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        })
    }

    fn expression(mut self, name: &'static str, write: impl FnOnce(&mut Body)) -> Self {
        let mut data = Body::default();
        write(&mut data);
        self.0.push((name, data));
        self
    }
}

/// Everything that the kernel is to take in one piece.
#[derive(Debug)]
pub(super) struct Transaction {
    batch: Batch,
    table: &'static str,
}

impl Transaction {
    /// Starts with a new table of both families.
    pub(super) fn table(table: &'static str) -> Self {
        let mut batch = Batch::default();
        batch.message(BATCH_BEGIN, REQUEST, &header(0, SUBSYSTEM));
        let mut body = header(FAMILY_INET, 0);
        body.text(1, table).be32(2, 0);
        batch.message(NEW_TABLE, REQUEST | ACK | CREATE, &body);
        Self { batch, table }
    }

    /// A chain that others jump to.
    pub(super) fn chain(self, name: &str) -> Self {
        self.new_chain(name, |_| {})
    }

    /// A chain that the kernel asks itself. What it does not decide passes.
    pub(super) fn base_chain(self, name: &str, kind: Kind, hook: Hook, priority: i32) -> Self {
        const ACCEPT: u32 = 1;
        self.new_chain(name, |body| {
            body.nested(4, |place| {
                place.be32(1, hook as u32).be32(2, priority.cast_unsigned());
            })
            .be32(5, ACCEPT)
            .text(
                7,
                match kind {
                    Kind::Filter => "filter",
                    Kind::Nat => "nat",
                },
            );
        })
    }

    /// A rule at the end of a chain.
    pub(super) fn rule(mut self, chain: &str, rule: Rule) -> Self {
        const ELEMENT: u16 = 1;
        let mut body = header(FAMILY_INET, 0);
        body.text(1, self.table).text(2, chain).nested(4, |expressions| {
            for (name, data) in rule.0 {
                expressions.nested(ELEMENT, |expression| {
                    expression.text(1, name).attributes(2, &data);
                });
            }
        });
        self.batch.message(NEW_RULE, REQUEST | ACK | CREATE | APPEND, &body);
        self
    }

    /// Makes it so, all or nothing.
    pub(super) fn commit(mut self) -> io::Result<()> {
        self.batch.message(BATCH_END, REQUEST, &header(0, SUBSYSTEM));
        self.batch.send(Some(NETFILTER))
    }

    fn new_chain(mut self, name: &str, write: impl FnOnce(&mut Body)) -> Self {
        let mut body = header(FAMILY_INET, 0);
        body.text(1, self.table).text(3, name);
        write(&mut body);
        self.batch.message(NEW_CHAIN, REQUEST | ACK | CREATE, &body);
        self
    }
}

/// `struct nfgenmsg`.
fn header(family: u8, resource: u16) -> Body {
    let [high, low] = resource.to_be_bytes();
    Body::new(&[family, 0, high, low])
}

fn family_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => FAMILY_IPV4,
        IpAddr::V6(_) => FAMILY_IPV6,
    }
}

/// An interface's name as the kernel has it in a register.
fn padded(name: &str) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    for (byte, letter) in bytes.iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    bytes
}
