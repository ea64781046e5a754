//! The threads that compute masks: a few for an engine, whatever the number of its requests.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Something to do.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// A few threads, which end when it is dropped.
pub(super) struct Helpers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helpers").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Helpers {
    /// The stack of a thread: what is nested in a schema or a pattern is nested in the parser.
    const STACK: usize = 8 << 20;

    /// At most this many threads, fewer where the system starts no more.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let start = |_| {
            let shared = shared.clone();
            let thread = thread::Builder::new().name("qwen-masks".into()).stack_size(Self::STACK);
            thread.spawn(move || shared.work()).ok()
        };
        let threads = (0..threads).map_while(start).collect();
        Helpers { shared, threads }
    }

    /// Whether nobody helps.
    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Do it on one of the threads.
    pub(super) fn run(&self, job: Job) {
        self.shared.lock().jobs.push_back(job);
        self.shared.arrived.notify_one();
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.lock();
            queue.is_closed = true;
            queue.jobs.clear();
        }
        self.shared.arrived.notify_all();
        // One of them may be the last to hold the engine: it cannot wait for itself.
        let own = thread::current().id();
        for thread in self.threads.drain(..).filter(|other| other.thread().id() != own) {
            // Panics of jobs are caught.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        while !queue.is_closed {
            match queue.jobs.pop_front() {
                Some(job) => {
                    drop(queue);
                    job();
                    queue = self.lock();
                }
                None => queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
