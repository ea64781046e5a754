//! A step does not allocate once the backend has run one of its size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

mod common;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_do_not_allocate() {
    for threads in [1, 2, 3] {
        let mut small = common::Small::new(common::options().threads(threads));
        // The first steps allocate; a helper that leaves a region late makes the next step use another one.
        for _ in 0..50 {
            small.prompt(9);
            small.token(300);
        }
        let mut least = usize::MAX;
        for _ in 0..5 {
            let before = COUNT.load(Ordering::Relaxed);
            for _ in 0..10 {
                small.run(9);
                small.run(9);
            }
            least = least.min(COUNT.load(Ordering::Relaxed) - before);
        }
        assert_eq!(least, 0, "{threads} threads");
    }
}
