//! Extended attributes: `user.…` only, without ours.
//!
//! Others are the host's security (`security.…`, `trusted.…`) or its access lists (`system.…`), which are neither shown
//! nor set.

use std::ffi::CStr;

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Server;
use crate::abi::{ROOT, Reply};
use crate::host::proc_path;
use crate::owner::HIDDEN;

/// Largest value and list of Linux.
const SIZE_MAX: usize = 64 << 10;

impl Server {
    pub(super) fn set_xattr(
        &self,
        id: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let (node, handle) = self.held(id)?;
        self.space(&node)?.may_change(&self.proc, &handle)?;
        allowed(name).map_err(|_| Errno::OPNOTSUPP)?;
        self.own_change(&node, &handle, || setxattr(proc_path(&handle), name, value, flags))
    }

    pub(super) fn get_xattr(
        &self,
        id: u64,
        name: &CStr,
        size: u32,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if id == ROOT {
            return Err(Errno::NODATA);
        }
        allowed(name)?;
        let (_, handle) = self.held(id)?;
        let mut value = Vec::with_capacity(SIZE_MAX);
        getxattr(proc_path(&handle), name, spare_capacity(&mut value))?;
        answer(&value, size, reply)
    }

    pub(super) fn list_xattr(&self, id: u64, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        if id == ROOT {
            return answer(&[], size, reply);
        }
        let (_, handle) = self.held(id)?;
        let mut names = Vec::with_capacity(SIZE_MAX);
        match listxattr(proc_path(&handle), spare_capacity(&mut names)) {
            Ok(_) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let shown: Vec<u8> = names
            .split_inclusive(|&byte| byte == 0)
            .filter(|name| CStr::from_bytes_with_nul(name).is_ok_and(|name| allowed(name).is_ok()))
            .flatten()
            .copied()
            .collect();
        answer(&shown, size, reply)
    }

    pub(super) fn remove_xattr(&self, id: u64, name: &CStr) -> Result<(), Errno> {
        let (node, handle) = self.held(id)?;
        self.space(&node)?.may_change(&self.proc, &handle)?;
        allowed(name)?;
        self.own_change(&node, &handle, || removexattr(proc_path(&handle), name))
    }
}

fn allowed(name: &CStr) -> Result<(), Errno> {
    let name = name.to_bytes();
    if name.starts_with(HIDDEN) {
        return Err(Errno::NODATA);
    }
    // Asked for at every write and every `ls -l`: there are none.
    if name == b"security.capability" {
        return Err(Errno::NODATA);
    }
    if name.starts_with(b"user.") { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// A size of 0 asks for the size.
fn answer(value: &[u8], size: u32, reply: &mut Reply) -> Result<(), Errno> {
    if size == 0 {
        reply.put_u32(u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?);
        reply.put_u32(0);
        return Ok(());
    }
    if value.len() > usize::try_from(size).unwrap_or(usize::MAX) {
        return Err(Errno::RANGE);
    }
    reply.put(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_attributes_without_ours_exist() {
        assert_eq!(allowed(c"user.note"), Ok(()));
        assert_eq!(allowed(c"user.hutch"), Ok(()));
        assert_eq!(allowed(c"user.hutch.owner"), Err(Errno::NODATA));
        assert_eq!(allowed(c"security.capability"), Err(Errno::NODATA));
        for name in [c"security.selinux", c"trusted.x", c"system.posix_acl_access", c"", c"user"] {
            assert_eq!(allowed(name), Err(Errno::OPNOTSUPP), "{name:?}");
        }
    }

    #[test]
    fn a_value_is_given_whole_or_not_at_all() {
        let mut reply = Reply::new();
        answer(b"value", 0, &mut reply).unwrap();
        assert_eq!(reply.len(), 8);
        reply.clear();
        assert_eq!(answer(b"value", 4, &mut reply), Err(Errno::RANGE));
        answer(b"value", 5, &mut reply).unwrap();
        assert_eq!(reply.len(), 5);
    }
}
