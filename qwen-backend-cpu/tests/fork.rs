//! A child of `fork` has none of the parent's threads: it gets an error, while a single-threaded backend keeps working.
#![cfg(all(unix, not(miri)))]

use std::sync::Arc;

use qwen_core::backend::{MatrixPart, WeightRole, WeightView};
use qwen_core::{Backend, Encoding, Error, Result};

mod common;
use common::{Small, options};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn alarm(seconds: u32) -> u32;
    fn _exit(status: i32) -> !;
}

/// Run `check` in a child; returns whether it returned true within a minute.
fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child uses only what this thread owns, prints nothing, and exits without running exit handlers. A
    // child that waits for a thread that does not exist is ended by the alarm.
    unsafe {
        match fork() {
            0 => {
                alarm(60);
                _exit(if check() { 0 } else { 1 });
            }
            pid => {
                assert!(pid > 0, "fork failed");
                let mut status = -1;
                assert_eq!(waitpid(pid, &mut status, 0), pid);
                status == 0
            }
        }
    }
}

fn is_refused<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Device { reason, .. }) if reason.contains("forked"))
}

fn load(small: &mut Small) -> Result<()> {
    let data = vec![0; 2 * 64 * 8];
    let parts = [MatrixPart::whole(Encoding::Bf16, 64, 8, &data).unwrap()];
    small.b.load(&WeightView { name: "test", role: WeightRole::Linear, parts: &parts }).map(drop)
}

#[test]
fn a_forked_child_is_told_that_its_threads_are_gone() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    for options in [options().threads(3), options().pool(pool)] {
        let mut small = Small::new(options);
        small.prompt(20);
        let told = in_child(|| {
            let refused =
                is_refused(small.try_run(20)) && is_refused(small.try_run(20)) && is_refused(load(&mut small));
            // Also dropped in the child: no thread is joined.
            drop(small.b);
            refused
        });
        assert!(told);
    }
}

#[test]
fn the_parent_goes_on() {
    let mut small = Small::new(options().threads(2));
    let want = small.prompt(20);
    assert!(in_child(|| is_refused(small.try_run(20))));
    assert_eq!(small.prompt(20), want);
}

#[test]
fn one_thread_goes_on_in_a_child() {
    let mut small = Small::new(options().threads(1));
    let want = small.prompt(20);
    assert!(in_child(|| load(&mut small).is_ok() && small.prompt(20) == want));
    assert_eq!(small.prompt(20), want);
}
