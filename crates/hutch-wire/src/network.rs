//! The network port: how connections of the guest reach the proxy worker.
//!
//! The port [`NETWORK_PORT`] carries a multiplexed connection of its own ([`crate::connection`]); the worker on the host
//! is its client, init its server, and only init opens streams. The payload of an open request is one [`Open`] in
//! postcard; then follow the raw bytes of the connection, both ways, half-close included. The host refuses a
//! connection by resetting its stream; init passes that on as a TCP reset.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port.
pub const NETWORK_PORT: &str = "hutch.network";
/// The explicit proxy's TCP port in the guest.
pub const PROXY_PORT: u16 = 3128;
/// Names of the explicit proxy in the guest; also, on other ports, the names of the user's machine.
pub const PROXY_NAMES: [&str; 2] = ["host.docker.internal", "gateway.docker.internal"];

/// What a new stream is: one TCP connection that something in the guest made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// To the explicit proxy: the client speaks HTTP to it.
    Proxy,
    /// To somewhere else: the client believes that it talks to this destination.
    Captured {
        /// Where to.
        destination: Destination,
        /// TCP port, not 0.
        port: u16,
    },
}

/// Where a captured connection was meant to go. Said by a hostile guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// The name that the guest's resolver had given the address for; ASCII, as the client asked for it.
    Name(String),
    /// An address that stands for no name.
    Address(IpAddr),
}
