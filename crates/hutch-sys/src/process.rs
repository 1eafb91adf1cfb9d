//! Naming a process so that nobody ever signals a reused process number.
//!
//! A pid alone is reused. [`ProcessIdentity`] adds the start time, which together are unique until the next boot and may
//! be written to a file; [`Process`] holds a pidfd, which refers to that very process for ever.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, named so that the name is never reused during one boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Process number.
    pub pid: u32,
    /// Start time in clock ticks after boot, field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
}

/// Why an identity could not be read or opened.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such process, or another one has its number now.
    #[error("process {pid} has ended")]
    Ended {
        /// The number asked for.
        pid: u32,
    },
    /// `/proc` did not have the form that the manual page promises.
    #[error("/proc/{pid}/stat is not understood")]
    Format {
        /// The number asked for.
        pid: u32,
    },
    /// The system refused.
    #[error("process {pid} cannot be examined")]
    System {
        /// The number asked for.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ProcessIdentity {
    /// Reads the identity of the process that has this number now. A zombie has ended.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let stat = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ProcessError::Ended { pid });
            }
            // A process that ends between open and read gives ESRCH.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(ProcessError::Ended { pid });
            }
            Err(source) => return Err(ProcessError::System { pid, source }),
        };
        let stat = Stat::parse(&stat).ok_or(ProcessError::Format { pid })?;
        if matches!(stat.state, b'Z' | b'X' | b'x') {
            return Err(ProcessError::Ended { pid });
        }
        Ok(Self { pid, start_time: stat.start_time })
    }

    /// The identity of the calling process.
    pub fn own() -> Result<Self, ProcessError> {
        Self::of(std::process::id())
    }

    /// Says whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        matches!(Self::of(self.pid), Ok(now) if now == *self)
    }

    /// Takes hold of this very process.
    ///
    /// The identity is compared after the pidfd was opened: from then on the number cannot go to another process
    /// without the pidfd noticing.
    pub fn open(&self) -> Result<Process, ProcessError> {
        let pid = self.pid;
        let number =
            i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ProcessError::Ended { pid })?;
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Err(ProcessError::Ended { pid }),
            Err(error) => return Err(ProcessError::System { pid, source: error.into() }),
        };
        if self.is_alive() { Ok(Process { pidfd }) } else { Err(ProcessError::Ended { pid }) }
    }
}

/// The two fields of `/proc/PID/stat` that we use.
struct Stat {
    state: u8,
    start_time: u64,
}

impl Stat {
    /// The second field, the program's name in parentheses, may hold blanks and parentheses: count from the last one.
    fn parse(stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        // `state` is field 3; the start time is field 22.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }
}

/// A hold on one process: signals reach it or nobody.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of a child of ours, even if it has ended: it is not reaped while it is borrowed, so that its number
    /// cannot be another's.
    pub fn of_child(child: &Child) -> io::Result<Self> {
        let number = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pidfd: pidfd_open(number, PidfdFlags::empty())? })
    }

    /// Asks it to end (`SIGTERM`). A process that has ended already is no error.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Ends it (`SIGKILL`). A process that has ended already is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, at most so long; says whether it has. Does not reap a child.
    pub fn wait_ended(&self, at_most: Duration) -> io::Result<bool> {
        let timeout = Timespec {
            tv_sec: at_most.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for Process {
    /// The pidfd's number, for event loops.
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_skipped() {
        let stat = b"42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!((stat.state, stat.start_time), (b'S', 4711));
        assert!(Stat::parse(b"42 (x) S 1 2").is_none());
        assert!(Stat::parse(b"").is_none());
        assert!(Stat::parse(b")").is_none());
    }

    #[test]
    fn own_process_is_alive_and_another_start_time_is_not() {
        let own = ProcessIdentity::own().unwrap();
        assert!(own.is_alive());
        let other = ProcessIdentity { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive());
        assert!(matches!(other.open(), Err(ProcessError::Ended { .. })));
    }

    #[test]
    fn a_killed_child_has_ended_before_it_is_reaped() {
        let mut child = spawn::command("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        let process = identity.open().unwrap();
        assert!(!process.wait_ended(Duration::ZERO).unwrap());
        process.kill().unwrap();
        assert!(process.wait_ended(Duration::from_secs(10)).unwrap());
        assert!(!identity.is_alive());
        child.wait().unwrap();
        process.kill().unwrap();
        assert!(matches!(identity.open(), Err(ProcessError::Ended { .. })));
    }

    #[test]
    fn numbers_that_no_process_has_are_ended() {
        for pid in [0, u32::MAX] {
            assert!(matches!(
                ProcessIdentity { pid, start_time: 0 }.open(),
                Err(ProcessError::Ended { .. })
            ));
        }
    }
}
