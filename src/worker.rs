//! The engine's own thread: it owns the runner, takes requests and sends events.
//!
//! A stream's channel holds at most one event for each position of the context and each part of the prompt; rows of
//! logits, which are large, are bounded by their window. So a slow reader never makes a channel grow without bound.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use qwen_core::backend::Limits;
use qwen_core::engine::{Canceller, EngineCore, Event, FinishReason, Intake, Request, SeqId, Ticket};
use qwen_core::numerics::float_env::FloatEnv;

use crate::error::{Error, Result};
use crate::events::{debug, wants_debug};

/// An event and when it happened: a reader may be slower than the engine.
pub(crate) type Stamped = (Event, Instant);

/// A request on its way to the thread.
struct Submission {
    request: Request,
    ticket: Ticket,
    events: Sender<Stamped>,
}

/// Requests on their way to the thread.
#[derive(Default)]
struct Submissions {
    state: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Submission>,
    /// The length at which cancelled requests are removed.
    sweep_at: usize,
    is_closed: bool,
}

impl fmt::Debug for Submissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submissions").finish_non_exhaustive()
    }
}

impl Submissions {
    // Nothing that holds the lock can panic halfway through a change.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the thread accepts no more requests.
    fn push(&self, submission: Submission) -> bool {
        let mut queue = self.lock();
        if queue.is_closed {
            return false;
        }
        queue.push(submission);
        true
    }

    /// Accept no more requests, and drop the queued ones: their readers see that the channel is closed.
    fn close(&self) {
        let dropped = {
            let mut queue = self.lock();
            queue.is_closed = true;
            mem::take(&mut queue.requests)
        };
        drop(dropped);
    }
}

impl Queue {
    /// The minimum length at which the queue is searched for cancelled requests.
    const SWEEP_AT: usize = 64;

    /// A cancelled request frees its place in the waiting list at once, so the list does not bound this queue during a
    /// long step: cancelled requests are removed before the queue doubles.
    fn push(&mut self, submission: Submission) {
        if self.requests.len() >= self.sweep_at.max(Self::SWEEP_AT) {
            self.requests.retain(|waiting| {
                let is_cancelled = waiting.ticket.is_cancelled();
                if is_cancelled {
                    // A stream that was dropped does not need to know.
                    let _ = waiting.events.send((Event::Finished(FinishReason::Cancelled), Instant::now()));
                }
                !is_cancelled
            });
            self.sweep_at = 2 * self.requests.len();
        }
        self.requests.push_back(submission);
    }
}

/// The handle of the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    intake: Intake,
    limits: Limits,
    /// The process that has the thread: a fork of it does not.
    process: u32,
    submissions: Arc<Submissions>,
    // Taken when the worker is dropped.
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Start a thread that runs the requests of `intake` on `core`.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(crate) fn start(core: EngineCore, intake: Intake) -> qwen_core::Result<Self> {
        let limits = core.limits().clone();
        let submissions = Arc::<Submissions>::default();
        let of_thread = (intake.clone(), submissions.clone());
        let thread = std::thread::Builder::new()
            .name("qwen-engine".into())
            .spawn(move || {
                let (intake, submissions) = of_thread;
                let submissions = CloseOnDrop(submissions);
                run(core, &intake, &submissions.0);
            })
            .map_err(|error| qwen_core::Error::Io { path: "the engine's thread".into(), error })?;
        let process = std::process::id();
        Ok(Worker { intake, limits, process, submissions, thread: Some(thread) })
    }

    /// Send a request to the thread. Its events go to the receiver.
    ///
    /// # Errors
    /// For an invalid request, when too many requests are waiting, and when the thread has ended.
    pub(crate) fn submit(&self, request: Request) -> Result<(Receiver<Stamped>, Canceller)> {
        self.check_alive()?;
        request.check(&self.limits)?;
        let ticket = self.intake.ticket()?;
        let (canceller, (events, receiver)) = (ticket.canceller(), mpsc::channel());
        if !self.submissions.push(Submission { request, ticket, events }) {
            return Err(Error::stopped("its thread has ended"));
        }
        self.intake.signal();
        Ok((receiver, canceller))
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether this is the process that has the thread.
    pub(crate) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// # Errors
    /// In a process that was forked from the one that loaded the engine: it has no thread to answer.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.is_here() {
            true => Ok(()),
            false => Err(Error::stopped("it was loaded before this process was forked: load it after the fork")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // In a fork there is no thread to wait for, and locks held by the parent's threads are never released.
        if !self.is_here() {
            return;
        }
        // Every stream holds the worker, so none is open: end the thread, and wait until its memory is freed.
        self.submissions.close();
        self.intake.signal();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the thread has already ended the streams.
            let _ = thread.join();
        }
    }
}

/// Closes the queue even if the thread panics.
struct CloseOnDrop(Arc<Submissions>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Run requests until the worker's handle is dropped. Without work the thread sleeps.
fn run(mut core: EngineCore, intake: &Intake, submissions: &Submissions) {
    let _float_env = FloatEnv::enter();
    let mut streams: HashMap<SeqId, (Sender<Stamped>, Canceller)> = HashMap::new();
    let mut some_wait = false;
    loop {
        // Read before looking for work: whatever arrives in between ends the wait below.
        let seen = intake.signals();
        let arrived = {
            let mut queue = submissions.lock();
            // The worker was dropped: no engine or stream holds it any more.
            if queue.is_closed {
                return;
            }
            mem::take(&mut queue.requests)
        };
        for Submission { request, ticket, events } in arrived {
            let canceller = ticket.canceller();
            match core.add(request, ticket) {
                Ok(id) => drop(streams.insert(id, (events, canceller))),
                // A stream that was dropped does not need to know.
                Err(error) => drop(events.send((Event::Failed(error), Instant::now()))),
            }
        }
        let progress = core.step(|id, event| {
            let last = matches!(event, Event::Finished(_) | Event::Failed(_));
            let Some((events, canceller)) = streams.get(&id) else { return };
            if events.send((event, Instant::now())).is_err() {
                // The stream was dropped: nobody reads the rest.
                canceller.cancel();
            }
            if last {
                streams.remove(&id);
            }
        });
        let waiting = if wants_debug() { intake.num_waiting() } else { 0 };
        if (waiting > 0) != some_wait {
            some_wait = waiting > 0;
            match some_wait {
                true => debug!("{waiting} requests wait for room in the batch or the K/V store"),
                false => debug!("no request waits"),
            }
        }
        if !progress {
            intake.wait(seen);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use qwen_core::backend::Interrupt;
    use qwen_core::engine::GenerateParams;
    use qwen_core::model::batch::CopyBlock;
    use qwen_core::model::batch::{Batch, StepOutput};
    use qwen_core::model::runner::Runner;

    use super::*;

    /// Always predicts the id after the last token; steps wait until `hold` is unlocked.
    struct Counting {
        limits: Limits,
        hold: Arc<Mutex<()>>,
    }

    impl Runner for Counting {
        fn limits(&self) -> &Limits {
            &self.limits
        }

        fn execute(&mut self, batch: &Batch, output: &mut StepOutput, _: &Interrupt) -> qwen_core::Result<()> {
            drop(self.hold.lock().unwrap());
            output.clear();
            output.argmax.extend(batch.logits_indices.iter().map(|row| Some(batch.input_ids[*row as usize] + 1)));
            output.logits.resize(batch.num_logits_read * self.limits.vocab_size, 0.5);
            Ok(())
        }

        fn copy_blocks(&mut self, _: &[CopyBlock]) -> qwen_core::Result<()> {
            Ok(())
        }
    }

    /// A worker without a model.
    pub(crate) fn worker() -> Worker {
        held_worker(Arc::default(), Intake::default())
    }

    fn held_worker(hold: Arc<Mutex<()>>, intake: Intake) -> Worker {
        let limits = Limits {
            max_model_len: 64,
            max_num_batched_tokens: 8,
            max_num_seqs: 4,
            max_num_logits: 4,
            block_size: 4,
            num_blocks: 64,
            vocab_size: 1000,
            num_token_ids: 1000,
        };
        Worker::start(EngineCore::new(Box::new(Counting { limits, hold }), intake.clone()), intake).unwrap()
    }

    fn request() -> Request {
        Request::generate([1, 2], GenerateParams::new().max_new_tokens(3))
    }

    #[test]
    fn a_forked_process_is_told_so_and_waits_for_nothing() {
        let mut worker = worker();
        let (events, _) = worker.submit(request()).unwrap();
        assert!(events.iter().any(|(event, _)| matches!(event, Event::Finished(_))));
        // As seen by the child of a fork.
        worker.process = worker.process.wrapping_add(1);
        let error = worker.submit(request()).unwrap_err().to_string();
        assert!(error.contains("before this process was forked"), "{error}");
        drop(worker);
    }

    #[test]
    fn requests_of_many_threads_are_all_answered() {
        let worker = worker();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let (events, canceller) = worker.submit(request()).unwrap();
                        if round % 3 == 0 {
                            canceller.cancel();
                        }
                        let last = events.iter().last().unwrap().0;
                        assert!(matches!(last, Event::Finished(_)), "{last:?}");
                    }
                });
            }
        });
    }

    #[test]
    fn cancelled_requests_take_no_place_during_a_long_step() {
        let hold = Arc::<Mutex<()>>::default();
        let worker = held_worker(hold.clone(), Intake::new(4));
        let step = hold.lock().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| worker.submit(request()).unwrap().0).collect();
        let mut cancelled = Vec::new();
        for _ in 0..5000 {
            let (events, canceller) = worker.submit(request()).unwrap();
            canceller.cancel();
            cancelled.push(events);
        }
        assert!(worker.submissions.lock().requests.len() <= Queue::SWEEP_AT);
        // Those that arrived first may be in the step.
        let more: Vec<_> = std::iter::from_fn(|| worker.submit(request()).ok()).collect();
        assert!((1..=4).contains(&more.len()), "{}", more.len());
        assert!(matches!(worker.submit(request()), Err(Error::Model(qwen_core::Error::QueueFull { .. }))));
        drop(step);
        let end = |events: Receiver<Stamped>| events.iter().last().unwrap().0;
        assert!(waiting.into_iter().map(end).all(|event| matches!(event, Event::Finished(FinishReason::Length))));
        assert!(cancelled.into_iter().map(end).all(|event| matches!(event, Event::Finished(FinishReason::Cancelled))));
    }
}
