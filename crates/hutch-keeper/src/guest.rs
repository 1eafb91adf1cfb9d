//! The channel to init: from a byte stream to a guest that is this sandbox.

use std::path::PathBuf;

use hutch_wire::guest::{AttachSpec, Open};
use hutch_wire::{Connection, ConnectionError, Incoming, Limits, Role, Stream};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use crate::attach::realtime_ns;
use crate::control::{self, Control};
use crate::log::{BoundedLog, guest_text};

/// A guest that sessions can start in.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) connection: Connection,
    pub(crate) control: Control,
}

/// Shakes hands with init and attaches the sandbox, once it is known what that is. An error is one sentence.
pub(crate) async fn connect(
    port: UnixStream,
    spec: impl Future<Output = Result<AttachSpec, String>>,
    init_log: PathBuf,
) -> Result<Guest, String> {
    let (connection, incoming) = Connection::establish(port, Role::Client, Limits::default())
        .await
        .map_err(|error| lost(&error))?;
    tracing::info!(version = connection.version(), "the guest's init answered");
    tokio::spawn(refuse_all(incoming));
    let mut control = open(&connection, &Open::Control).await?;
    let log = open(&connection, &Open::Log).await?;
    tokio::spawn(copy_log(log, init_log));
    // The guest took a while to come here, and the spec is older than that.
    let spec = AttachSpec { realtime_ns: realtime_ns(), ..spec.await? };
    control::attach(&mut control, spec).await?;
    Ok(Guest { connection, control: Control::start(control) })
}

/// One sentence about the end of the channel.
pub(crate) fn lost(error: &ConnectionError) -> String {
    guest_text(&format!("the channel to the guest ended: {error}"))
}

async fn open(connection: &Connection, what: &Open) -> Result<Stream, String> {
    let payload = postcard::to_stdvec(what).map_err(|error| error.to_string())?;
    connection.open(&payload).await.map_err(|error| guest_text(&format!("the guest: {error}")))
}

/// In this version the guest has nothing to open.
async fn refuse_all(mut incoming: Incoming) {
    while let Some(stream) = incoming.next().await {
        stream.refuse("the host takes no streams");
    }
}

/// Writes init's log down, readable on any terminal.
async fn copy_log(mut stream: Stream, path: PathBuf) {
    let mut log = match BoundedLog::open(&path) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%error, "init's log cannot be written");
            return;
        }
    };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(got) => log.append(buffer.get(..got).unwrap_or_default()),
        }
    }
}
