//! Decides what may leave a sandbox, and with which credential. Pure: no I/O, no clock.
//!
//! ```text
//!   settings   what the configuration of a sandbox's network says, as the command line hands it to the keeper
//! ```

pub mod settings;
