//! Random bytes from outside for the kernel's generator.

#![expect(unsafe_code, reason = "ioctls of /dev/random have no safe wrapper")]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;

/// `struct rand_pool_info` with room for the bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buffer_size: libc::c_int,
    buffer: [u8; BYTES_MAX],
}

/// Bytes that are used of what the host sends; the generator's state is 32 bytes.
const BYTES_MAX: usize = 512;

/// `_IOW('R', 0x03, int[2])` (`linux/random.h`).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Mixes `bytes` into the pool, counts them as fully random, and makes the generator use them from now on.
pub(crate) fn credit(bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    let size = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut info = PoolInfo { entropy_count: size * 8, buffer_size: size, buffer: [0; BYTES_MAX] };
    info.buffer[..bytes.len()].copy_from_slice(bytes);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: the fd is open for the whole call because we borrow it. The kernel reads the two counts and then
    // `buffer_size` bytes after them, which is at most the length of `buffer`, which follows them without padding.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if added != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is open for the whole call because we borrow it; the request takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG, 0) };
    if reseeded != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const _: () = assert!(mem::offset_of!(PoolInfo, buffer) == 2 * size_of::<libc::c_int>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crediting_needs_root_and_never_more_than_the_bound() {
        // Root in the kernel's own user namespace may; anyone else gets the kernel's refusal, not a crash.
        match credit(&[7; BYTES_MAX * 2]) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
