//! The guest's wall clock follows the host's.

use std::time::Duration;

use rustix::io;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// A clock within this distance is left alone: stepping it would be worse than the error.
const TOLERANCE_NS: u64 = NANOS_PER_SECOND;

/// Time since the kernel started.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Sets the wall clock, whatever it says now.
pub(crate) fn set(realtime_ns: u64) -> io::Result<()> {
    clock_settime(ClockId::Realtime, timespec(realtime_ns))
}

/// Sets the wall clock when it is off by more than a second; tells whether it did.
pub(crate) fn correct(realtime_ns: u64) -> io::Result<bool> {
    let now = clock_gettime(ClockId::Realtime);
    let off = off_by(now, realtime_ns);
    if off {
        set(realtime_ns)?;
    }
    Ok(off)
}

fn off_by(now: Timespec, realtime_ns: u64) -> bool {
    let now = i128::from(now.tv_sec) * i128::from(NANOS_PER_SECOND) + i128::from(now.tv_nsec);
    now.abs_diff(i128::from(realtime_ns)) > u128::from(TOLERANCE_NS)
}

fn timespec(ns: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(ns / NANOS_PER_SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % NANOS_PER_SECOND).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_second_or_more_is_corrected() {
        let now = Timespec { tv_sec: 100, tv_nsec: 5 };
        assert!(!off_by(now, 100_000_000_005));
        assert!(!off_by(now, 101_000_000_005));
        assert!(off_by(now, 101_000_000_006));
        assert!(off_by(now, 98_999_999_999));
        assert!(off_by(Timespec { tv_sec: -5, tv_nsec: 0 }, 0));
    }

    #[test]
    fn nanoseconds_are_split() {
        let time = timespec(1_700_000_000_123_456_789);
        assert_eq!((time.tv_sec, time.tv_nsec), (1_700_000_000, 123_456_789));
    }
}
