//! Locks that stay usable after a thread panicked with them: what they guard is valid between any two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock `mutex`, also after a thread panicked with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
