//! What the fuzz targets claim: one function for each, which panics when a claim does not hold.
//!
//! Tests of `hutch-layer`, `hutch-policy` and `hutch-proxy` run the same functions over the seeds in every test run.

pub mod client_hello;
pub mod layer;
pub mod log_writer;
pub mod policy_patterns;
#[cfg(feature = "proxy")]
pub mod request_head;
