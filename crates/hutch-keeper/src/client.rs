//! One connected command line: its calls and its sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hutch_api::{Open, Phase, Request, Response};
use hutch_wire::guest::{self, Stdio};
use hutch_wire::{Connection, IncomingStream, Limits, Role, Stream, message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::driver::Command;
use crate::exec;
use crate::network::Network;
use crate::state::{Sessions, Stage, State};

/// Streams that one client may have open.
const STREAMS_MAX: usize = 1024;
/// No request is longer: many rules, or credentials, in one.
const REQUEST_MAX: u32 = 1024 * 1024;
/// How long a client may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What every client needs.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) state: watch::Receiver<State>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) sessions: Sessions,
    /// Held by every call that is being answered; gone when no more are.
    pub(crate) call: mpsc::WeakSender<()>,
}

/// The exec streams of one client that are open: its number to the guest's.
type Execs = Arc<Mutex<HashMap<u32, u32>>>;

impl Client {
    /// Serves one connection until its end.
    pub(crate) async fn serve(self, stream: UnixStream) {
        let limits = Limits { streams: STREAMS_MAX, ..Limits::default() };
        let established = Connection::establish(stream, Role::Server, limits);
        let (connection, mut incoming) = match timeout(HANDSHAKE, established).await {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client is gone");
                return;
            }
            Err(_) => {
                tracing::debug!("a client did not say what it speaks");
                return;
            }
        };
        let execs = Execs::default();
        while let Some(stream) = incoming.next().await {
            match postcard::from_bytes(stream.payload()) {
                Ok(Open::Call) => {
                    let client = self.clone();
                    let stream = stream.accept();
                    tokio::spawn(async move { client.call(stream).await });
                }
                Ok(Open::Exec) => self.exec(stream, &connection, &execs).await,
                Ok(Open::Stdio { exec, which }) => self.stdio(stream, exec, which, &execs).await,
                Ok(Open::Changes) => self.changes(stream).await,
                Err(_) => stream.refuse("this is no request that the keeper knows"),
            }
        }
    }

    /// Answers one request.
    async fn call(mut self, mut stream: Stream) {
        let Some(_call) = self.call.upgrade() else {
            return stream.reset("the sandbox has stopped");
        };
        let Ok(request) = message::read(&mut stream, REQUEST_MAX).await else {
            return stream.reset("this is no request that the keeper knows");
        };
        let response = self.answer(request).await;
        if message::write(&mut stream, &response).await.is_err() || stream.shutdown().await.is_err()
        {
            return;
        }
        // The keeper may be about to end: an answer is given once the client has ended its side too.
        let mut rest = [0; 64];
        let _taken = timeout(ANSWER, async {
            while matches!(stream.read(&mut rest).await, Ok(got) if got > 0) {}
        })
        .await;
    }

    async fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => {}
            Request::Network(request) => {
                let network = self.network();
                return match network {
                    Ok(network) => network.answer(request).await,
                    Err(reason) => Response::Failed { reason: reason.to_owned() },
                };
            }
            Request::WaitReady => {
                // One that fails to start is told as failed, which it is only when all is cleaned up.
                let settled = |state: &State| match state.stage {
                    Stage::Booting => false,
                    Stage::Stopping => state.ready_ms.is_some(),
                    Stage::Ready | Stage::Gone | Stage::Failed(_) => true,
                };
                // An error means that the driver has ended, which the state tells.
                let _known = self.state.wait_for(settled).await.is_ok();
                let mut status = self.state.borrow().status(&self.sessions);
                if status.ready_ms.is_some() && matches!(status.phase, Phase::Failed { .. }) {
                    status.phase = Phase::Stopping;
                }
                return Response::Status(status);
            }
            Request::Stop { timeout_ms } => {
                let at_most = Duration::from_millis(timeout_ms);
                let stop = Command::Stop { at_most, reason: "stopped" };
                if self.commands.send(stop).await.is_ok() {
                    let ended =
                        |state: &State| matches!(state.stage, Stage::Gone | Stage::Failed(_));
                    let _known = self.state.wait_for(ended).await.is_ok();
                }
                return Response::Stopped;
            }
        }
        Response::Status(self.state.borrow().status(&self.sessions))
    }

    /// The guest's channel, or a sentence why there is none now.
    fn guest(&self) -> Result<Connection, &'static str> {
        let state = self.state.borrow();
        match (&state.guest, &state.stage) {
            (Some(guest), _) => Ok(guest.clone()),
            (None, Stage::Booting) => Err("the sandbox is still starting"),
            (None, _) => Err("the sandbox is stopping"),
        }
    }

    /// Who answers about the network, or a sentence why nobody does now.
    fn network(&self) -> Result<Network, &'static str> {
        let _guest = self.guest()?;
        self.state.borrow().network.clone().ok_or("the sandbox has no network")
    }

    async fn exec(&self, stream: IncomingStream, client: &Connection, execs: &Execs) {
        let guest = match self.guest() {
            Ok(guest) => guest,
            Err(reason) => return stream.refuse(reason),
        };
        let Some(session) = self.sessions.begin() else {
            return stream.refuse("too many sessions run in the sandbox");
        };
        // Before the next stream of the client is looked at: the guest must know the session before its streams.
        let opened = match open(&guest, &guest::Open::Exec).await {
            Ok(opened) => opened,
            Err(reason) => return stream.refuse(&reason),
        };
        let number = stream.id();
        lock(execs).insert(number, opened.id());
        let (execs, client) = (Arc::clone(execs), client.clone());
        tokio::spawn(async move {
            exec::relay(stream.accept(), opened, &client, session).await;
            lock(&execs).remove(&number);
        });
    }

    async fn changes(&self, stream: IncomingStream) {
        let guest = match self.guest() {
            Ok(guest) => guest,
            Err(reason) => return stream.refuse(reason),
        };
        // A sandbox that is being saved is not idle.
        let Some(session) = self.sessions.begin() else {
            return stream.refuse("too many sessions run in the sandbox");
        };
        match open(&guest, &guest::Open::Changes).await {
            Ok(opened) => {
                tokio::spawn(async move {
                    exec::relay_bytes(stream.accept(), opened).await;
                    drop(session);
                });
            }
            Err(reason) => stream.refuse(&reason),
        }
    }

    async fn stdio(&self, stream: IncomingStream, exec: u32, which: u8, execs: &Execs) {
        let which = match which {
            0 => Stdio::Stdin,
            1 => Stdio::Stdout,
            2 => Stdio::Stderr,
            3 => Stdio::Tty,
            _ => return stream.refuse("there is no such stream of a session"),
        };
        let number = lock(execs).get(&exec).copied();
        let Some(exec) = number else {
            return stream.refuse("there is no such session");
        };
        let guest = match self.guest() {
            Ok(guest) => guest,
            Err(reason) => return stream.refuse(reason),
        };
        match open(&guest, &guest::Open::Stdio { exec, which }).await {
            Ok(opened) => {
                tokio::spawn(exec::relay_bytes(stream.accept(), opened));
            }
            Err(reason) => stream.refuse(&reason),
        }
    }
}

fn lock(execs: &Execs) -> std::sync::MutexGuard<'_, HashMap<u32, u32>> {
    execs.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn open(guest: &Connection, what: &guest::Open) -> Result<Stream, String> {
    let payload = postcard::to_stdvec(what).map_err(|error| error.to_string())?;
    guest.open(&payload).await.map_err(|error| crate::log::guest_text(&error.to_string()))
}
