//! Calls of one function from several threads, for work outside of steps: packing weights.
//!
//! The function may borrow from its caller, while jobs given to the host's pool may start at any later time, or never:
//! the pool's threads may all be busy, or blocked by the host. So the calling thread makes every call that no job has
//! claimed, then closes entry to further jobs and waits only for those that have entered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use qwen_core::numerics::float_env::FloatEnv;

use super::wait::lock;

/// What the threads share.
struct Calls {
    f: *const (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    /// Set when a call panicked.
    failed: AtomicBool,
    door: Mutex<Door>,
    left: Condvar,
}

#[derive(Default)]
struct Door {
    closed: bool,
    inside: usize,
}

// SAFETY: `f` is `Sync`; the pointer is followed only by jobs that have entered, see `join`.
unsafe impl Send for Calls {}
// SAFETY: as above.
unsafe impl Sync for Calls {}

/// Call `f` with each number below `count`, on this thread and on up to `helpers` jobs that `spawn` starts. False if a
/// call panicked.
pub(super) fn for_each(
    count: usize,
    f: &(dyn Fn(usize) + Sync),
    helpers: usize,
    spawn: impl Fn(Box<dyn FnOnce() + Send>),
) -> bool {
    let f: *const (dyn Fn(usize) + Sync + '_) = f;
    // SAFETY: only the lifetime changes; when `close` returns, the pointer is not in use and will not be used again.
    let f = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(f) };
    let calls = Arc::new(Calls {
        f,
        count,
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        door: Mutex::default(),
        left: Condvar::new(),
    });
    // Even after a panic, jobs that start later must not enter.
    let closing = Closing(&calls);
    for _ in 0..helpers.min(count.saturating_sub(1)) {
        let calls = calls.clone();
        spawn(Box::new(move || calls.join()));
    }
    // SAFETY: `f` is borrowed for the length of this function.
    unsafe { calls.work() };
    drop(closing);
    !calls.failed.load(Ordering::Relaxed)
}

struct Closing<'a>(&'a Calls);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut door = lock(&self.0.door);
        door.closed = true;
        while door.inside > 0 {
            door = self.0.left.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Calls {
    /// A job: take part, unless everything is done.
    fn join(&self) {
        {
            let mut door = lock(&self.door);
            if door.closed {
                return;
            }
            door.inside += 1;
        }
        // SAFETY: the caller of `for_each` waits until all entered jobs have left, so `f` is still borrowed.
        unsafe { self.work() };
        lock(&self.door).inside -= 1;
        self.left.notify_all();
    }

    /// Make calls until all are claimed.
    ///
    /// # Safety
    /// `f` is borrowed meanwhile.
    unsafe fn work(&self) {
        let _float_env = FloatEnv::enter();
        // SAFETY: guaranteed by the caller.
        let f = unsafe { &*self.f };
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| f(i))).is_err() {
                self.failed.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_made_once_each_with_and_without_helpers() {
        for helpers in [0, 1, 3] {
            let made: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
            let call = |i: usize| {
                made[i].fetch_add(1, Ordering::Relaxed);
            };
            assert!(for_each(made.len(), &call, helpers, |job| drop(std::thread::spawn(job))));
            assert!(made.iter().all(|made| made.load(Ordering::Relaxed) == 1), "{helpers} helpers");
        }
    }

    #[test]
    fn calls_are_over_for_a_job_that_starts_late() {
        let late = Mutex::new(Vec::new());
        {
            let borrowed = AtomicUsize::new(0);
            let call = |_: usize| {
                borrowed.fetch_add(1, Ordering::Relaxed);
            };
            assert!(for_each(20, &call, 2, |job| lock(&late).push(job)));
            assert_eq!(borrowed.into_inner(), 20);
        }
        let late = late.into_inner().unwrap();
        assert_eq!(late.len(), 2);
        late.into_iter().for_each(|job| job());
    }

    #[test]
    fn calls_that_panic_are_reported_and_end_the_others() {
        let call = |i: usize| assert!(i != 3, "on purpose");
        assert!(!for_each(10, &call, 0, |_| {}));
        assert!(!for_each(10, &call, 2, |job| drop(std::thread::spawn(job))));
    }
}
