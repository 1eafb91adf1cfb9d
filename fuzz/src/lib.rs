//! What the fuzz targets claim: one function for each, which panics when a claim does not hold.
//!
//! `crates/hutch-policy/tests` runs the same functions over the seeds in every test run.

pub mod client_hello;
pub mod log_writer;
pub mod policy_patterns;
