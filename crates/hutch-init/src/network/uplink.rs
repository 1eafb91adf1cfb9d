//! The connection to the proxy worker: made again whenever the host comes back, lent to whoever has a stream to open.

use std::io;
use std::time::Duration;

use hutch_wire::network::Open;
use hutch_wire::{Connection, Limits, OpenError, Role, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::log;
use crate::port::Port;

/// How long a connection of the guest waits for a proxy that is just starting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a failing port is looked at again.
const PAUSE: Duration = Duration::from_millis(200);

/// The way to the host; clones share it.
#[derive(Debug, Clone)]
pub struct Uplink {
    state: watch::Receiver<State>,
}

/// Keeps an [`Uplink`] connected.
#[derive(Debug)]
pub struct Driver {
    tell: watch::Sender<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// There is no port, or no network for this sandbox.
    Absent,
    /// It may come at any moment.
    Waiting,
    Connected(Connection),
}

/// Why a stream to the host could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NoUplink {
    /// There is no network.
    #[error("there is no network")]
    Absent,
    /// The proxy did not come in time.
    #[error("the host's proxy is not there")]
    Gone,
    /// The request does not fit, or too many streams are open.
    #[error(transparent)]
    Refused(#[from] OpenError),
    /// A request that cannot be written.
    #[error("the request cannot be written: {0}")]
    Encode(#[from] postcard::Error),
}

impl Uplink {
    /// An uplink that leads nowhere until its driver runs.
    pub fn new() -> (Self, Driver) {
        let (tell, state) = watch::channel(State::Absent);
        (Self { state }, Driver { tell })
    }

    /// Opens a stream for a connection of the guest.
    pub async fn open(&self, open: &Open) -> Result<Stream, NoUplink> {
        let payload = postcard::to_stdvec(open)?;
        let mut state = self.state.clone();
        let connection = timeout(PATIENCE, state.wait_for(|state| !state.is_waiting()))
            .await
            .map_err(|_| NoUplink::Gone)?
            .map_err(|_| NoUplink::Gone)
            .map(|state| match &*state {
                State::Connected(connection) => Some(connection.clone()),
                State::Absent | State::Waiting => None,
            })?
            .ok_or(NoUplink::Absent)?;
        Ok(connection.open(&payload).await?)
    }
}

impl State {
    fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting)
    }
}

impl Driver {
    /// From now on connections of the guest wait for the host a while instead of being refused at once.
    pub fn expect(&self) {
        self.tell.send_if_modified(|state| {
            let absent = matches!(state, State::Absent);
            if absent {
                *state = State::Waiting;
            }
            absent
        });
    }

    /// Serves the port for ever.
    pub(crate) async fn run(self, port: &Port) {
        self.expect();
        loop {
            match port.connected().await {
                Ok(stream) => self.serve(stream).await,
                Err(error) => {
                    log::warn(format!("network port: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection to the worker, until it ends.
    pub async fn serve<T>(&self, transport: T)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match Connection::establish(transport, Role::Server, Limits::default()).await {
            Ok((connection, mut incoming)) => {
                log::info(format!("network connected, protocol version {}", connection.version()));
                self.tell.send_replace(State::Connected(connection.clone()));
                // The host opens none: whatever comes is refused, until the end.
                while let Some(stream) = incoming.next().await {
                    stream.refuse("init takes no streams here");
                }
                self.tell.send_replace(State::Waiting);
                log::info(format!("network gone: {}", connection.closed().await));
            }
            Err(error) => log::info(format!("no network connection: {error}")),
        }
    }
}

impl From<NoUplink> for io::Error {
    fn from(error: NoUplink) -> Self {
        Self::other(error)
    }
}
