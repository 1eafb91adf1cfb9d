//! Files that guest and host may have written in the same moment.
//!
//! A write of the guest is framed by two looks at the file's change time. A write of the host between them is not seen as
//! one: the two looks are a few microseconds apart, but both sides of a busy machine write often. So while the host is
//! changing anything, what the guest wrote is told to be out of date once more, shortly after the last write. While the
//! host changes nothing, which is most of the time, that costs nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked::locked;

/// The host counts as changing things for so long after a change.
const ACTIVE: Duration = Duration::from_secs(2);
/// Writes of the guest that a later change of the host puts in doubt.
const BEFORE: Duration = Duration::from_secs(1);
/// Quiet time after which doubts are told.
const QUIET: Duration = Duration::from_millis(30);
/// Writes remembered; more within a second are told without a doubt.
const RECENT_MAX: usize = 1 << 16;

/// The guest's last writes and the host's last change.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    recent: VecDeque<(Instant, u64)>,
    host_changed: Option<Instant>,
}

impl Doubts {
    /// The guest wrote to a node.
    pub(super) fn guest_wrote(&self, node: u64, now: Instant) {
        let mut state = locked(&self.state);
        match state.recent.back_mut() {
            // One stream of writes to a file is one entry.
            Some((time, last)) if *last == node => *time = now,
            _ => state.recent.push_back((now, node)),
        }
        if state.recent.len() > RECENT_MAX {
            state.recent.pop_front();
        }
    }

    /// The host changed something.
    pub(super) fn host_changed(&self, now: Instant) {
        locked(&self.state).host_changed = Some(now);
    }

    /// The nodes to tell now, and how long to wait for further ones; no time when there are none.
    pub(super) fn due(&self, now: Instant) -> (HashSet<u64>, Option<Duration>) {
        let mut state = locked(&self.state);
        let active = state.host_changed.is_some_and(|then| now.duration_since(then) < ACTIVE);
        let mut due = HashSet::new();
        while let Some(&(then, node)) = state.recent.front() {
            let age = now.saturating_duration_since(then);
            if active && age >= QUIET {
                due.insert(node);
            } else if age < BEFORE {
                break;
            }
            state.recent.pop_front();
        }
        let waiting = active && !state.recent.is_empty();
        (due, waiting.then_some(QUIET))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_in_doubt_only_while_the_host_changes_things() {
        let doubts = Doubts::default();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        doubts.guest_wrote(7, at(0));
        assert_eq!(doubts.due(at(100)), (HashSet::new(), None));
        // The host's change comes to notice after the write.
        doubts.host_changed(at(110));
        assert_eq!(doubts.due(at(111)), (HashSet::from([7]), None));
        doubts.guest_wrote(8, at(120));
        doubts.guest_wrote(8, at(140));
        assert_eq!(doubts.due(at(160)), (HashSet::new(), Some(QUIET)));
        assert_eq!(doubts.due(at(170)), (HashSet::from([8]), None));
        // Long after the host's last change.
        doubts.guest_wrote(9, at(5000));
        assert_eq!(doubts.due(at(5100)), (HashSet::new(), None));
        assert_eq!(doubts.due(at(6001)), (HashSet::new(), None));
        doubts.host_changed(at(6002));
        assert_eq!(doubts.due(at(6002)), (HashSet::new(), None));
    }

    #[test]
    fn memory_is_bounded() {
        let doubts = Doubts::default();
        let now = Instant::now();
        for node in 0..2 * u64::try_from(RECENT_MAX).unwrap() {
            doubts.guest_wrote(node, now);
        }
        assert_eq!(locked(&doubts.state).recent.len(), RECENT_MAX);
    }
}
