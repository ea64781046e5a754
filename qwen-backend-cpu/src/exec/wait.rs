//! How threads wait for each other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to spin for the end of an operation or the next region before sleeping.
pub(super) const SPIN: Duration = Duration::from_micros(30);

/// Lock, ignoring poison: a panic leaves nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Yield to the other hyperthread and the memory.
pub(super) fn spin() {
    for _ in 0..16 {
        std::hint::spin_loop();
    }
}
