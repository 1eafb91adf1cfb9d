//! What host and guest say to each other, and how many conversations share one byte stream.
//!
//! ```text
//!   guest::{Open, ExecSpec, …}   messages of the sandbox protocol (postcard)
//!   message                      one length-delimited message on a stream
//!   connection                   async driver: any byte stream → many [`Stream`]s
//!   mux                          the same, as a pure state machine: no I/O, fuzzed
//!   frame                        bytes ↔ frames
//!   network                      what connections of the guest are, on the network port
//!   workspace                    the few messages beside FUSE on the workspace port
//! ```
//!
//! The same multiplexing runs between host and guest (virtio-serial port `hutch.channel`) and between the command line
//! and a keeper (Unix socket). Invariant: whatever the peer sends, memory use is bounded by [`Limits`] and nothing
//! panics; a peer that breaks the protocol loses the connection, with the reason.

pub mod connection;
pub mod frame;
pub mod guest;
pub mod message;
pub mod mux;
pub mod network;
pub mod workspace;

pub use connection::{Connection, ConnectionError, Incoming, IncomingStream, OpenError, Stream};

/// Oldest protocol version that this code still speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version that this code speaks; the handshake settles on the lower of both sides' newest.
pub const VERSION_MAX: u16 = 1;

/// Which side of a connection we are; decides who uses odd and even stream numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens odd streams: the host towards the guest, the command line towards the keeper.
    Client,
    /// Opens even streams: the guest, the keeper.
    Server,
}

/// Bounds on what one connection may hold, the same for every peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame payload in bytes that we accept or send.
    pub frame_payload: u32,
    /// Bytes that a peer may send on one stream before we have consumed any.
    pub stream_window: u32,
    /// Streams open at once, both sides together.
    pub streams: usize,
    /// Largest payload of an open request in bytes.
    pub open_payload: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_payload: 64 * 1024,
            stream_window: 256 * 1024,
            streams: 4096,
            open_payload: 16 * 1024,
        }
    }
}
