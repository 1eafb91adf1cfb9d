//! Requests that are answered here, because their answer is always the same: a way to the host and back costs an emulated
//! guest several times as much.
//!
//! The kernel asks for `security.capability` before the first write to a file, after whatever else made its attributes
//! old. There are none in a workspace: the worker shows `user.…` attributes only.

use rustix::io::Errno;

use super::port::{REPLY_HEADER_LEN, REQUEST_HEADER_LEN};

/// `FUSE_FORGET` and `FUSE_BATCH_FORGET`.
const FORGETS: [u32; 2] = [2, 42];
/// `FUSE_GETXATTR`.
const GETXATTR: u32 = 22;
/// `struct fuse_getxattr_in`.
const GETXATTR_IN_LEN: usize = 8;
const CAPABILITY: &[u8] = b"security.capability\0";

/// The whole answer to a request that needs no host.
pub(super) fn answer(request: &[u8]) -> Option<[u8; REPLY_HEADER_LEN]> {
    let field = |at: usize| request.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if field(4)? != GETXATTR || request.get(REQUEST_HEADER_LEN + GETXATTR_IN_LEN..)? != CAPABILITY {
        return None;
    }
    let unique = request.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
    Some(error(unique, Errno::NODATA))
}

/// The answer that a request has failed.
pub(super) fn error(unique: u64, error: Errno) -> [u8; REPLY_HEADER_LEN] {
    let mut reply = [0; REPLY_HEADER_LEN];
    reply[..4].copy_from_slice(&u32::try_from(REPLY_HEADER_LEN).unwrap_or(0).to_le_bytes());
    reply[4..8].copy_from_slice(&(-error.raw_os_error()).to_le_bytes());
    reply[8..].copy_from_slice(&unique.to_le_bytes());
    reply
}

/// Whether a request only says what the kernel forgets, which has no answer.
pub(super) fn is_forget(request: &[u8]) -> bool {
    let opcode = request.get(4..8).and_then(|field| field.try_into().ok());
    opcode.is_some_and(|opcode| FORGETS.contains(&u32::from_le_bytes(opcode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, name: &[u8]) -> Vec<u8> {
        let len = u32::try_from(REQUEST_HEADER_LEN + GETXATTR_IN_LEN + name.len()).unwrap();
        let mut bytes = [&len.to_le_bytes()[..], &opcode.to_le_bytes()].concat();
        bytes.extend_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
        bytes.resize(REQUEST_HEADER_LEN + GETXATTR_IN_LEN, 0);
        bytes.extend_from_slice(name);
        bytes
    }

    #[test]
    fn capabilities_are_denied_here() {
        let reply = answer(&request(GETXATTR, CAPABILITY)).unwrap();
        assert_eq!(reply[..4], 16_u32.to_le_bytes());
        assert_eq!(reply[4..8], (-61_i32).to_le_bytes());
        assert_eq!(reply[8..], 0x0102_0304_0506_0708_u64.to_le_bytes());
    }

    #[test]
    fn everything_else_goes_to_the_host() {
        for name in [&b"user.security.capability\0"[..], b"security.capability", b"", b"\0"] {
            assert_eq!(answer(&request(GETXATTR, name)), None);
        }
        assert_eq!(answer(&request(21, CAPABILITY)), None);
        assert_eq!(answer(&[]), None);
    }
}
