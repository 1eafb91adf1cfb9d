//! A hermetic world for tests that run the real programs: their own home, state, runtime directory and user.
//!
//! ```text
//!   stage         what `cargo xtask prepare-tests` made: programs, guest images
//!   environment   one test's world; ends with a check that nothing is left of it
//!   account       who runs the programs: an ordinary user, also when the tests run as root
//!   invocation    one run of a program, with a deadline, its output kept apart
//!   terminal      one run of a program in a pseudo-terminal, with the screen as a person sees it
//!   conversation  one run of a program that answers line by line
//!   sandbox       a sandbox of an environment
//!   internet      names, servers and certificates in a network namespace
//!   registry      a registry of images in that internet
//!   hostile       a guest that attacks its host
//!   small_disk    a file system that can be filled
//!   traces        processes, sockets and mounts that belong to an environment
//!   wait          waiting for something with a deadline
//! ```
//!
//! Everything here panics with what a person needs to know when an expectation fails: a test is a list of expectations.

#![expect(clippy::panic, reason = "an expectation of a test that fails is a panic")]

pub mod account;
pub mod conversation;
pub mod environment;
pub mod hostile;
pub mod internet;
pub mod invocation;
pub mod registry;
pub mod sandbox;
pub mod small_disk;
pub mod stage;
pub mod terminal;
pub mod traces;
pub mod wait;

pub use account::Account;
pub use conversation::Conversation;
pub use environment::TestEnvironment;
pub use internet::Internet;
pub use invocation::{Invocation, Outcome, Running};
pub use registry::{REGISTRY, REGISTRY_LOGIN, Registry, RegistryAccess};
pub use sandbox::TestSandbox;
pub use stage::Stage;
pub use terminal::Terminal;
pub use wait::eventually;
