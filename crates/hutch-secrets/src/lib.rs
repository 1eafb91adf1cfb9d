//! Reads and holds credentials. Only the proxy may depend on this crate.
