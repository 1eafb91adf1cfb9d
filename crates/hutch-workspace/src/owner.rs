//! Whose a file appears to be, and what the guest's changes of owner are remembered as.
//!
//! Files of the host user appear as the sandbox's user, all others as nobody; what the guest creates belongs to the host
//! user. A change of owner and the set-id bits of regular files are never applied: they are remembered in the extended
//! attribute [`RECORD`] of the file and shown back. Where a file cannot carry one (symbolic links, FIFOs, sockets, file
//! systems without user attributes) such a change succeeds and is forgotten.
//!
//! Reading the record of each file costs a system call a file. So the root of a workspace in which something was ever
//! recorded carries [`MARK`], and without it no record is looked for.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::host::proc_path;

/// Attributes that start so are ours: hidden from the guest.
pub(crate) const HIDDEN: &[u8] = b"user.hutch.";
/// What the guest made of a file's owner and set-id bits: `uid:gid:bits`, decimal, decimal, octal.
pub(crate) const RECORD: &CStr = c"user.hutch.owner";
/// Says that below this root there are records.
pub(crate) const MARK: &CStr = c"user.hutch.records";
/// Shown as the owner of files that belong to neither the host user nor anyone recorded.
pub(crate) const NOBODY: u32 = 65_534;
/// Set-user-id and set-group-id.
pub(crate) const SET_ID: u32 = 0o6000;

/// What the guest made of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Set-id bits, of regular files only.
    pub(crate) bits: u32,
}

impl Record {
    /// Parses the attribute's value strictly: the guest cannot write it, but anyone on the host can.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.split(':');
        let mut number = |radix: u32| {
            let field = fields.next()?;
            let plain = !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| u32::from_str_radix(field, radix).ok()).flatten()
        };
        let record = Self { uid: number(10)?, gid: number(10)?, bits: number(8)? };
        // The highest number means "no change" in chown(2).
        let valid = record.uid != u32::MAX && record.gid != u32::MAX && record.bits & !SET_ID == 0;
        (valid && fields.next().is_none()).then_some(record)
    }

    fn text(self) -> String {
        format!("{}:{}:{:o}", self.uid, self.gid, self.bits)
    }

    /// Reads the held file's record.
    pub(crate) fn read(handle: &OwnedFd) -> Option<Self> {
        let mut value = [0; 32];
        let len = getxattr(proc_path(handle), RECORD, &mut value).ok()?;
        Self::parse(value.get(..len)?)
    }

    /// Writes the held file's record.
    pub(crate) fn write(self, handle: &OwnedFd) -> Result<(), Errno> {
        setxattr(proc_path(handle), RECORD, self.text().as_bytes(), XattrFlags::empty())
    }

    /// Removes the held file's record; none is no error.
    pub(crate) fn remove(handle: &OwnedFd) -> Result<(), Errno> {
        match removexattr(proc_path(handle), RECORD) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether records were ever made below this root.
pub(crate) fn marked(root: &OwnedFd) -> bool {
    getxattr(proc_path(root), MARK, &mut [0_u8; 8]).is_ok()
}

/// Says that there are records below this root from now on.
pub(crate) fn mark(root: &OwnedFd) -> Result<(), Errno> {
    setxattr(proc_path(root), MARK, b"1", XattrFlags::empty())
}

/// Who the host user is and who the sandbox's user.
#[derive(Debug, Clone)]
pub(crate) struct Owners {
    pub(crate) host_uid: u32,
    pub(crate) host_gid: u32,
    /// Groups of the worker beside the main one.
    pub(crate) host_groups: HashSet<u32>,
    pub(crate) guest_uid: u32,
    pub(crate) guest_gid: u32,
}

impl Owners {
    /// Whose the guest sees a file that belongs to these on the host.
    pub(crate) fn shown(&self, uid: u32, gid: u32) -> (u32, u32) {
        let own_group = gid == self.host_gid || self.host_groups.contains(&gid);
        (
            if uid == self.host_uid { self.guest_uid } else { NOBODY },
            if own_group { self.guest_gid } else { NOBODY },
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_exact_records_are_believed() {
        let record = Record { uid: 1234, gid: 0, bits: 0o4000 };
        assert_eq!(Record::parse(b"1234:0:4000"), Some(record));
        for value in [
            "",
            ":",
            "1:2",
            "1:2:",
            "1:2:0:",
            "1:2:777",
            "+1:2:0",
            "-1:2:0",
            "1:2:8",
            " 1:2:0",
            "4294967295:1:0",
            "1:4294967295:0",
            "4294967296:1:0",
            "1:2:0\n",
            "1:2:10000",
        ] {
            assert_eq!(Record::parse(value.as_bytes()), None, "{value:?}");
        }
    }

    #[test]
    fn only_the_host_user_is_the_agent() {
        let owners = Owners {
            host_uid: 500,
            host_gid: 600,
            host_groups: HashSet::from([700]),
            guest_uid: 1000,
            guest_gid: 1001,
        };
        assert_eq!(owners.shown(500, 600), (1000, 1001));
        assert_eq!(owners.shown(500, 700), (1000, 1001));
        assert_eq!(owners.shown(0, 0), (NOBODY, NOBODY));
        // Nobody on the host gains the agent's rights by having the agent's number.
        assert_eq!(owners.shown(1000, 1001), (NOBODY, NOBODY));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(uid in 0..u32::MAX, gid in 0..u32::MAX, bits in 0_u32..4) {
            let record = Record { uid, gid, bits: bits << 10 };
            prop_assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
        }

        #[test]
        fn any_value_is_a_record_or_none(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(record) = Record::parse(&value) {
                prop_assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
            }
        }
    }
}
