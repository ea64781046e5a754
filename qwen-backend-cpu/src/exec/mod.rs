//! Running recorded operations, and packing, on several threads.
//!
//! The calling thread always takes part. Helpers are our own threads, which live as long as the backend, or jobs in the
//! host's rayon pool. Why not a rayon pool in both cases: starting a job there allocates, and a step should not. A pool
//! whose threads are all busy delays nothing: the calling thread does whatever no helper has begun ([`region`],
//! [`calls`]). An idle backend uses no CPU.
//!
//! Between two regions a helper may still hold the last one for a moment. Regions are reference-counted, and one is
//! reused only when nobody else holds it ([`Arc::get_mut`]); otherwise another one is used.
//!
//! A child of `fork` has its parent's memory but none of these threads: an executor that needs them refuses to run
//! there.

mod calls;
mod region;
mod wait;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use qwen_core::backend::Interrupt;
use qwen_core::numerics::float_env::FloatEnv;
use qwen_core::{Error, Result};

use crate::error::device_error;
use crate::kernels::{Op, Scratch};
use crate::simd::Isa;

use region::{Region, Role};
use wait::{SPIN, lock, spin};

/// Runs regions.
#[derive(Debug)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
    threads: usize,
    pool: Option<Arc<rayon::ThreadPool>>,
    own: Vec<JoinHandle<()>>,
    regions: Vec<Arc<Region>>,
    scratch: Scratch,
    /// The process that has the threads.
    process: u32,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notifies helpers of a new region.
    begun: Condvar,
    /// Counts regions; lets helpers spin without the lock.
    epoch: AtomicU64,
    /// One per helper: whether its job in the host's pool has yet to start.
    helpers: Vec<(Mutex<Scratch>, AtomicBool)>,
}

#[derive(Debug, Default)]
struct State {
    region: Option<Arc<Region>>,
    epoch: u64,
    sleepers: usize,
    quit: bool,
}

impl Executor {
    /// An executor of `threads` threads, including the calling one.
    pub(crate) fn new(threads: usize, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Executor> {
        let helpers = (1..threads).map(|_| (Mutex::new(Scratch::new()), AtomicBool::new(false))).collect();
        let shared =
            Arc::new(Shared { state: Mutex::default(), begun: Condvar::new(), epoch: AtomicU64::new(0), helpers });
        let mut executor = Executor {
            shared,
            threads,
            pool,
            own: Vec::new(),
            regions: Vec::new(),
            scratch: Scratch::new(),
            process: std::process::id(),
        };
        if executor.pool.is_none() {
            for slot in 0..threads - 1 {
                let shared = executor.shared.clone();
                let thread = std::thread::Builder::new().name(format!("qwen-cpu-{}", slot + 1));
                let handle = thread
                    .spawn(move || shared.serve(slot))
                    .map_err(|e| device_error("start a thread", e.to_string()))?;
                executor.own.push(handle);
            }
        }
        Ok(executor)
    }

    /// How many threads take part.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Whether this is a child of the process that made the executor.
    fn forked(&self) -> bool {
        std::process::id() != self.process
    }

    fn check_process(&self, op: &str) -> Result<()> {
        if self.threads > 1 && self.forked() {
            let reason = format!(
                "process {} was forked from process {}, which has this backend's threads: load the model in the child, or \
                 use one thread",
                std::process::id(),
                self.process
            );
            return Err(device_error(op, reason));
        }
        Ok(())
    }

    /// Run `ops` and clear them.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `interrupt` is raised before the last piece is claimed; [`Error::Device`] when a kernel
    /// panicked, or in a child of the process that has the threads.
    ///
    /// # Safety
    /// Until this returns, only the operations access their operands, and each operation may run once those before it
    /// are done.
    pub(crate) unsafe fn run(&mut self, isa: Isa, ops: &mut Vec<Op>, interrupt: Option<&Interrupt>) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.check_process("step") {
            ops.clear();
            return Err(error);
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
        let walked = region.walk(&mut self.scratch, Role::Leader(interrupt));
        if publish {
            lock(&self.shared.state).region = None;
        }
        let failed = region.failed();
        // Operands are released now, unless a helper is still leaving; then when the region is reused.
        if let Some(region) = Arc::get_mut(&mut region) {
            region.clear();
        }
        self.regions.push(region);
        if failed {
            return Err(device_error("step", "a kernel panicked; its message went to the panic hook".into()));
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
            // A job that has not started yet will pick up this region.
            if !self.shared.helpers[slot].1.swap(true, Ordering::AcqRel) {
                let shared = self.shared.clone();
                pool.spawn(move || shared.help_once(slot));
            }
        }
    }

    /// Call `f` with each number below `count`, from several threads, and wait.
    ///
    /// # Errors
    /// [`Error::Device`] when a call panicked, or in a child of the process that has the threads.
    pub(crate) fn for_each(&self, count: usize, f: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.check_process("load")?;
        let finished = calls::for_each(count, f, self.threads - 1, |job| match &self.pool {
            Some(pool) => pool.spawn(job),
            // If no helper takes part, the calling thread does it all.
            None => drop(std::thread::Builder::new().name("qwen-cpu-load".into()).spawn(job)),
        });
        if finished {
            return Ok(());
        }
        Err(device_error("load", "packing panicked; its message went to the panic hook".into()))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if self.forked() {
            // There is no thread to join, and one that does not exist here may have held the lock.
            self.own.drain(..).for_each(std::mem::forget);
            return;
        }
        lock(&self.shared.state).quit = true;
        self.shared.begun.notify_all();
        for handle in self.own.drain(..) {
            // Helpers catch the panics of kernels; if one died for another reason, there is nothing left to do.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// The loop of one of our own helper threads until the executor is dropped.
    fn serve(&self, slot: usize) {
        // The floating-point state was inherited from the thread that started this one.
        let _float_env = FloatEnv::enter();
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
            region.walk(&mut scratch, Role::Helper);
        }
    }

    /// A helper in the host's pool: takes part in the region that is being run, if any.
    fn help_once(&self, slot: usize) {
        self.helpers[slot].1.store(false, Ordering::Release);
        let region = lock(&self.state).region.clone();
        if let Some(region) = region {
            region.walk(&mut lock(&self.helpers[slot].0), Role::Helper);
        }
    }
}
