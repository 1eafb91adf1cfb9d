//! The end: nothing runs, nothing is mounted, the data disk is clean, the power goes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::system::{RebootCommand, reboot};

use crate::attach::BASE;
use crate::log;

/// Time between two looks at how many processes are left.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Longest time for writing everything back; a host that serves no more must not keep the machine up.
const SYNC_LIMIT: Duration = Duration::from_secs(20);

/// Resolves when only the container's supervisor is left in a cgroup; never when the cgroup does not count.
pub(crate) async fn until_quiet(cgroup: &Path) {
    let count = cgroup.join("pids.current");
    loop {
        if is_quiet(&fs::read_to_string(&count).unwrap_or_default()) {
            return;
        }
        // The kernel has no event for this count.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn is_quiet(count: &str) -> bool {
    count.trim().parse::<u64>().is_ok_and(|count| count <= 1)
}

/// Writes everything back and unmounts everything of the sandbox, innermost first.
pub(crate) async fn unmount_all() {
    let work = tokio::task::spawn_blocking(|| {
        rustix::fs::sync();
        unmount_below(Path::new(BASE));
    });
    if tokio::time::timeout(SYNC_LIMIT, work).await.is_err() {
        log::warn("unmounting took too long; powering off as it is");
    }
}

/// Cuts the power. Never returns: what cannot power off halts.
pub(crate) fn power_off_now() -> ! {
    for command in [RebootCommand::PowerOff, RebootCommand::Restart, RebootCommand::Halt] {
        if let Err(error) = reboot(command) {
            log::warn(format!("cannot power off: {error}"));
        }
    }
    loop {
        std::thread::park();
    }
}

fn unmount_below(base: &Path) {
    let mounts = match fs::read("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(error) => return log::warn(format!("mounts are not known: {error}")),
    };
    // A later mount may be inside an earlier one, never the other way round.
    for target in mount_points(&mounts).iter().rev() {
        let path = Path::new(OsStr::from_bytes(target));
        if !path.starts_with(base) {
            continue;
        }
        if let Err(error) = unmount(path, UnmountFlags::NOFOLLOW) {
            log::warn(format!("{} stays mounted: {error}", path.display()));
            unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).ok();
        }
    }
}

/// The mount points in `/proc/self/mountinfo` (proc(5): field 5), in order, unescaped.
fn mount_points(mountinfo: &[u8]) -> Vec<Vec<u8>> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .collect()
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mount_points_come_in_order_and_unescaped() {
        let mountinfo = b"22 1 0:21 / /proc rw,nosuid - proc proc rw\n\
            30 1 254:0 / /hutch/root/home/a\\040b\\134c rw - fuse hutch rw\nshort line\n";
        let points = mount_points(mountinfo);
        assert_eq!(points, [b"/proc".to_vec(), b"/hutch/root/home/a b\\c".to_vec()]);
    }

    #[test]
    fn quiet_is_the_supervisor_alone() {
        assert!(is_quiet("1\n"));
        assert!(is_quiet("0\n"));
        for count in ["2\n", "", "max\n"] {
            assert!(!is_quiet(count), "{count:?}");
        }
    }

    #[test]
    fn what_is_no_escape_stays() {
        for text in ["\\", "\\04", "\\999", "a\\x41"] {
            assert_eq!(unescape(text.as_bytes()), text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            prop_assert!(mount_points(&bytes).len() <= bytes.len() + 1);
        }
    }
}
