//! Locks that ignore poisoning: the guarded data is valid between any two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock `mutex`, even if a thread panicked while holding it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
