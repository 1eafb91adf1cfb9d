//! Tests that boot virtual machines; all of them are in `tests/`, by concern.
//!
//! ```text
//!   boot        a sandbox comes up as promised: kernel, user, time, size, no network device
//!   exec        sessions: streams, status, terminals, signals, and that nothing leaks
//!   workspace   the host's directory inside: semantics, ownership, changes seen on the other side
//!   lifecycle   create, run, stop, remove, reset, idle stop; what is kept and what goes
//!   crash       each part killed at each moment, disk full, damaged state, commands at once
//!   escape      an attack on each barrier of docs/threat-model.md
//!   network     ways out, policies, credentials, the log, the tools that people use
//!   escape_network  attacks on the proxy and on the capture of connections, one table
//!   templates   images made elsewhere, a registry, and sandboxes that are saved
//!   plugin      the real Docker client
//!   qemu10      another version of the VMM
//! ```
