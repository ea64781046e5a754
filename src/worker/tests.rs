//! A worker over runners without a model.

use qwen_core::backend::Interrupt;
use qwen_core::engine::{Event, FinishReason, GenerateParams};
use qwen_core::model::batch::CopyBlock;
use qwen_core::model::batch::{Batch, StepOutput};
use qwen_core::model::runner::Runner;

use super::driver::Queue;
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
