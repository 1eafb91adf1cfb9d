//! Brings up the loopback interface, the only one that a sandbox is sure to have.

use rustix::io;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use crate::log;

/// The loopback interface is made first in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// Does it; without it the sandbox works, but nothing in it can talk to itself over IP.
pub(crate) fn up() {
    match request() {
        Ok(0) => {}
        Ok(error) => log::warn(format!(
            "loopback interface is down: {}",
            std::io::Error::from_raw_os_error(error)
        )),
        Err(error) => log::warn(format!("loopback interface is down: {error}")),
    }
}

fn request() -> io::Result<i32> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &message(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut reply = [0; 64];
    let (count, _) = recv(&socket, &mut reply, RecvFlags::empty())?;
    Ok(outcome(&reply[..count]))
}

/// `struct nlmsghdr` and `struct ifinfomsg` (rtnetlink(7)).
fn message() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and sender; then family, padding and device type.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message
}

/// The error number in the kernel's answer, 0 for none.
fn outcome(reply: &[u8]) -> i32 {
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(error)) => error.saturating_neg(),
        _ => io::Errno::PROTO.raw_os_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_its_own_length() {
        assert_eq!(message().len(), 32);
    }

    #[test]
    fn answers_are_understood() {
        let mut reply = [0_u8; 36];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(outcome(&reply), 0);
        reply[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(outcome(&reply), 1);
        assert_ne!(outcome(&reply[..10]), 0);
    }
}
