//! What an engine shares with the threads that send it requests: places in the waiting list, cancels, room for rows of
//! logits, and the signal that wakes it. All other state of an engine belongs to the one thread that steps it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::interruption::{Interruption, Member};
use super::stats::EngineStats;
use crate::backend::Interrupt;
use crate::error::{Error, Result};

/// The handle to an engine for other threads. Cheap to clone.
///
/// ```
/// use qwen_core::engine::Intake;
/// let intake = Intake::new(2);
/// let first = intake.ticket()?;
/// let second = intake.ticket()?;
/// assert!(intake.ticket().is_err(), "two requests may wait");
/// drop(first);
/// assert!(intake.ticket().is_ok());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Intake(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_waiting: usize,
    interrupt: Interrupt,
    state: Mutex<State>,
    signalled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    signals: u64,
    step: Interruption,
    stats: EngineStats,
    /// When the first request ends whose time is over then.
    deadline: Option<Instant>,
    draft_error: Option<Arc<str>>,
}

impl State {
    /// Free the place in the waiting list that belongs to `waits`, once.
    fn leave(&mut self, waits: &AtomicBool) {
        self.waiting -= usize::from(waits.swap(false, Ordering::SeqCst));
    }
}

impl Shared {
    // Nothing that holds the lock can panic halfway through a change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        self.state().signals += 1;
        self.signalled.notify_all();
    }
}

impl Default for Intake {
    fn default() -> Self {
        Intake::new(Self::MAX_WAITING)
    }
}

impl Intake {
    /// The default number of requests that may wait.
    pub const MAX_WAITING: usize = 1024;

    /// The intake of one engine, with room for `max_waiting` waiting requests.
    pub fn new(max_waiting: usize) -> Self {
        let (interrupt, state, signalled) = (Interrupt::default(), Mutex::default(), Condvar::new());
        Intake(Arc::new(Shared { max_waiting, interrupt, state, signalled }))
    }

    /// A place in the waiting list, for one request. It is free again when the request runs, has ended or is cancelled,
    /// or when the ticket is dropped.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when the waiting list is full.
    pub fn ticket(&self) -> Result<Ticket> {
        let mut state = self.0.state();
        let max_waiting = self.0.max_waiting;
        if state.waiting >= max_waiting {
            return Err(Error::QueueFull { waiting: state.waiting, max_waiting });
        }
        state.waiting += 1;
        let waits = Arc::new(AtomicBool::new(true));
        let canceller = Canceller { cancelled: Arc::default(), waits: waits.clone(), shared: self.0.clone() };
        Ok(Ticket { canceller, place: Place { waits, shared: self.0.clone() } })
    }

    /// Room for `rows` rows of logits, or tokens of an answer, at least one, between the engine and a reader.
    pub fn window(&self, rows: usize) -> RowWindow {
        let size = rows.max(1);
        RowWindow { size, free: Arc::new(AtomicUsize::new(size)), shared: self.0.clone() }
    }

    /// What the engine does and has done, as of its latest step.
    pub fn stats(&self) -> EngineStats {
        let state = self.0.state();
        EngineStats { waiting: state.waiting, work: state.step.work(), ..state.stats }
    }

    /// Why the engine's draft model is not used any more, if it has failed. Answers go on without it.
    pub fn draft_error(&self) -> Option<Arc<str>> {
        self.0.state().draft_error.clone()
    }

    pub(super) fn set_draft_error(&self, error: &Error) {
        self.0.state().draft_error = Some(error.to_string().into());
    }

    /// Write down the scheduler's figures, and the time of a step.
    pub(super) fn set_stats(&self, stats: EngineStats, step: Option<Duration>) {
        let mut state = self.0.state();
        let EngineStats { last_step, step_time, .. } = state.stats;
        let (last_step, step_time) = (step.unwrap_or(last_step), step_time + step.unwrap_or_default());
        state.stats = EngineStats { last_step, step_time, ..stats };
    }

    /// Requests that hold a place in the waiting list.
    pub fn num_waiting(&self) -> usize {
        self.0.state().waiting
    }

    /// Wake the thread that waits in [`Intake::wait`], or make its next wait return at once.
    pub fn signal(&self) {
        self.0.signal();
    }

    /// The number of signals so far, for [`Intake::wait`].
    pub fn signals(&self) -> u64 {
        self.0.state().signals
    }

    /// Write down the earliest deadline of all requests, for [`Intake::wait`].
    pub(super) fn set_deadline(&self, deadline: Option<Instant>) {
        self.0.state().deadline = deadline;
    }

    /// Sleep until there are more signals than `seen`: from [`Intake::signal`], from a cancel, or from a reader that
    /// has room again; or until the time of a request is over, which the next step ends. Read [`Intake::signals`] before looking for work, so that none is missed.
    pub fn wait(&self, seen: u64) {
        let mut state = self.0.state();
        while state.signals == seen {
            let Some(deadline) = state.deadline else {
                state = self.0.signalled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.0.signalled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Set the maximum number of tokens of a step.
    pub(super) fn set_max_step_tokens(&self, tokens: usize) {
        self.0.state().step.set_max_step_tokens(tokens);
    }

    /// Run a step that computes `members`; cancelling one of them may end it early. The second value says whether that
    /// was requested.
    pub(super) fn during_step<T>(
        &self,
        members: impl Iterator<Item = Member>,
        run: impl FnOnce(&Interrupt) -> Result<T>,
    ) -> (Result<T>, bool) {
        let Shared { interrupt, .. } = &*self.0;
        {
            let mut state = self.0.state();
            interrupt.clear();
            // A cancel sets its flag before it takes the lock: it is seen here, or it finds its request among the members.
            if state.step.begin(members) {
                interrupt.raise();
            }
        }
        let outcome = run(interrupt);
        let mut state = self.0.state();
        let raised = interrupt.is_raised();
        interrupt.clear();
        state.step.end(matches!(outcome, Err(Error::Cancelled)));
        (outcome, raised)
    }
}

/// The right to add one request to an engine.
#[derive(Debug)]
#[must_use = "dropping a ticket gives its place in the waiting list back"]
pub struct Ticket {
    pub(super) canceller: Canceller,
    pub(super) place: Place,
}

impl Ticket {
    /// A handle that stops the request.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Whether the request was cancelled before it was added to an engine.
    pub fn is_cancelled(&self) -> bool {
        self.canceller.is_cancelled()
    }
}

/// A place in the waiting list, until it is dropped or its request is cancelled.
#[derive(Debug)]
pub(super) struct Place {
    waits: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.state().leave(&self.waits);
    }
}

/// A handle that stops one request from any thread, also in the middle of its prompt.
///
/// It ends the running step early if the step computes nothing else, or if the other requests lose at most a tenth of
/// their work (see [`Work`](super::Work)); otherwise the request ends when the step does. The answers of other requests do not
/// change.
#[derive(Debug, Clone)]
pub struct Canceller {
    cancelled: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Canceller {
    /// Stop the request. Does nothing when it has ended.
    pub fn cancel(&self) {
        // Set the flag first: see `during_step`.
        self.cancelled.store(true, Ordering::SeqCst);
        {
            let mut state = self.shared.state();
            // At once, not when the engine looks next: a step may take long, and other requests need the place
            // meanwhile.
            state.leave(&self.waits);
            if state.step.holds(&self.cancelled) && state.step.may_end() {
                self.shared.interrupt.raise();
            }
            state.signals += 1;
        }
        self.shared.signalled.notify_all();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }
}

/// Room between an engine and the reader of a request's rows of logits, or of an answer's tokens: the engine computes
/// none without room for it.
/// Created by [`Intake::window`].
#[derive(Debug, Clone)]
pub struct RowWindow {
    size: usize,
    free: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl RowWindow {
    /// Rows that may be computed now.
    pub(super) fn free(&self) -> usize {
        self.free.load(Ordering::SeqCst)
    }

    /// Whether the reader has taken all rows that were computed for it.
    pub(super) fn is_open(&self) -> bool {
        self.free() >= self.size
    }

    /// Record that a row is on its way to the reader. Only the engine takes room, so `free` does not shrink in between.
    pub(super) fn take(&self) {
        let _ = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1));
    }

    /// Record that the reader has taken a row.
    pub fn give_back(&self) {
        let free = self.free.fetch_add(1, Ordering::SeqCst) + 1;
        if free == 1 || free == self.size {
            self.shared.signal();
        }
    }
}
