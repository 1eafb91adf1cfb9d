//! The sandbox's only way out, in a process of its own: applies the policy, adds credentials, forwards, logs.
//!
//! The keeper starts it with [`spawn()`] and speaks the messages of [`control`] with it.
//!
//! ```text
//!   spawn       starts the two processes of a sandbox's network: worker and broker
//!   control     what the keeper says to them
//!   worker      the worker's life: jail, control messages, connections of the guest
//!   accept      a connection of the guest: judged, its first bytes read, tunnelled or its requests served
//!   front       the requests of a connection: to the proxy, or to the one place that it is for
//!   forward     one request: judged, prepared, sent, answered, logged
//!   head, chunked, http1, http2   what the guest's requests are read with
//!   gate, live  the policy of the moment, and the connections that it cuts
//!   tunnel, retried   bytes both ways; a second name in them
//!   upstream    resolving, judging addresses, connecting, TLS, connections that wait
//!   exchange    the seams that credentials and the log are plugged in at
//!   broker      the other process: finds credentials, for the services of the sandbox alone
//!   credential  puts them into requests and keeps them out of answers (scrub, oauth)
//!   log_writer  the log of requests and connections
//!   secret_command   what `hutch secret` runs
//!   ca          the sandbox's certificate authority and the certificates made on the fly
//! ```
//!
//! Invariant: what the guest sends decides nothing. A connection is made only to an address that the policy passed for
//! exactly the host that every layer of the connection names.

mod accept;
pub mod broker;
pub mod ca;
pub mod chunked;
mod confine;
pub mod control;
mod credential;
mod detect;
pub mod exchange;
mod forward;
mod front;
mod gate;
pub mod head;
mod http1;
mod http2;
mod live;
pub mod log_writer;
mod oauth;
mod retried;
mod scrub;
pub mod secret_command;
pub mod spawn;
mod stream;
#[cfg(test)]
mod tests;
mod tunnel;
mod upstream;
pub mod worker;

pub use spawn::{BrokerSpec, Proxy, Spawn, SpawnError, spawn};
