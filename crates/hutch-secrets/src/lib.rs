//! Reads and holds credentials. Only the proxy may depend on this crate.
//!
//! ```text
//!   secret        a value that does not print and is wiped when it goes
//!   store         secrets.json in the configuration directory: what the user gave us, and tokens of sign-ins
//!   login_shell   what the user's login shell exports: keys of ~/.bashrc and ~/.zshrc
//! ```
//!
//! Everything blocks; the broker calls it from threads that may.

pub mod login_shell;
mod secret;
pub mod store;

pub use secret::{SECRET_MAX, Secret, SecretError};
