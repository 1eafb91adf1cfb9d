//! Directories in which the guest has read many files.
//!
//! A read makes the guest's kernel distrust the file's access time, so that the next look at the file is a request: a
//! `git status` that reads ten thousand files makes ten thousand requests of the next one. A listing renews the attributes
//! of two dozen files at once; it is suggested when the reading in a directory has come to rest.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked::locked;

/// Time without reading after which a directory is listed.
const QUIET: Duration = Duration::from_millis(20);
/// Fewer files than that are asked for one by one.
const READ_MIN: usize = 4;
/// Directories remembered; more at once are forgotten, which costs requests.
const DIRECTORIES_MAX: usize = 4096;

/// How many files were read since the last listing, and when.
#[derive(Debug, Default)]
pub(super) struct Reread(Mutex<HashMap<u64, (usize, Instant)>>);

impl Reread {
    /// A file of this directory was read; says whether it is the first of all, so that somebody has to wait.
    pub(super) fn add(&self, directory: u64, now: Instant) -> bool {
        let mut read = locked(&self.0);
        let first = read.is_empty();
        if read.len() < DIRECTORIES_MAX || read.contains_key(&directory) {
            let (count, last) = read.entry(directory).or_insert((0, now));
            *count += 1;
            *last = now;
        }
        first
    }

    /// The directories at rest with the number of files read in them, and how long to wait for further ones.
    pub(super) fn due(&self, now: Instant) -> (Vec<(u64, usize)>, Option<Duration>) {
        let mut read = locked(&self.0);
        let mut due = Vec::new();
        read.retain(|&directory, &mut (count, last)| {
            let waits = now.saturating_duration_since(last) < QUIET;
            if !waits && count >= READ_MIN {
                due.push((directory, count));
            }
            waits
        });
        let waiting = !read.is_empty();
        (due, waiting.then_some(QUIET))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_due_when_the_reading_rests() {
        let reread = Reread::default();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(reread.add(7, at(0)));
        for moment in 1..10 {
            assert!(!reread.add(7, at(moment)));
        }
        assert!(!reread.add(8, at(9)));
        assert_eq!(reread.due(at(10)), (vec![], Some(QUIET)));
        assert_eq!(reread.due(at(29)), (vec![(7, 10)], None));
        assert_eq!(reread.due(at(100)), (vec![], None));
        assert!(reread.add(7, at(101)));
    }

    #[test]
    fn memory_is_bounded() {
        let reread = Reread::default();
        let now = Instant::now();
        for directory in 0..2 * u64::try_from(DIRECTORIES_MAX).unwrap() {
            reread.add(directory, now);
        }
        assert_eq!(locked(&reread.0).len(), DIRECTORIES_MAX);
    }
}
