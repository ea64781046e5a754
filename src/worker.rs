//! The engine's own thread: it owns the runner, takes requests and sends events.
//!
//! A stream's channel holds at most one event for each position of the context and each part of the prompt; rows of
//! logits, which are large, are bounded by their window. So a slow reader never makes a channel grow without bound.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

use qwen_core::backend::Limits;
use qwen_core::engine::{Canceller, EngineCore, Event, Intake, Request, SeqId, Ticket};
use qwen_core::model::runner::Runner;
use qwen_core::numerics::float_env::FloatEnv;

use crate::error::{Error, Result};

/// An event and when it happened: a reader may be slower than the engine.
pub(crate) type Stamped = (Event, Instant);

/// A request on its way to the thread.
struct Submission {
    request: Request,
    ticket: Ticket,
    events: Sender<Stamped>,
}

/// The handle of the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    intake: Intake,
    limits: Limits,
    /// The process that has the thread: a fork of it does not.
    process: u32,
    // Both are `None` only while the worker is being dropped.
    submissions: Option<Sender<Submission>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Start a thread that runs the requests of `intake` on `runner`.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(crate) fn start(runner: Box<dyn Runner>, intake: Intake) -> qwen_core::Result<Self> {
        let limits = runner.limits().clone();
        let core = EngineCore::new(runner, intake.clone());
        let (submissions, received) = mpsc::channel();
        let of_thread = intake.clone();
        let thread = std::thread::Builder::new()
            .name("qwen-engine".into())
            .spawn(move || run(core, &of_thread, &received))
            .map_err(|source| qwen_core::Error::Io { path: "the engine's thread".into(), source })?;
        let process = std::process::id();
        Ok(Worker { intake, limits, process, submissions: Some(submissions), thread: Some(thread) })
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
        let submission = Submission { request, ticket, events };
        if self.submissions.as_ref().is_none_or(|sender| sender.send(submission).is_err()) {
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
        self.submissions = None;
        self.intake.signal();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the thread has already ended the streams.
            let _ = thread.join();
        }
    }
}

/// Run requests until the worker's handle is dropped. Without work the thread sleeps.
fn run(mut core: EngineCore, intake: &Intake, submissions: &Receiver<Submission>) {
    let _float_env = FloatEnv::enter();
    let mut streams: HashMap<SeqId, (Sender<Stamped>, Canceller)> = HashMap::new();
    loop {
        // Read before looking for work: whatever arrives in between ends the wait below.
        let seen = intake.signals();
        loop {
            match submissions.try_recv() {
                Ok(Submission { request, ticket, events }) => {
                    let canceller = ticket.canceller();
                    match core.add(request, ticket) {
                        Ok(id) => drop(streams.insert(id, (events, canceller))),
                        // A stream that was dropped does not need to know.
                        Err(error) => drop(events.send((Event::Failed(error), Instant::now()))),
                    }
                }
                Err(TryRecvError::Empty) => break,
                // The worker was dropped: no engine or stream holds it any more.
                Err(TryRecvError::Disconnected) => return,
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
        if !progress {
            intake.wait(seen);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use qwen_core::backend::Interrupt;
    use qwen_core::engine::{GenerateParams, Goal};
    use qwen_core::model::batch::CopyBlock;
    use qwen_core::model::batch::{Batch, StepOutput};

    use super::*;

    /// Always predicts the id after the last token.
    struct Counting(Limits);

    impl Runner for Counting {
        fn limits(&self) -> &Limits {
            &self.0
        }

        fn execute(&mut self, batch: &Batch, output: &mut StepOutput, _: &Interrupt) -> qwen_core::Result<()> {
            output.clear();
            output.argmax.extend(batch.logits_indices.iter().map(|row| Some(batch.input_ids[*row as usize] + 1)));
            output.logits.resize(batch.num_logits_read * self.0.vocab_size, 0.5);
            Ok(())
        }

        fn copy_blocks(&mut self, _: &[CopyBlock]) -> qwen_core::Result<()> {
            Ok(())
        }
    }

    /// A worker without a model.
    pub(crate) fn worker() -> Worker {
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
        Worker::start(Box::new(Counting(limits)), Intake::default()).unwrap()
    }

    fn request() -> Request {
        let params = GenerateParams { max_new_tokens: Some(3), ..GenerateParams::default() };
        Request { prompt: vec![1, 2], goal: Goal::Generate(params) }
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
}
