//! A list of operations, each divided into pieces, that threads work through together.
//!
//! Every participating thread walks the list: it claims pieces of an operation from a counter until there are none,
//! waits until all are done, and goes on to the next. So progress never depends on which threads arrive: one thread
//! runs everything if it has to, a late helper skips what is done, and a helper that loses its core delays the others
//! only by the piece that it holds. A waiting thread spins for some microseconds and then sleeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use qwen_core::backend::Interrupt;
use qwen_core::numerics::float_env::FloatEnv;

use super::wait::{SPIN, lock, spin};
use crate::kernels::{Op, Scratch};
use crate::simd::Isa;

/// Added to a counter of claims to end them.
const CLOSED: usize = usize::MAX / 2;

/// A list of operations being run.
#[derive(Debug)]
pub(super) struct Region {
    isa: Isa,
    ops: Vec<Op>,
    progress: Vec<Progress>,
    /// Set when the step is aborted.
    stop: AtomicBool,
    /// Set when a kernel panicked.
    failed: AtomicBool,
    /// Threads that sleep until an operation is done.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    done: Condvar,
}

/// The progress of an operation.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Progress {
    pieces: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

/// How a thread takes part.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role<'a> {
    /// Returns when everything is done; checks the interrupt between pieces and then also stops the others.
    Leader(Option<&'a Interrupt>),
    /// Takes available pieces and does not wait for the end.
    Helper,
}

impl Region {
    pub(super) fn new(isa: Isa) -> Region {
        Region {
            isa,
            ops: Vec::new(),
            progress: Vec::new(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            done: Condvar::new(),
        }
    }

    /// Swap `ops` for an empty list that keeps its memory. Returns whether there is too little work to share.
    pub(super) fn fill(&mut self, ops: &mut Vec<Op>) -> bool {
        self.ops.clear();
        std::mem::swap(&mut self.ops, ops);
        self.progress.resize_with(self.ops.len().max(self.progress.len()), Progress::default);
        let mut largest = 0;
        for (op, progress) in self.ops.iter().zip(&mut self.progress) {
            *progress = Progress { pieces: op.pieces(), ..Progress::default() };
            largest = largest.max(progress.pieces);
        }
        *self.stop.get_mut() = false;
        *self.failed.get_mut() = false;
        largest <= 1
    }

    /// Release the operands.
    pub(super) fn clear(&mut self) {
        self.ops.clear();
    }

    /// Whether a kernel panicked.
    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Take part until all is done. Returns whether this thread reached the end; false after an interrupt.
    pub(super) fn walk(&self, scratch: &mut Scratch, role: Role<'_>) -> bool {
        // The host's pool and the calling thread have the host's floating-point state.
        let _float_env = FloatEnv::enter();
        for (i, (op, progress)) in self.ops.iter().zip(&self.progress).enumerate() {
            if progress.done.load(Ordering::Acquire) == progress.pieces {
                continue;
            }
            loop {
                if let Role::Leader(Some(interrupt)) = role
                    && interrupt.is_raised()
                {
                    self.close(i);
                    return false;
                }
                let piece = progress.next.fetch_add(1, Ordering::Relaxed);
                if piece >= progress.pieces {
                    break;
                }
                // SAFETY: each piece is claimed once; all operations before this one are done, as seen by this thread;
                // `Executor::run` returns after the last piece, and its caller guarantees the rest.
                let ran = catch_unwind(AssertUnwindSafe(|| unsafe { op.run(self.isa, piece, scratch) }));
                if ran.is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                if progress.done.fetch_add(1, Ordering::SeqCst) + 1 == progress.pieces {
                    self.wake();
                }
            }
            if !self.wait(progress) {
                return false;
            }
        }
        true
    }

    /// Wait until an operation is done. False if the step was aborted instead.
    fn wait(&self, progress: &Progress) -> bool {
        let over = || progress.done.load(Ordering::SeqCst) == progress.pieces || self.stop.load(Ordering::SeqCst);
        let start = Instant::now();
        while !over() {
            if start.elapsed() < SPIN {
                spin();
                continue;
            }
            let mut guard = lock(&self.lock);
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while !over() {
                guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        progress.done.load(Ordering::Acquire) == progress.pieces
    }

    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.done.notify_all();
        }
    }

    /// Prevent further claims of pieces of operation `first` and later, and wait for those already claimed.
    fn close(&self, first: usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        for progress in &self.progress[first..self.ops.len()] {
            let claimed = progress.next.fetch_add(CLOSED, Ordering::AcqRel).min(progress.pieces);
            while progress.done.load(Ordering::Acquire) < claimed {
                std::thread::yield_now();
            }
        }
    }
}
