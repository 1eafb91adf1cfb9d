//! Brings up the loopback interface, the only one that a sandbox is sure to have.

use crate::log;
use crate::network::link;

/// The loopback interface is made first in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Does it; without it the sandbox works, but nothing in it can talk to itself over IP.
pub(crate) fn up() {
    if let Err(error) = link::up(LOOPBACK_INDEX) {
        log::warn(format!("loopback interface is down: {error}"));
    }
}
