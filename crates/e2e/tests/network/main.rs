//! The network of a sandbox, with namespaces and local servers in the internet's place.

#![expect(clippy::panic, reason = "an expectation of a test that fails is a panic")]

mod credentials;
mod guest;
mod leaks;
mod log;
mod policy;
mod tools;
mod transport;
mod ways_out;
