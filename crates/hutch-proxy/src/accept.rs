//! Connections of the guest, from their first byte on.

use std::sync::Arc;

use hutch_wire::IncomingStream;

use crate::gate::Gate;

/// Takes a connection of the guest and serves it in a task of its own.
pub(crate) fn accept(_gate: &Arc<Gate>, stream: IncomingStream) {
    stream.refuse("not served");
}
