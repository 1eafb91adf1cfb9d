//! Who runs the programs under test.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::fs::{AtFlags, CWD, chownat};
use rustix::process::geteuid;
use rustix::process::{Gid, Uid, getegid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::stage::TEST_USER;

/// A user of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

impl Account {
    /// Who runs the test.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// An ordinary user: ourselves, or the tests' user when we are root.
    #[must_use]
    pub fn ordinary() -> Self {
        let own = Self::own();
        if own.uid != 0 {
            return own;
        }
        let accounts = fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
        parse_passwd(&accounts, TEST_USER).unwrap_or_else(|| {
            panic!("there is no user {TEST_USER}: run `cargo xtask prepare-tests` as root first")
        })
    }

    /// Root; panics when the test does not run as root. Such tests are called `as_root_…`.
    #[must_use]
    pub fn root() -> Self {
        let own = Self::own();
        assert_eq!(own.uid, 0, "this test needs root");
        own
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        use std::os::unix::process::CommandExt as _;
        if self != Self::own() {
            // With `uid` set, the standard library drops the supplementary groups too.
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Gives a file or directory that the test made to this user.
    pub fn give(self, path: &Path) {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(
            |error| panic!("cannot give {} to user {}: {error}", path.display(), self.uid),
        );
    }

    /// Runs `work` with this user's rights, on a thread of its own, because credentials belong to threads.
    pub fn act<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        if self == Self::own() {
            return work();
        }
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                set_thread_groups(&[]).expect("root may drop groups");
                set_thread_res_gid(gid, gid, gid).expect("root may change its group");
                set_thread_res_uid(uid, uid, uid).expect("root may change its user");
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

fn parse_passwd(accounts: &str, name: &str) -> Option<Account> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let own = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (own == name).then_some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\nhutch-tester:x:7:8::/:\nhutch-test:x:998:997::/:/bin/false\n";
        assert_eq!(parse_passwd(accounts, "hutch-test"), Some(Account { uid: 998, gid: 997 }));
        assert_eq!(parse_passwd(accounts, "hutch"), None);
    }
}
