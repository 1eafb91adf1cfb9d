//! How often the guest asked for what: the deterministic side of the benchmark, for tests and for the log.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::opcode;

/// Requests by opcode; those beyond the table are counted together.
#[derive(Debug)]
pub struct Counts([AtomicU64; SIZE]);

/// One more than the largest opcode that we answer.
const SIZE: usize = 64;

const NAMES: [(u32, &str); 22] = [
    (opcode::LOOKUP, "lookup"),
    (opcode::FORGET, "forget"),
    (opcode::BATCH_FORGET, "batch forget"),
    (opcode::GETATTR, "getattr"),
    (opcode::SETATTR, "setattr"),
    (opcode::READLINK, "readlink"),
    (opcode::MKDIR, "mkdir"),
    (opcode::UNLINK, "unlink"),
    (opcode::RMDIR, "rmdir"),
    (opcode::RENAME2, "rename"),
    (opcode::OPEN, "open"),
    (opcode::READ, "read"),
    (opcode::WRITE, "write"),
    (opcode::RELEASE, "release"),
    (opcode::FLUSH, "flush"),
    (opcode::FSYNC, "fsync"),
    (opcode::GETXATTR, "getxattr"),
    (opcode::OPENDIR, "opendir"),
    (opcode::READDIR, "readdir"),
    (opcode::READDIRPLUS, "readdirplus"),
    (opcode::CREATE, "create"),
    (opcode::STATX, "statx"),
];

impl Default for Counts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SIZE])
    }
}

impl Counts {
    pub(crate) fn add(&self, opcode: u32) {
        let at = usize::try_from(opcode).unwrap_or(0);
        if let Some(count) = self.0.get(at).or_else(|| self.0.first()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often this was asked.
    pub fn of(&self, opcode: u32) -> u64 {
        let at = usize::try_from(opcode).unwrap_or(0);
        self.0.get(at).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How often anything was asked.
    pub fn all(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Those that were asked at all: `12 lookup, 3 read, 1 of opcode 51`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (opcode, count) in (0_u32..).zip(&self.0) {
            let count = count.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            match NAMES.iter().find(|(of, _)| *of == opcode) {
                Some((_, name)) => write!(f, "{separator}{count} {name}")?,
                None => write!(f, "{separator}{count} of opcode {opcode}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_once_and_named() {
        let counts = Counts::default();
        for opcode in [opcode::READ, opcode::READ, opcode::TMPFILE, 0x4855_0001] {
            counts.add(opcode);
        }
        assert_eq!((counts.of(opcode::READ), counts.of(opcode::WRITE), counts.all()), (2, 0, 4));
        assert_eq!(counts.to_string(), "1 of opcode 0, 2 read, 1 of opcode 51");
    }
}
