//! Decides what may leave a sandbox, and with which credential. Pure: no I/O, no clock.
//!
//! ```text
//!   settings      what the configuration of a sandbox's network says, as the command line hands it to the keeper
//!   config        the policy of one sandbox as a file, and changes to it
//!   host          names, addresses and ports, one value for each however it is spelled
//!   address       what an address is behind its disguise, and which addresses are special
//!   pattern       host patterns and address ranges
//!   policy        the decision
//!   services      which service's credential belongs to which hosts, and how it is sent
//!   client_hello  reads what a TLS client asks for
//!   refusal       what a refused client is told
//!   log           one line for each request or connection, without secrets; and the table of them
//! ```

pub mod address;
pub mod client_hello;
pub mod config;
pub mod host;
pub mod log;
pub mod pattern;
pub mod policy;
pub mod refusal;
pub mod services;
pub mod settings;
