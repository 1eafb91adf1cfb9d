//! Changes that init makes on its own mount only so that watchers in the guest notice what happened on the host.
//!
//! Before an event is sent, what the event thread has to be told about the names is written down here: that a name does
//! not exist yet, that a name still exists. Its change is then answered as done, and nothing is done.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::FileType;

use crate::abi::Name;
use crate::locked::locked;

/// Names with an expectation at once; the oldest go first, their events then come to nothing.
const EXPECTED_MAX: usize = 4096;

/// What the event thread is told about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It does not exist.
    Absent,
    /// It stands for this node.
    Node(u64),
    /// It stands for something of this kind that the guest never knew.
    Ghost(FileType),
}

#[derive(Debug, Default)]
struct Expectations {
    names: HashMap<(u64, Box<CStr>), Expected>,
    order: VecDeque<(u64, Box<CStr>)>,
}

/// The event thread and what it is told.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    /// Its number in the headers of its requests; 0 while unknown.
    thread: AtomicU32,
    expectations: Mutex<Expectations>,
}

impl Echo {
    pub(crate) fn set_event_thread(&self, thread: u32) {
        self.thread.store(thread, Ordering::Relaxed);
    }

    /// Says whether there is anyone to send events to.
    pub(crate) fn has_event_thread(&self) -> bool {
        self.thread.load(Ordering::Relaxed) != 0
    }

    /// Says whether a request comes from the event thread. The kernel itself asks as number 0.
    pub(crate) fn is_event_thread(&self, pid: u32) -> bool {
        pid != 0 && self.thread.load(Ordering::Relaxed) == pid
    }

    /// Writes down what to tell.
    pub(crate) fn expect(&self, directory: u64, name: &CStr, expected: Expected) {
        let mut expectations = locked(&self.expectations);
        let key = (directory, Box::from(name));
        if expectations.names.insert(key.clone(), expected).is_none() {
            expectations.order.push_back(key);
        }
        while expectations.order.len() > EXPECTED_MAX {
            if let Some(oldest) = expectations.order.pop_front() {
                expectations.names.remove(&oldest);
            }
        }
    }

    /// What to tell.
    pub(crate) fn expected(&self, directory: u64, name: Name<'_>) -> Option<Expected> {
        let key = (directory, Box::from(name.as_c_str()));
        locked(&self.expectations).names.get(&key).copied()
    }

    /// The change was made: from now on the event thread sees what everybody sees.
    pub(crate) fn done(&self, directory: u64, name: Name<'_>) {
        let key = (directory, Box::from(name.as_c_str()));
        let mut expectations = locked(&self.expectations);
        if expectations.names.remove(&key).is_some() {
            expectations.order.retain(|other| *other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_bounded_and_end_with_the_change() {
        let echo = Echo::default();
        for number in 0..3 * u64::try_from(EXPECTED_MAX).unwrap() {
            echo.expect(number, c"name", Expected::Absent);
        }
        assert_eq!(locked(&echo.expectations).names.len(), EXPECTED_MAX);
        let name = Name::parse(c"name").unwrap();
        let last = 3 * u64::try_from(EXPECTED_MAX).unwrap() - 1;
        assert_eq!(echo.expected(0, name), None);
        assert_eq!(echo.expected(last, name), Some(Expected::Absent));
        echo.done(last, name);
        assert_eq!(echo.expected(last, name), None);
        assert_eq!(locked(&echo.expectations).order.len(), EXPECTED_MAX - 1);
    }

    #[test]
    fn nobody_is_the_event_thread_before_it_is_announced() {
        let echo = Echo::default();
        assert!(!echo.is_event_thread(0) && !echo.is_event_thread(1));
        echo.set_event_thread(7);
        assert!(echo.is_event_thread(7) && !echo.is_event_thread(0));
    }
}
