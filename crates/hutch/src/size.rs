//! Amounts of memory, disk and time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `512m`, `4g`, `64GiB`, `1t`; a number alone is bytes. Every unit is a power of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(u64);

/// Something that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write a number with a unit, like `512m` or `4g`")]
pub(crate) struct SizeError(String);

impl ByteSize {
    /// So many MiB.
    pub(crate) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// So many GiB.
    pub(crate) const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "t"), (30, "g"), (20, "m"), (10, "k")];
        for (shift, unit) in units {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A number of virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuCount(pub(crate) u32);

/// Something that is no number of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of CPUs: write a whole number, like `2`")]
pub(crate) struct CpuCountError(String);

impl FromStr for CpuCount {
    type Err = CpuCountError;

    fn from_str(text: &str) -> Result<Self, CpuCountError> {
        text.parse().map(Self).map_err(|_| CpuCountError(text.to_owned()))
    }
}

/// A time without activity: `90` or `90s`, `30m`, `2h`; `never` or `0` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdleTime(u64);

/// Something that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a time: write seconds, or a number with a unit, like `90s`, `30m` or `2h`, or `never`"
)]
pub(crate) struct TimeError(String);

impl IdleTime {
    /// So many minutes.
    pub(crate) const fn minutes(count: u64) -> Self {
        Self(count * 60)
    }

    /// In seconds; 0 is for ever.
    pub(crate) const fn seconds(self) -> u64 {
        self.0
    }

    /// As a duration; zero is for ever.
    pub(crate) const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for IdleTime {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let wrong = || TimeError(text.to_owned());
        if text == "never" {
            return Ok(Self(0));
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit {
            "" | "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("4g", 4 << 30),
            ("512M", 512 << 20),
            ("64GiB", 64 << 30),
            ("1000", 1000),
            ("2kb", 2048),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in
            ["", "g", "1.5g", "-1", "4 g", "4x", "99999999999999999999", "18446744073709551615t"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("4", 4),
            ("90s", 90),
            ("30m", 1800),
            ("2h", 7200),
            ("1d", 86400),
            ("never", 0),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(IdleTime(seconds)), "{text}");
        }
        for text in ["", "m", "soon", "-1", "1.5h", "18446744073709551615d"] {
            assert!(text.parse::<IdleTime>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_is_read_as_it_is_shown(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn nothing_panics(text in ".*") {
            let _parsed: Result<ByteSize, _> = text.parse();
            let _parsed: Result<IdleTime, _> = text.parse();
        }
    }
}
