//! Locks whose content stays valid when a thread panics: every section is a few plain assignments.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of earlier holders.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
