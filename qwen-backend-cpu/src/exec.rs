//! Running recorded operations on several threads.
//!
//! A [`Region`] is a list of operations, each cut into pieces. Every thread that takes part walks the list: it claims
//! pieces of an operation from a counter until there are none, waits until all are done, and goes on to the next. So
//! progress never depends on who arrives: one thread alone runs everything, a helper that comes late walks through what
//! is done, one that loses its core delays the others by the one piece that it holds. Who waits spins for some
//! microseconds and then sleeps; an idle backend uses no CPU.
//!
//! The calling thread always takes part. Helpers are threads of our own that live as long as the backend, or jobs in a
//! rayon pool of the host's. Why not a rayon pool in both cases: starting a job there allocates, and a step should not.
//! Jobs are `'static`: a busy pool that never starts them cannot hold a step up.
//!
//! Between two regions a helper may still hold the last one for a moment. The region is reference-counted, and filled
//! anew only when nobody else holds it ([`Arc::get_mut`]); else another is taken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qwen_core::backend::Interrupt;
use qwen_core::{Error, Result};

use crate::kernels::{Op, Scratch};
use crate::simd::Isa;

/// How long to spin for the end of an operation or the next region before sleeping.
const SPIN: Duration = Duration::from_micros(30);

/// Added to a counter of claims to end them.
const CLOSED: usize = usize::MAX / 2;

/// Runs regions.
#[derive(Debug)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
    threads: usize,
    pool: Option<Arc<rayon::ThreadPool>>,
    own: Vec<JoinHandle<()>>,
    regions: Vec<Arc<Region>>,
    scratch: Scratch,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tells helpers of a new region.
    begun: Condvar,
    /// Counts regions; lets helpers spin without the lock.
    epoch: AtomicU64,
    /// One for each helper, and whether its job in a foreign pool has yet to start.
    helpers: Vec<(Mutex<Scratch>, AtomicBool)>,
}

#[derive(Debug, Default)]
struct State {
    region: Option<Arc<Region>>,
    epoch: u64,
    sleepers: usize,
    quit: bool,
}

/// A list of operations being run.
#[derive(Debug)]
struct Region {
    isa: Isa,
    ops: Vec<Op>,
    marks: Vec<Mark>,
    /// Set when the step is given up.
    stop: AtomicBool,
    /// Set when a kernel panicked.
    failed: AtomicBool,
    /// Threads that sleep until an operation is done.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    done: Condvar,
}

/// How far an operation is.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Mark {
    pieces: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor {
    /// An executor of `threads` threads, the calling one among them.
    pub(crate) fn new(threads: usize, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Executor> {
        let helpers = (1..threads).map(|_| (Mutex::new(Scratch::new()), AtomicBool::new(false))).collect();
        let shared =
            Arc::new(Shared { state: Mutex::default(), begun: Condvar::new(), epoch: AtomicU64::new(0), helpers });
        let mut executor =
            Executor { shared, threads, pool, own: Vec::new(), regions: Vec::new(), scratch: Scratch::new() };
        if executor.pool.is_none() {
            for slot in 0..threads - 1 {
                let shared = executor.shared.clone();
                let thread = std::thread::Builder::new().name(format!("qwen-cpu-{}", slot + 1));
                let handle = thread.spawn(move || shared.serve(slot)).map_err(|e| Error::Device {
                    device: "cpu".into(),
                    op: "start a thread".into(),
                    reason: e.to_string(),
                })?;
                executor.own.push(handle);
            }
        }
        Ok(executor)
    }

    /// How many threads take part.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Run `ops` and clear them.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `interrupt` is raised before the last piece is claimed; [`Error::Device`] when a kernel
    /// panicked.
    ///
    /// # Safety
    /// Until this returns, nothing but the operations touches their operands, and each operation may run once those
    /// before it are over.
    pub(crate) unsafe fn run(&mut self, isa: Isa, ops: &mut Vec<Op>, interrupt: Option<&Interrupt>) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        let mut region = match self.regions.iter_mut().position(|region| Arc::get_mut(region).is_some()) {
            Some(free) => self.regions.swap_remove(free),
            None => Arc::new(Region::new(isa)),
        };
        let alone = match Arc::get_mut(&mut region) {
            Some(region) => region.fill(ops),
            None => unreachable!("a region just found or made is nobody else's"),
        };
        let publish = self.threads > 1 && !alone;
        if publish {
            self.publish(&region);
        }
        let walked = region.walk(&mut self.scratch, Some(interrupt));
        if publish {
            lock(&self.shared.state).region = None;
        }
        let failed = region.failed.load(Ordering::Relaxed);
        // Operands are given back now where no helper is still about to leave, else when the region is used again.
        if let Some(region) = Arc::get_mut(&mut region) {
            region.ops.clear();
        }
        self.regions.push(region);
        if failed {
            let reason = "a kernel panicked; its message went to the panic hook".into();
            return Err(Error::Device { device: "cpu".into(), op: "step".into(), reason });
        }
        if walked { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn publish(&self, region: &Arc<Region>) {
        let sleepers = {
            let mut state = lock(&self.shared.state);
            state.region = Some(region.clone());
            state.epoch += 1;
            self.shared.epoch.store(state.epoch, Ordering::Release);
            state.sleepers
        };
        let Some(pool) = &self.pool else {
            if sleepers > 0 {
                self.shared.begun.notify_all();
            }
            return;
        };
        for slot in 0..self.threads - 1 {
            // A job that has not started yet will take this region.
            if !self.shared.helpers[slot].1.swap(true, Ordering::AcqRel) {
                let shared = self.shared.clone();
                pool.spawn(move || shared.help_once(slot));
            }
        }
    }

    /// Call `f` with each number below `count`, from several threads, and wait.
    pub(crate) fn for_each(&self, count: usize, f: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    break;
                }
                f(i);
            }
        };
        let others = (self.threads - 1).min(count.saturating_sub(1));
        match &self.pool {
            Some(pool) => pool.in_place_scope(|scope| {
                (0..others).for_each(|_| scope.spawn(|_| work()));
                work();
            }),
            None => std::thread::scope(|scope| {
                for _ in 0..others {
                    // Without a thread the others do it all.
                    let _ = std::thread::Builder::new().name("qwen-cpu-load".into()).spawn_scoped(scope, work);
                }
                work();
            }),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        lock(&self.shared.state).quit = true;
        self.shared.begun.notify_all();
        for handle in self.own.drain(..) {
            // A helper catches the panics of kernels; were it lost for another reason, there is nothing left to do.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// The life of a helper of our own.
    fn serve(&self, slot: usize) {
        let mut seen = 0;
        let mut scratch = lock(&self.helpers[slot].0);
        loop {
            let start = Instant::now();
            while self.epoch.load(Ordering::Acquire) == seen && start.elapsed() < SPIN {
                spin();
            }
            let mut state = lock(&self.state);
            let region = loop {
                if state.quit {
                    return;
                }
                if state.epoch != seen {
                    seen = state.epoch;
                    if let Some(region) = &state.region {
                        break region.clone();
                    }
                }
                state.sleepers += 1;
                state = self.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleepers -= 1;
            };
            drop(state);
            region.walk(&mut scratch, None);
        }
    }

    /// A helper in a foreign pool: takes part in whatever region is being run, if any.
    fn help_once(&self, slot: usize) {
        self.helpers[slot].1.store(false, Ordering::Release);
        let region = lock(&self.state).region.clone();
        if let Some(region) = region {
            region.walk(&mut lock(&self.helpers[slot].0), None);
        }
    }
}

impl Region {
    fn new(isa: Isa) -> Region {
        Region {
            isa,
            ops: Vec::new(),
            marks: Vec::new(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            done: Condvar::new(),
        }
    }

    /// Take `ops` over, giving an empty list back. Whether there is too little to share.
    fn fill(&mut self, ops: &mut Vec<Op>) -> bool {
        self.ops.clear();
        std::mem::swap(&mut self.ops, ops);
        self.marks.resize_with(self.ops.len().max(self.marks.len()), Mark::default);
        let mut largest = 0;
        for (op, mark) in self.ops.iter().zip(&mut self.marks) {
            *mark = Mark { pieces: op.pieces(), ..Mark::default() };
            largest = largest.max(mark.pieces);
        }
        *self.stop.get_mut() = false;
        *self.failed.get_mut() = false;
        largest <= 1
    }

    /// Take part until all is done. The leader (`Some`) looks for an interrupt and then stops the rest; whether it got
    /// to the end.
    fn walk(&self, scratch: &mut Scratch, leader: Option<Option<&Interrupt>>) -> bool {
        for (i, (op, mark)) in self.ops.iter().zip(&self.marks).enumerate() {
            if mark.done.load(Ordering::Acquire) == mark.pieces {
                continue;
            }
            loop {
                if leader.flatten().is_some_and(Interrupt::is_raised) {
                    self.close(i);
                    return false;
                }
                let piece = mark.next.fetch_add(1, Ordering::Relaxed);
                if piece >= mark.pieces {
                    break;
                }
                // SAFETY: each piece is claimed once; all operations before this one are done, as seen by this thread;
                // `Executor::run` returns after the last piece, and its caller vouches for the rest.
                let ran = catch_unwind(AssertUnwindSafe(|| unsafe { op.run(self.isa, piece, scratch) }));
                if ran.is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                if mark.done.fetch_add(1, Ordering::SeqCst) + 1 == mark.pieces {
                    self.wake();
                }
            }
            if !self.wait(mark) {
                return false;
            }
        }
        true
    }

    /// Wait until an operation is done. False when the step was given up instead.
    fn wait(&self, mark: &Mark) -> bool {
        let over = || mark.done.load(Ordering::SeqCst) == mark.pieces || self.stop.load(Ordering::SeqCst);
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
        mark.done.load(Ordering::Acquire) == mark.pieces
    }

    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.done.notify_all();
        }
    }

    /// Let nobody claim pieces of operation `first` or later, and wait for those that are claimed.
    fn close(&self, first: usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        for mark in &self.marks[first..self.ops.len()] {
            let claimed = mark.next.fetch_add(CLOSED, Ordering::AcqRel).min(mark.pieces);
            while mark.done.load(Ordering::Acquire) < claimed {
                std::thread::yield_now();
            }
        }
    }
}

/// Let the other hyperthread and the memory have a moment.
fn spin() {
    for _ in 0..16 {
        std::hint::spin_loop();
    }
}
