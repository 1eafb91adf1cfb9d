//! Waiting for something that announces itself nowhere, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// How often we look.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives something, and gives it; panics after `limit`, saying `what` did not happen.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "within {limit:?} it did not happen that {what}");
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_condition_gives() {
        let mut left = 3;
        let value = eventually("it counts down", Duration::from_secs(5), || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(value, "done");
    }

    #[test]
    #[should_panic(expected = "it did not happen that pigs fly")]
    fn gives_up_at_the_deadline() {
        eventually("pigs fly", Duration::from_millis(20), || None::<()>);
    }
}
