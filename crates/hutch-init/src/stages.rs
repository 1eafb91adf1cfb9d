//! How long each stage of a start took, for one line of the log.

use std::fmt;
use std::time::Duration;

use crate::clock;

/// Stages in order; the first starts where this was made.
#[derive(Debug)]
pub(crate) struct Stages {
    last: Duration,
    taken: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Starts measuring.
    pub(crate) fn start() -> Self {
        Self { last: clock::since_boot(), taken: Vec::new() }
    }

    /// Ends a stage; the next one starts.
    pub(crate) fn mark(&mut self, stage: &'static str) {
        let now = clock::since_boot();
        self.taken.push((stage, now.saturating_sub(self.last)));
        self.last = now;
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (stage, taken)) in self.taken.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}{stage} {}.{} ms",
                taken.as_millis(),
                taken.as_micros() % 1000 / 100
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_listed_with_tenths_of_milliseconds() {
        let taken = vec![("a", Duration::from_micros(12_345)), ("b", Duration::from_micros(99))];
        let stages = Stages { last: Duration::ZERO, taken };
        assert_eq!(stages.to_string(), "a 12.3 ms, b 0.0 ms");
    }

    #[test]
    fn a_mark_measures_from_the_one_before() {
        let mut stages = Stages::start();
        stages.mark("a");
        stages.mark("b");
        assert_eq!(stages.taken.len(), 2);
    }
}
