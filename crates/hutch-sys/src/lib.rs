//! The only host crate with `unsafe`: processes, descriptors, jails.
//!
//! ```text
//!   spawn      start a program: empty environment, chosen descriptors, dies with us, jailed
//!   jail       what a process gives up before it touches anything that a guest wrote
//!   process    name a process so that nobody ever signals a reused number
//!   inherited  descriptors by the numbers that we were told
//!   peer       who is at the other end of a Unix socket
//! ```

pub mod inherited;
pub mod jail;
pub mod peer;
pub mod process;
pub mod spawn;
