//! The control protocol of QEMU (QMP): lines of JSON over a socket that only we and QEMU have.
//!
//! QEMU itself may be in a guest's hands: lines are bounded, their number in flight too, and nothing it says is believed
//! beyond how this one VM ended. [`Lines`] and [`Message::parse`] are pure; [`Client`] drives them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest line that we accept. The longest answer to a command of ours has about 1 KiB.
const LINE_MAX: usize = 64 * 1024;
/// How much of a description goes into an error.
const DESCRIPTION_MAX: usize = 300;
/// After so many answers that nobody asked for, the peer is not QEMU.
const UNREAD_ANSWERS: usize = 4;

/// What goes wrong on the control connection.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection ended.
    #[error("its control connection ended")]
    Closed,
    /// The system refused.
    #[error("its control connection failed")]
    Connection(#[source] io::Error),
    /// A line longer than any that we expect.
    #[error("it sent a line of more than {LINE_MAX} bytes")]
    LineTooLong,
    /// A line that is not of the protocol, or not at this moment.
    #[error("it sent a line that is not of its protocol")]
    Malformed,
    /// A command was refused.
    #[error("it refused {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said, shortened and without control characters.
        description: String,
    },
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds bytes and gives the lines that they complete, without their ends.
    fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, ControlError> {
        let mut complete = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.extend(line)?;
            complete.push(std::mem::take(&mut self.partial));
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.extend(bytes)?;
        Ok(complete)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        if self.partial.len() + bytes.len() > LINE_MAX {
            return Err(ControlError::LineTooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// One line of QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Answer { id: u64, result: Result<Value, String> },
    Event(Event),
}

/// What QEMU reports unasked, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    /// The VM ends, with QEMU's word for why.
    Shutdown(ShutdownReason),
    /// The guest's kernel says that it panicked.
    Panicked,
    Other,
}

/// Why QEMU ends the VM (`ShutdownCause` in its documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ShutdownReason {
    GuestShutdown,
    GuestReset,
    GuestPanic,
    HostQmpQuit,
    HostSignal,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct RawMessage {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct RawError {
    desc: String,
}

#[derive(Deserialize)]
struct ShutdownData {
    reason: ShutdownReason,
}

impl Message {
    fn parse(line: &[u8]) -> Result<Self, ControlError> {
        let raw: RawMessage = serde_json::from_slice(line).map_err(|_| ControlError::Malformed)?;
        if raw.greeting.is_some() {
            return Ok(Self::Greeting);
        }
        if let Some(event) = raw.event {
            return Ok(Self::Event(match event.as_str() {
                "SHUTDOWN" => {
                    let data =
                        raw.data.and_then(|data| serde_json::from_value::<ShutdownData>(data).ok());
                    Event::Shutdown(data.map_or(ShutdownReason::Other, |data| data.reason))
                }
                "GUEST_PANICKED" => Event::Panicked,
                _ => Event::Other,
            }));
        }
        let id = raw.id.ok_or(ControlError::Malformed)?;
        match (raw.answer, raw.error) {
            (Some(answer), None) => Ok(Self::Answer { id, result: Ok(answer) }),
            (None, Some(error)) => Ok(Self::Answer { id, result: Err(error.desc) }),
            _ => Err(ControlError::Malformed),
        }
    }
}

/// What the connection told about the end of the VM.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) shutdown: Option<ShutdownReason>,
    pub(super) panicked: bool,
    /// None if the connection simply ended.
    pub(super) error: Option<ControlError>,
}

type Answer = (u64, Result<Value, String>);

/// Our side of the control connection.
#[derive(Debug)]
pub(super) struct Client {
    commands: OwnedWriteHalf,
    answers: mpsc::Receiver<Answer>,
    observed: Option<JoinHandle<Observed>>,
    last_id: u64,
}

impl Client {
    /// Waits for the greeting and enters command mode.
    pub(super) async fn connect(stream: UnixStream) -> Result<Self, ControlError> {
        let (read, commands) = stream.into_split();
        let (sender, answers) = mpsc::channel(UNREAD_ANSWERS);
        let observed = Some(tokio::spawn(observe(read, sender)));
        let mut client = Self { commands, answers, observed, last_id: 0 };
        // QEMU reads commands in order, so that the greeting need not be awaited.
        client.execute("qmp_capabilities", json!({})).await?;
        Ok(client)
    }

    /// Executes one command and gives its answer. Not cancel safe: drop the client after a cancelled call.
    pub(super) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, ControlError> {
        let line = self.line(command, &arguments);
        self.commands.write_all(line.as_bytes()).await.map_err(not_sent)?;
        self.answer(command).await
    }

    /// Gives QEMU a descriptor that later commands know by `name`. Not cancel safe.
    pub(super) async fn give(
        &mut self,
        name: &str,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), ControlError> {
        const COMMAND: &str = "getfd";
        let line = self.line(COMMAND, &json!({ "fdname": name }));
        let socket: &UnixStream = self.commands.as_ref();
        let send = || send_with_descriptor(socket.as_fd(), line.as_bytes(), descriptor);
        let sent = socket.async_io(Interest::WRITABLE, send).await.map_err(not_sent)?;
        // The descriptor went with the first byte.
        let rest = line.as_bytes().get(sent..).unwrap_or_default();
        self.commands.write_all(rest).await.map_err(not_sent)?;
        self.answer(COMMAND).await.map(drop)
    }

    fn line(&mut self, command: &str, arguments: &Value) -> String {
        self.last_id += 1;
        let mut line =
            json!({ "execute": command, "arguments": arguments, "id": self.last_id }).to_string();
        line.push('\n');
        line
    }

    async fn answer(&mut self, command: &'static str) -> Result<Value, ControlError> {
        match self.answers.recv().await {
            Some((id, Ok(answer))) if id == self.last_id => Ok(answer),
            Some((id, Err(description))) if id == self.last_id => {
                Err(ControlError::Refused { command, description: shorten(&description) })
            }
            Some(_) => Err(ControlError::Malformed),
            None => Err(self.reason_of_end().await),
        }
    }

    async fn reason_of_end(&mut self) -> ControlError {
        match self.observed.take() {
            Some(observed) => observed
                .await
                .ok()
                .and_then(|observed| observed.error)
                .unwrap_or(ControlError::Closed),
            None => ControlError::Closed,
        }
    }

    /// What was seen until the connection ended, once. Cancel safe.
    pub(super) async fn observed(&mut self) -> Observed {
        let Some(task) = &mut self.observed else { return Observed::default() };
        let observed = task.await.unwrap_or_default();
        self.observed = None;
        observed
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(observed) = &self.observed {
            observed.abort();
        }
    }
}

fn not_sent(error: io::Error) -> ControlError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Closed,
        _ => ControlError::Connection(error),
    }
}

fn send_with_descriptor(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}

/// Reads until the connection ends, passes answers on, and remembers how the VM ended.
async fn observe(mut read: OwnedReadHalf, answers: mpsc::Sender<Answer>) -> Observed {
    let mut observed = Observed::default();
    let mut lines = Lines::default();
    let mut buffer = vec![0; 4096];
    loop {
        let count = match read.read(&mut buffer).await {
            Ok(0) => return observed,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return observed,
            Err(error) => {
                observed.error = Some(ControlError::Connection(error));
                return observed;
            }
        };
        let messages = lines.push(buffer.get(..count).unwrap_or_default()).and_then(|lines| {
            lines.iter().map(|line| Message::parse(line)).collect::<Result<Vec<_>, _>>()
        });
        match messages {
            Ok(messages) => {
                for message in messages {
                    match message {
                        Message::Greeting | Message::Event(Event::Other) => {}
                        // The first is the cause; a reset that follows a panic is its consequence.
                        Message::Event(Event::Shutdown(reason)) => {
                            observed.shutdown.get_or_insert(reason);
                        }
                        Message::Event(Event::Panicked) => observed.panicked = true,
                        Message::Answer { id, result } => {
                            if answers.try_send((id, result)).is_err() {
                                observed.error = Some(ControlError::Malformed);
                                return observed;
                            }
                        }
                    }
                }
            }
            Err(error) => {
                observed.error = Some(error);
                return observed;
            }
        }
    }
}

pub(super) fn shorten(description: &str) -> String {
    description.chars().filter(|c| !c.is_control()).take(DESCRIPTION_MAX).collect()
}

#[cfg(test)]
mod tests;
