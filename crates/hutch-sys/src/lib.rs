//! The only host crate with `unsafe`: processes, descriptors, jails.

pub mod spawn;
