//! Who steps an engine: a thread of its own, which takes requests and sends events, or a host that calls
//! [`Worker::step`] ([`EngineOptions::manual`](crate::EngineOptions::manual)).
//!
//! A stream's channel holds at most one event for each position of the context and each part of the prompt; rows of
//! logits, which are large, are bounded by their window. So a slow reader never makes a channel grow without bound.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use qwen_core::backend::Limits;
use qwen_core::engine::{Canceller, EngineCore, Event, FinishReason, Intake, Request, SeqId, Ticket};
use qwen_core::numerics::float_env::FloatEnv;

use crate::channel::{Receiver, Sender, Wait, channel};
use crate::error::{Error, Result};
use crate::events::{debug, wants_debug};
use crate::stop_strings::StopWatch;

/// What happened to a request, and when: a reader may be slower than the engine.
pub(crate) type Stamped = (Output, Instant);

/// What happened to a request.
#[derive(Debug)]
pub(crate) enum Output {
    /// In a step of the engine.
    Step(Event),
    /// Its text has reached this stop string. The last output.
    StopString(String),
}

/// A request on its way to the engine.
struct Submission {
    request: Request,
    ticket: Ticket,
    outlet: Outlet,
}

/// Where the events of a request go.
struct Outlet {
    events: Sender<Stamped>,
    canceller: Canceller,
    /// Searches for stop strings.
    watch: Option<StopWatch>,
}

impl Outlet {
    /// Pass an event on. False after the last one.
    fn send(&mut self, event: Event) -> bool {
        let is_last = matches!(event, Event::Finished(_) | Event::Failed(_));
        let stop = match (&event, &mut self.watch) {
            (Event::Token(id), Some(watch)) => watch.push(*id),
            _ => None,
        };
        let (now, is_stopped) = (Instant::now(), stop.is_some());
        let is_read = self.events.send((Output::Step(event), now))
            && stop.is_none_or(|stop| self.events.send((Output::StopString(stop), now)));
        // The stream was dropped, so nobody reads the rest, or the answer is complete.
        if !is_read || is_stopped {
            self.canceller.cancel();
        }
        !is_last && !is_stopped
    }
}

/// Requests on their way to the engine.
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

    /// False if the engine accepts no more requests.
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
            self.requests.retain_mut(|waiting| {
                let is_cancelled = waiting.ticket.is_cancelled();
                if is_cancelled {
                    waiting.outlet.send(Event::Finished(FinishReason::Cancelled));
                }
                !is_cancelled
            });
            self.sweep_at = 2 * self.requests.len();
        }
        self.requests.push_back(submission);
    }
}

/// The handle of an engine. Dropping it ends the engine's thread.
#[derive(Debug)]
pub(crate) struct Worker {
    intake: Intake,
    limits: Limits,
    /// The process that has the engine: a fork of it does not.
    process: u32,
    submissions: Arc<Submissions>,
    stepper: Stepper,
}

/// Who steps the engine.
#[derive(Debug)]
enum Stepper {
    /// A thread. Taken when the worker is dropped.
    Thread(Option<JoinHandle<()>>),
    /// Whoever calls [`Worker::step`], or waits for an answer.
    Host(Box<Mutex<Driver>>),
}

impl Worker {
    /// Start a thread that runs the requests of `intake` on `core`.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(crate) fn start(core: EngineCore, intake: Intake) -> qwen_core::Result<Self> {
        Self::new(core, intake, |driver| {
            let thread = std::thread::Builder::new().name("qwen-engine".into());
            let thread = thread.spawn(move || {
                let closing = CloseOnDrop(driver.submissions.clone());
                driver.run();
                drop(closing);
            });
            thread
                .map(|thread| Stepper::Thread(Some(thread)))
                .map_err(|error| qwen_core::Error::Io { path: "the engine's thread".into(), error })
        })
    }

    /// A worker that runs the requests of `intake` on `core` when it is told to.
    pub(crate) fn manual(core: EngineCore, intake: Intake) -> qwen_core::Result<Self> {
        Self::new(core, intake, |driver| Ok(Stepper::Host(Box::new(Mutex::new(driver)))))
    }

    fn new(
        core: EngineCore,
        intake: Intake,
        stepper: impl FnOnce(Driver) -> qwen_core::Result<Stepper>,
    ) -> qwen_core::Result<Self> {
        let limits = core.limits().clone();
        let submissions = Arc::<Submissions>::default();
        let driver = Driver {
            core,
            intake: intake.clone(),
            submissions: submissions.clone(),
            outlets: HashMap::new(),
            some_wait: false,
        };
        Ok(Worker { intake, limits, process: std::process::id(), submissions, stepper: stepper(driver)? })
    }

    /// Send a request to the engine. Its events go to the receiver, up to a stop string that `watch` finds.
    ///
    /// # Errors
    /// For an invalid request, when too many requests are waiting, and when the thread has ended.
    pub(crate) fn submit(&self, request: Request, watch: Option<StopWatch>) -> Result<(Receiver<Stamped>, Canceller)> {
        self.check_alive()?;
        request.check(&self.limits)?;
        let ticket = self.intake.ticket()?;
        let (canceller, (events, receiver)) = (ticket.canceller(), channel());
        let outlet = Outlet { events, canceller: canceller.clone(), watch };
        if !self.submissions.push(Submission { request, ticket, outlet }) {
            return Err(Error::stopped("its thread has ended"));
        }
        self.intake.signal();
        Ok((receiver, canceller))
    }

    /// The next event for a reader. Pending only if `wait` allows it.
    ///
    /// # Errors
    /// When no more will come.
    pub(crate) fn receive(&self, events: &mut Receiver<Stamped>, wait: &mut Wait<'_, '_>) -> Poll<Result<Stamped>> {
        if let Err(error) = self.check_alive() {
            return Poll::Ready(Err(error));
        }
        if let (Stepper::Host(_), Wait::Block) = (&self.stepper, &wait) {
            return Poll::Ready(self.step_for(events));
        }
        events.receive(wait).map(|event| event.ok_or_else(|| Error::stopped("its thread has ended")))
    }

    /// Step until an event has arrived.
    fn step_for(&self, events: &mut Receiver<Stamped>) -> Result<Stamped> {
        loop {
            let seen = self.intake.signals();
            let mut driver = self.driver()?;
            // Also what another thread's step brought while this one waited for the lock.
            if let Poll::Ready(event) = events.receive(&mut Wait::Not) {
                return event.ok_or_else(|| Error::stopped("its thread has ended"));
            }
            let progress = driver.host_round();
            drop(driver);
            if progress != Some(true) && events.len() == 0 {
                // Others may have to read their rows first.
                self.intake.wait(seen);
            }
        }
    }

    /// A waker for the thread that calls this, which waits in [`Worker::await_wake`].
    pub(crate) fn waker(&self) -> Waker {
        let intake = matches!(self.stepper, Stepper::Host(_)).then(|| self.intake.clone());
        Waker::from(Arc::new(Unpark { thread: std::thread::current(), intake }))
    }

    /// Sleep until a reader with [`Worker::waker`] is woken, or run a step of a manual engine. `seen` are the signals of
    /// the intake before the readers were asked.
    pub(crate) fn await_wake(&self, seen: u64) {
        match &self.stepper {
            Stepper::Thread(_) => std::thread::park(),
            // After a panic the readers learn of it themselves.
            Stepper::Host(_) if self.step().is_ok_and(|progress| !progress) => self.intake.wait(seen),
            Stepper::Host(_) => {}
        }
    }

    /// Run one step. False if there was nothing to compute.
    ///
    /// # Errors
    /// When the engine has its own thread, and when an earlier step panicked.
    pub(crate) fn step(&self) -> Result<bool> {
        self.check_alive()?;
        Ok(self.driver()?.host_round() == Some(true))
    }

    fn driver(&self) -> Result<MutexGuard<'_, Driver>> {
        match &self.stepper {
            Stepper::Host(driver) => driver.lock().map_err(|_| Error::stopped("a step of it panicked")),
            Stepper::Thread(_) => {
                let reason = "the engine has a thread of its own: load it with EngineOptions::manual to step it";
                Err(qwen_core::Error::argument("step", reason).into())
            }
        }
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether this is the process that has the engine.
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
        let Stepper::Thread(thread) = &mut self.stepper else { return };
        if let Some(thread) = thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the thread has already ended the streams.
            let _ = thread.join();
        }
    }
}

/// Wakes a thread that reads several streams.
struct Unpark {
    thread: Thread,
    /// That of a manual engine, whose signals the thread may wait for.
    intake: Option<Intake>,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.intake.iter().for_each(Intake::signal);
        self.thread.unpark();
    }
}

/// Closes the queue even if the thread panics.
struct CloseOnDrop(Arc<Submissions>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The engine, and where its events go.
#[derive(Debug)]
struct Driver {
    core: EngineCore,
    intake: Intake,
    submissions: Arc<Submissions>,
    outlets: HashMap<SeqId, Outlet>,
    some_wait: bool,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").finish_non_exhaustive()
    }
}

impl Driver {
    /// Run requests until the worker's handle is dropped. Without work the thread sleeps.
    fn run(mut self) {
        let _float_env = FloatEnv::enter();
        loop {
            // Read before looking for work: whatever arrives in between ends the wait below.
            let seen = self.intake.signals();
            match self.round() {
                Some(true) => {}
                Some(false) => self.intake.wait(seen),
                None => return,
            }
        }
    }

    /// [`Driver::round`] on a host's thread, which may survive a panic: nobody waits for this engine any more.
    fn host_round(&mut self) -> Option<bool> {
        catch_unwind(AssertUnwindSafe(|| self.round())).unwrap_or_else(|panic| {
            self.submissions.close();
            self.outlets.clear();
            resume_unwind(panic)
        })
    }

    /// Take what was submitted, and run one step. Whether there was something to compute; `None` if the worker was
    /// dropped: no engine or stream holds it any more.
    fn round(&mut self) -> Option<bool> {
        let arrived = {
            let mut queue = self.submissions.lock();
            if queue.is_closed {
                return None;
            }
            mem::take(&mut queue.requests)
        };
        for Submission { request, ticket, mut outlet } in arrived {
            match self.core.add(request, ticket) {
                Ok(id) => drop(self.outlets.insert(id, outlet)),
                Err(error) => drop(outlet.send(Event::Failed(error))),
            }
        }
        let outlets = &mut self.outlets;
        let progress = self.core.step(|id, event| {
            if outlets.get_mut(&id).is_some_and(|outlet| !outlet.send(event)) {
                outlets.remove(&id);
            }
        });
        let waiting = if wants_debug() { self.intake.num_waiting() } else { 0 };
        if (waiting > 0) != self.some_wait {
            self.some_wait = waiting > 0;
            match self.some_wait {
                true => debug!("{waiting} requests wait for room in the batch or the K/V store"),
                false => debug!("no request waits"),
            }
        }
        Some(progress)
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

    fn last(mut events: Receiver<Stamped>) -> Event {
        let all = std::iter::from_fn(|| Wait::block(|wait| events.receive(wait)));
        match all.last().unwrap().0 {
            Output::Step(event) => event,
            stop => panic!("{stop:?}"),
        }
    }

    #[test]
    fn a_forked_process_is_told_so_and_waits_for_nothing() {
        let mut worker = worker();
        let (events, _) = worker.submit(request(), None).unwrap();
        assert!(matches!(last(events), Event::Finished(_)));
        // As seen by the child of a fork.
        worker.process = worker.process.wrapping_add(1);
        let error = worker.submit(request(), None).unwrap_err().to_string();
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
                        let (events, canceller) = worker.submit(request(), None).unwrap();
                        if round % 3 == 0 {
                            canceller.cancel();
                        }
                        let last = last(events);
                        assert!(matches!(last, Event::Finished(_)), "{last:?}");
                    }
                });
            }
        });
    }

    /// Panics in its first step.
    struct Broken(Limits);

    impl Runner for Broken {
        fn limits(&self) -> &Limits {
            &self.0
        }

        fn execute(&mut self, _: &Batch, _: &mut StepOutput, _: &Interrupt) -> qwen_core::Result<()> {
            panic!("a mistake of a backend")
        }

        fn copy_blocks(&mut self, _: &[CopyBlock]) -> qwen_core::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_step_that_panics_ends_all_streams_whoever_runs_it() {
        let limits = worker().limits.clone();
        for start in [Worker::start, Worker::manual] {
            let intake = Intake::default();
            let core = EngineCore::new(Box::new(Broken(limits.clone())), intake.clone());
            let worker = start(core, intake).unwrap();
            let (mut first, _) = worker.submit(request(), None).unwrap();
            // On a thread of its own the engine may have ended already.
            let second = worker.submit(request(), None);
            let read = |events: &mut Receiver<Stamped>| worker.receive(events, &mut Wait::Block);
            let host = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&mut first)));
            assert_eq!(host.is_err(), matches!(worker.stepper, Stepper::Host(_)));
            for events in [Some(first), second.ok().map(|(events, _)| events)].iter_mut().flatten() {
                let Poll::Ready(Err(error)) = read(events) else { panic!("it goes on") };
                assert_eq!(error.kind(), crate::ErrorKind::EngineStopped);
            }
        }
    }

    #[test]
    fn cancelled_requests_take_no_place_during_a_long_step() {
        let hold = Arc::<Mutex<()>>::default();
        let worker = held_worker(hold.clone(), Intake::new(4));
        let step = hold.lock().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| worker.submit(request(), None).unwrap().0).collect();
        let mut cancelled = Vec::new();
        for _ in 0..5000 {
            let (events, canceller) = worker.submit(request(), None).unwrap();
            canceller.cancel();
            cancelled.push(events);
        }
        assert!(worker.submissions.lock().requests.len() <= Queue::SWEEP_AT);
        // Those that arrived first may be in the step.
        let more: Vec<_> = std::iter::from_fn(|| worker.submit(request(), None).ok()).collect();
        assert!((1..=4).contains(&more.len()), "{}", more.len());
        assert!(matches!(worker.submit(request(), None), Err(Error::Model(qwen_core::Error::QueueFull { .. }))));
        drop(step);
        assert!(waiting.into_iter().map(last).all(|event| matches!(event, Event::Finished(FinishReason::Length))));
        assert!(cancelled.into_iter().map(last).all(|event| matches!(event, Event::Finished(FinishReason::Cancelled))));
    }
}
