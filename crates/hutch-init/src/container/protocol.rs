//! Messages between init and the supervisor: one datagram each, with the descriptors that belong to it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hutch_wire::guest::{Bytes, ExecFailure, ExecSpec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Outcome;

/// Largest datagram in bytes; what can be longer travels in a memory file.
const MESSAGE_MAX: usize = 16 * 1024;
/// Most descriptors with one message.
const FDS_MAX: usize = 8;

/// The first message to the supervisor: what the container is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Enter {
    /// The directory that becomes `/`.
    pub(super) root: Bytes,
    /// Host name in the container.
    pub(super) hostname: String,
    /// Who the Docker engine's socket belongs to.
    pub(super) user: String,
}

/// From init to the supervisor, once it has entered.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Request {
    /// Starts a session. Descriptors: a memory file with a [`Launch`], the directory of the session's cgroup,
    /// then those of `stdio` that are true.
    Start {
        /// Init's number for it.
        session: u32,
        /// Whether descriptors for stdin, stdout and stderr follow.
        stdio: [bool; 3],
    },
    /// Sends a signal to the session's process group.
    Signal {
        /// Which session.
        session: u32,
        /// Linux signal number.
        signal: u8,
    },
    /// Asks every process in the container to end (`SIGTERM`).
    Terminate,
}

/// From the supervisor to init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Event {
    /// Namespaces and the container's own file systems are there; the root is not.
    Prepared,
    /// The container is complete. With the Docker engine's listening socket as descriptor, if it could be made.
    Ready,
    /// It could not be made; the supervisor ends.
    Broken {
        /// One sentence.
        reason: String,
    },
    /// The session runs. With the terminal's master side as descriptor, if it has one.
    Started {
        /// Which session.
        session: u32,
        /// Process number in the container.
        pid: u32,
    },
    /// The session could not be started.
    Failed {
        /// Which session.
        session: u32,
        /// Decides the exit status.
        kind: ExecFailure,
        /// One sentence.
        message: String,
    },
    /// The session's leader ended.
    Ended {
        /// Which session.
        session: u32,
        /// How.
        outcome: Outcome,
    },
}

/// Everything about a session that can be long.
#[derive(Serialize, Deserialize)]
pub(super) struct Launch {
    /// What the host asked for.
    pub(super) spec: ExecSpec,
    /// The sandbox's environment.
    pub(super) environment: Vec<(Bytes, Bytes)>,
    /// The user if the session names none.
    pub(super) user: String,
    /// The directory if the session names none.
    pub(super) directory: Option<Bytes>,
}

/// Sends one message. Blocks or gives `WouldBlock` as the socket is set.
pub(super) fn send<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_MAX || fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives one message; `None` = the other side is gone.
pub(super) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = postcard::from_bytes(&bytes[..received.bytes]).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (ours, theirs) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&ours, &Event::Started { session: 7, pid: 42 }, &[reader.as_fd()]).unwrap();
        drop(reader);
        let (event, mut fds) = receive::<Event>(&theirs).unwrap().unwrap();
        assert!(matches!(event, Event::Started { session: 7, pid: 42 }));
        rustix::io::write(&writer, b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_gone_peer_is_an_end() {
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(receive::<Event>(&ours).unwrap().is_none());
    }

    #[test]
    fn garbage_is_an_error() {
        let (ours, theirs) = pair();
        rustix::io::write(&ours, &[0xff; 64]).unwrap();
        assert!(receive::<Event>(&theirs).is_err());
    }

    #[test]
    fn too_long_a_message_is_refused() {
        let (ours, _theirs) = pair();
        let reason = "x".repeat(MESSAGE_MAX + 1);
        assert!(send(&ours, &Event::Broken { reason }, &[]).is_err());
    }
}
