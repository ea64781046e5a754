//! The engine over a scripted runner: no weights, no device.

use std::collections::HashMap;
use std::sync::mpsc;

use super::*;
use crate::backend::composed::argmax_row;
use crate::kv::CopyBlock;
use crate::sampling::SamplingParams;

const VOCAB: usize = 10;

/// The next token is the last one plus one, modulo 8. Notes the steps, and fails or waits on demand.
struct ScriptedRunner {
    limits: Limits,
    steps: mpsc::Sender<Vec<usize>>,
    // Raised in the middle of the step that computes this position.
    cancel_at: Option<(u32, Canceller)>,
    fail_at: Option<u32>,
}

impl Runner for ScriptedRunner {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        batch.check(&self.limits)?;
        let lens = batch.cu_seqlens_q.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        let _ = self.steps.send(lens);
        if let Some((_, canceller)) = self.cancel_at.as_ref().filter(|(at, _)| batch.positions.contains(at)) {
            canceller.cancel();
        }
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        if self.fail_at.is_some_and(|position| batch.positions.contains(&position)) {
            return Err(Error::NonFinite { place: "layer 3".into() });
        }
        let mut logits = vec![0.0; batch.logits_indices.len() * VOCAB];
        for (row, &index) in logits.chunks_exact_mut(VOCAB).zip(&batch.logits_indices) {
            row[(batch.input_ids[index as usize] as usize + 1) % 8] = 5.0;
            // Beyond `num_token_ids`: must never be chosen.
            row[9] = 100.0;
        }
        output.greedy_ids.clear();
        output.logits.clear();
        output.greedy_ids.extend(logits.chunks_exact(VOCAB).map(|row| argmax_row(&row[..9])));
        if batch.read_logits {
            output.logits = logits;
        }
        Ok(())
    }

    fn copy_blocks(&mut self, _copies: &[CopyBlock]) -> Result<()> {
        Ok(())
    }
}

struct Bench {
    core: EngineCore,
    steps: mpsc::Receiver<Vec<usize>>,
    interrupt: Interrupt,
}

fn bench(change: impl FnOnce(&mut ScriptedRunner, &Interrupt)) -> Bench {
    let limits = Limits {
        max_model_len: 64,
        max_num_batched_tokens: 8,
        max_num_seqs: 4,
        max_num_logits: 4,
        block_size: 4,
        num_blocks: 32,
        vocab_size: VOCAB,
        num_token_ids: 9,
    };
    let (sender, steps) = mpsc::channel();
    let interrupt = Interrupt::default();
    let mut runner = ScriptedRunner { limits, steps: sender, cancel_at: None, fail_at: None };
    change(&mut runner, &interrupt);
    Bench { core: EngineCore::new(Box::new(runner), interrupt.clone()), steps, interrupt }
}

impl Bench {
    fn add(&mut self, request: Request) -> SeqId {
        let canceller = EngineCore::canceller(&self.interrupt);
        self.core.add(request, &canceller).unwrap()
    }

    fn run(&mut self) -> HashMap<SeqId, (Vec<u32>, Option<String>)> {
        let mut found: HashMap<SeqId, (Vec<u32>, Option<String>)> = HashMap::new();
        while !self.core.is_idle() {
            self.core.step(|id, event| {
                let (tokens, end) = found.entry(id).or_default();
                assert!(end.is_none(), "an event after the last: {event:?}");
                match event {
                    Event::Token(token) => tokens.push(token),
                    Event::Prompt(_) => {}
                    Event::Finished(reason) => *end = Some(format!("{reason:?}")),
                    Event::Failed(error) => *end = Some(error.to_string()),
                }
            });
        }
        assert_eq!(self.core.scheduler.pool.num_free(), 32, "blocks leak");
        found
    }
}

fn request(prompt: &[u32], max_new_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_new_tokens: Some(max_new_tokens),
        stop_token_ids: vec![0],
        ..Request::default()
    }
}

#[test]
fn an_answer_ends_at_a_stop_token_or_at_its_length() {
    let mut bench = bench(|_, _| {});
    let stop = bench.add(request(&[1, 2, 3], 20));
    let length = bench.add(request(&[4], 2));
    let found = bench.run();
    assert_eq!(found[&stop], (vec![4, 5, 6, 7], Some("Stop".into())));
    assert_eq!(found[&length], (vec![5, 6], Some("Length".into())));
}

#[test]
fn long_prompts_come_in_chunks_and_never_hold_up_a_running_answer() {
    let mut bench = bench(|_, _| {});
    let short = bench.add(request(&[1], 4));
    bench.core.step(|_, _| {});
    let long = bench.add(request(&[2; 20], 1));
    let found = bench.run();
    assert_eq!(found[&short].0, [3, 4, 5]);
    assert_eq!(found[&long].0, [3]);
    let steps: Vec<Vec<usize>> = bench.steps.try_iter().collect();
    assert_eq!(steps, [vec![1], vec![1, 7], vec![1, 7], vec![1, 6]]);
}

#[test]
fn requests_wait_for_free_blocks() {
    let mut bench = bench(|_, _| {});
    let ids: Vec<SeqId> =
        (0..4).map(|_| bench.add(Request { stop_token_ids: vec![], ..request(&[1; 8], 50) })).collect();
    let found = bench.run();
    assert!(ids.iter().all(|id| found[id].0.len() == 50));
}

#[test]
fn padding_ids_are_never_chosen_and_seeds_are_the_requests_own() {
    let sampling = SamplingParams { temperature: 5.0, seed: 3, ..SamplingParams::default() };
    let seeded = Request { sampling, stop_token_ids: vec![], ..request(&[1], 12) };
    let alone = {
        let mut bench = bench(|_, _| {});
        let id = bench.add(seeded.clone());
        bench.run().remove(&id).unwrap().0
    };
    let mut bench = bench(|_, _| {});
    bench.add(request(&[5, 5, 5], 9));
    let id = bench.add(seeded);
    let together = bench.run().remove(&id).unwrap().0;
    assert_eq!(alone, together);
    assert!(alone.iter().all(|token| *token < 9), "{alone:?}");
}

#[test]
fn a_cancel_inside_a_prompt_ends_that_request_alone() {
    let mut canceller = None;
    let mut bench = bench(|runner, interrupt| {
        let handle = EngineCore::canceller(interrupt);
        runner.cancel_at = Some((9, handle.clone()));
        canceller = Some(handle);
    });
    let other = bench.add(request(&[1], 4));
    let cancelled = bench.core.add(request(&[2; 20], 4), &canceller.unwrap()).unwrap();
    let found = bench.run();
    assert_eq!(found[&cancelled], (vec![], Some("Cancelled".into())));
    assert_eq!(found[&other].0, [2, 3, 4, 5]);
}

#[test]
fn a_failed_step_ends_its_requests_and_the_engine_goes_on() {
    let mut bench = bench(|runner, _| runner.fail_at = Some(30));
    let failed = bench.add(request(&[2; 31], 4));
    let found = bench.run();
    assert!(found[&failed].1.as_ref().unwrap().contains("layer 3"));
    let next = bench.add(request(&[1], 2));
    assert_eq!(bench.run()[&next].0, [2, 3]);
}

#[test]
fn bad_requests_are_refused_with_figures() {
    let mut bench = bench(|_, _| {});
    let canceller = EngineCore::canceller(&bench.interrupt);
    let mut refuse = |request: Request| bench.core.add(request, &canceller).unwrap_err();
    assert!(matches!(refuse(request(&[], 1)), Error::EmptyPrompt));
    assert!(matches!(refuse(request(&[1; 64], 1)), Error::ContextLength { prompt: 64, context: 64 }));
    assert!(matches!(refuse(request(&[1, 10], 1)), Error::InvalidTokenId { id: 10, position: 1, vocab_size: 10 }));
    assert!(matches!(refuse(request(&[1], 0)), Error::InvalidArgument { name: "max_new_tokens", .. }));
}
