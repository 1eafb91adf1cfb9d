//! Answers the host on the channel, again after each loss of the connection.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hutch_wire::guest::{AttachSpec, Bytes, ControlReply, ControlRequest, Open};
use hutch_wire::message::{self, MESSAGE_MAX, MessageError};
use hutch_wire::{Connection, Incoming, IncomingStream, Limits, Role, Stream};
use tokio::sync::Mutex;

use crate::attach::{Attached, Hardware};
use crate::changes::Changes;
use crate::container::Container;
use crate::engine::Engine;
use crate::port::Port;
use crate::root::Root;
use crate::session::{Channel, Sessions};
use crate::{attach, clock, log, power_off, tools, trust};

/// How long processes may take to end by themselves before they are killed.
const GRACE: Duration = Duration::from_secs(2);
/// The container's cgroup, which counts its processes.
const SUPERVISED: &str = "/sys/fs/cgroup/sandbox";
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long the last reply may take to leave before the power goes all the same.
const LAST_REPLY_LIMIT: Duration = Duration::from_secs(1);

/// Serves the port for ever.
pub(crate) async fn serve(port: &Port, hardware: Hardware) -> io::Result<std::convert::Infallible> {
    let server =
        Arc::new(Server { hardware: Arc::new(hardware), sandbox: Mutex::new(Sandbox::Prepared) });
    loop {
        let stream = port.connected().await?;
        match Connection::establish(stream, Role::Server, Limits::default()).await {
            Ok((connection, incoming)) => {
                log::info(format!("host connected, protocol version {}", connection.version()));
                server.serve(&connection, incoming).await;
                log::info(format!("host gone: {}", connection.closed().await));
            }
            Err(error) => log::info(format!("no connection: {error}")),
        }
    }
}

/// What this machine is.
#[derive(Debug)]
enum Sandbox {
    /// Any sandbox of the template.
    Prepared,
    /// Becoming one did not work; half of it may be there.
    Broken,
    /// This one.
    Attached { sessions: Sessions, root: Arc<Root>, changes: Arc<Changes>, engine: Option<Engine> },
    /// None any more.
    Ended,
}

#[derive(Debug)]
struct Server {
    hardware: Arc<Hardware>,
    sandbox: Mutex<Sandbox>,
}

impl Server {
    async fn serve(self: &Arc<Self>, connection: &Connection, mut incoming: Incoming) {
        let channel = Channel::default();
        while let Some(stream) = incoming.next().await {
            match postcard::from_bytes(stream.payload()) {
                Ok(Open::Control) => {
                    let (server, connection) = (Arc::clone(self), connection.clone());
                    let stream = stream.accept();
                    tokio::spawn(async move { server.control(&connection, stream).await });
                }
                Ok(Open::Log) => {
                    let mut stream = stream.accept();
                    // Ends when the host goes: that is not worth a line.
                    tokio::spawn(async move { log::follow(&mut stream).await });
                }
                Ok(open @ (Open::Exec | Open::Stdio { .. } | Open::Changes)) => {
                    self.session(&channel, &open, stream);
                }
                Err(error) => {
                    stream.refuse(&format!("not a request that this init knows: {error}"));
                }
            }
        }
    }

    /// Hands a stream of the sandbox on. Never waits: a machine that is changing takes no sessions.
    fn session(&self, channel: &Channel, open: &Open, stream: IncomingStream) {
        let Ok(sandbox) = self.sandbox.try_lock() else {
            return stream.refuse("the sandbox is starting or shutting down");
        };
        match (&*sandbox, open) {
            (Sandbox::Attached { sessions, .. }, Open::Exec) => channel.exec(sessions, stream),
            (Sandbox::Attached { .. }, Open::Stdio { exec, which }) => {
                channel.stdio(stream, *exec, *which);
            }
            (Sandbox::Attached { changes, .. }, Open::Changes) => {
                tokio::spawn(Arc::clone(changes).send(stream.accept()));
            }
            (Sandbox::Attached { .. }, _) => stream.refuse("not a session"),
            (Sandbox::Prepared, _) => stream.refuse("the sandbox is not attached yet"),
            (Sandbox::Broken, _) => stream.refuse("the sandbox could not be attached"),
            (Sandbox::Ended, _) => stream.refuse("the sandbox is shutting down"),
        }
    }

    async fn control(&self, connection: &Connection, mut stream: Stream) {
        loop {
            let request = match message::read(&mut stream, MESSAGE_MAX).await {
                Ok(request) => request,
                Err(MessageError::End) => return,
                Err(error) => return log::info(format!("control stream ended: {error}")),
            };
            let reply = match request {
                ControlRequest::Attach(spec) => self.attach(*spec).await,
                ControlRequest::Ping { realtime_ns } => pong(realtime_ns),
                ControlRequest::Trust { ca_pem, environment } => {
                    self.trust(ca_pem, environment).await
                }
                ControlRequest::Prepare { files } => {
                    let reply = self.prepare(files).await;
                    // The machine may be saved as soon as the host has the reply: the connection ends with it.
                    say_last(connection, stream, &reply).await;
                    return;
                }
                ControlRequest::PowerOff => {
                    self.end().await;
                    say_last(connection, stream, &ControlReply::PoweringOff).await;
                    power_off::power_off_now()
                }
            };
            if let Err(error) = message::write(&mut stream, &reply).await {
                return log::info(format!("reply not sent: {error}"));
            }
        }
    }

    async fn prepare(&self, files: Vec<Bytes>) -> ControlReply {
        let sandbox = self.sandbox.lock().await;
        if !matches!(*sandbox, Sandbox::Prepared) {
            return failed(&"this machine was attached before");
        }
        match attach::prepare(Arc::clone(&self.hardware), files).await {
            Ok(()) => ControlReply::Prepared,
            Err(error) => {
                log::warn(format!("not prepared: {error}"));
                failed(&error)
            }
        }
    }

    async fn attach(&self, spec: AttachSpec) -> ControlReply {
        let mut sandbox = self.sandbox.lock().await;
        if !matches!(*sandbox, Sandbox::Prepared) {
            return failed(&"this machine was attached before");
        }
        *sandbox = Sandbox::Broken;
        let user = spec.user.clone();
        match attach::attach(Arc::clone(&self.hardware), spec).await {
            Ok(Attached { container, root, changes, engine }) => {
                let sessions = Sessions::new(container).with_home(Arc::clone(&root), user);
                *sandbox = Sandbox::Attached { sessions, root, changes, engine };
                ControlReply::Attached
            }
            Err(error) => {
                log::warn(format!("not attached: {error}"));
                failed(&error)
            }
        }
    }

    async fn trust(&self, ca_pem: String, environment: Vec<(Bytes, Bytes)>) -> ControlReply {
        let (container, root) = match &*self.sandbox.lock().await {
            Sandbox::Attached { sessions, root, .. } => {
                (sessions.container().clone(), Arc::clone(root))
            }
            _ => return failed(&"the sandbox is not attached"),
        };
        let install = move || {
            trust::install(&root, &ca_pem)?;
            tools::write(&root, &container.change_environment(environment), container.user());
            Ok::<_, trust::TrustError>(())
        };
        match tokio::task::spawn_blocking(install).await {
            Ok(Ok(())) => ControlReply::Trusted,
            Ok(Err(error)) => failed(&error),
            Err(_) => failed(&"writing the certificates ended early"),
        }
    }

    async fn end(&self) {
        let mut sandbox = self.sandbox.lock().await;
        let before = std::mem::replace(&mut *sandbox, Sandbox::Ended);
        if let Sandbox::Attached { sessions, engine, .. } = before {
            // Nobody is to start it again while it ends.
            drop(engine);
            end_processes(sessions.container()).await;
        }
        power_off::unmount_all().await;
    }
}

async fn end_processes(container: &Container) {
    if container.terminate().await.is_ok() {
        tokio::select! {
            () = container.ended() => {}
            () = power_off::until_quiet(Path::new(SUPERVISED)) => {}
            () = tokio::time::sleep(GRACE) => {}
        }
    }
    if let Err(error) = container.kill() {
        log::warn(format!("processes not killed: {error}"));
    }
    if tokio::time::timeout(KILL_LIMIT, container.ended()).await.is_err() {
        log::warn("the container does not end");
    }
}

fn pong(realtime_ns: u64) -> ControlReply {
    match clock::correct(realtime_ns) {
        Ok(true) => log::info("clock corrected"),
        Ok(false) => {}
        Err(error) => log::warn(format!("clock not corrected: {error}")),
    }
    ControlReply::Pong
}

fn failed(reason: &dyn Display) -> ControlReply {
    ControlReply::Failed { reason: reason.to_string() }
}

/// Ends the connection with a reply, which leaves before this returns.
async fn say_last(connection: &Connection, mut stream: Stream, reply: &ControlReply) {
    let goodbye = async {
        message::write(&mut stream, reply).await?;
        connection.close();
        connection.closed().await;
        Ok::<_, MessageError>(())
    };
    match tokio::time::timeout(LAST_REPLY_LIMIT, goodbye).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::info(format!("last reply not sent: {error}")),
        Err(_) => log::info("last reply not taken in time"),
    }
}
