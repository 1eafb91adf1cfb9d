//! Sessions between a client and the guest.
//!
//! Bytes pass as they are, in both directions, with the back-pressure of each side's window; ends and resets pass too. Of
//! what the *client* sends on an exec stream the keeper reads the messages, to know which sessions are detached: those it
//! keeps by itself when the client goes, so that it knows when they end. What the *guest* sends is never looked at.

use std::sync::atomic::{AtomicBool, Ordering};

use hutch_wire::guest::{ExecRequest, ExecSpec};
use hutch_wire::message::{self, MESSAGE_MAX, MessageError};
use hutch_wire::{Connection, Stream};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes,
    split,
};

use crate::state::Session;

/// Bytes on the way in one direction, besides those in the windows.
const BUFFER: usize = 32 * 1024;
/// No request of a running session is longer.
const REQUEST_MAX: u32 = 64;

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its sender ended it.
    Finished,
    /// The client is gone, or broke off.
    ClientGone,
    /// The guest is gone, or broke off.
    GuestGone,
}

/// Relays one exec stream until the session ends, or its client leaves and it is not detached.
pub(crate) async fn relay(
    client: Stream,
    guest: Stream,
    connection: &Connection,
    session: Session,
) {
    let (mut client_in, mut client_out) = split(client);
    let (mut guest_in, mut guest_out) = split(guest);
    let detached = AtomicBool::new(false);
    let ended = {
        let up = requests(&mut client_in, &mut guest_out, &detached);
        let down = copy(&mut guest_in, &mut client_out);
        tokio::pin!(up, down);
        let mut requests_end = false;
        loop {
            tokio::select! {
                end = &mut down => break end,
                end = &mut up, if !requests_end => match end {
                    End::Finished => requests_end = true,
                    other => break other,
                },
                // After the client has ended its direction, only this tells that it is gone.
                _ = connection.closed() => break End::ClientGone,
            }
        }
    };
    match ended {
        End::ClientGone if detached.load(Ordering::Relaxed) => {
            drop((client_in, client_out));
            // Until the session ends; what it says has no listener.
            let _end = tokio::io::copy(&mut guest_in, &mut tokio::io::sink()).await;
        }
        // Dropping the guest's stream resets it, and init ends the session.
        End::ClientGone => {}
        End::GuestGone => client_in.unsplit(client_out).reset("the guest broke off the session"),
        // What was written before this end still arrives.
        End::Finished => drop(client_out.shutdown().await),
    }
    drop(session);
}

/// Passes the client's requests on, until the client ends them.
async fn requests(
    client: &mut (impl AsyncRead + Unpin),
    guest: &mut (impl AsyncWrite + Unpin),
    detached: &AtomicBool,
) -> End {
    let spec: ExecSpec = match message::read(client, MESSAGE_MAX).await {
        Ok(spec) => spec,
        // Without one there is no session: nothing to keep.
        Err(_) => return End::ClientGone,
    };
    detached.store(spec.detached, Ordering::Relaxed);
    if message::write(guest, &spec).await.is_err() {
        return End::GuestGone;
    }
    drop(spec);
    loop {
        let request: ExecRequest = match message::read(client, REQUEST_MAX).await {
            Ok(request) => request,
            Err(MessageError::End) => break,
            Err(_) => return End::ClientGone,
        };
        if request == ExecRequest::Detach {
            detached.store(true, Ordering::Relaxed);
        }
        if message::write(guest, &request).await.is_err() {
            // Perhaps only this direction: what the guest says last decides.
            return End::Finished;
        }
    }
    // A detached session's stream stays whole, so that its end is seen.
    if !detached.load(Ordering::Relaxed) {
        let _ended = guest.shutdown().await;
    }
    End::Finished
}

/// Passes the guest's bytes on.
async fn copy(guest: &mut (impl AsyncRead + Unpin), client: &mut (impl AsyncWrite + Unpin)) -> End {
    let mut buffer = vec![0; 4 * 1024];
    loop {
        let got = match guest.read(&mut buffer).await {
            Ok(0) => return End::Finished,
            Ok(got) => got,
            Err(_) => return End::GuestGone,
        };
        let bytes = buffer.get(..got).unwrap_or_default();
        if client.write_all(bytes).await.is_err() || client.flush().await.is_err() {
            return End::ClientGone;
        }
    }
}

/// Relays a byte stream of a session.
pub(crate) async fn relay_bytes(mut client: Stream, mut guest: Stream) {
    let copied = copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await;
    if copied.is_ok() {
        return;
    }
    match (client.reset_reason(), guest.reset_reason()) {
        (Some(reason), _) => guest.reset(&reason),
        (None, Some(reason)) => client.reset(&reason),
        // A connection has ended; dropping both resets whatever is left.
        (None, None) => {}
    }
}
