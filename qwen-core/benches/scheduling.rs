//! What an engine costs besides the model: `cargo bench -p qwen-core --bench scheduling`.
//!
//! The runner is scripted: it computes nothing. So all the time of a step is that of scheduling, of K/V blocks, of the
//! batch, of choosing tokens and of events. A step of a real model takes milliseconds.

use std::time::Instant;

use qwen_core::Result;
use qwen_core::backend::{Interrupt, Limits};
use qwen_core::engine::{EngineCore, Event, GenerateParams, Intake, Request, Speculation};
use qwen_core::model::batch::{Batch, CopyBlock, StepOutput};
use qwen_core::model::runner::Runner;

/// Steps of one measurement.
const STEPS: usize = 1000;
const ROUNDS: usize = 9;
/// The step of a model that is compared: that of 64 sequences by the smallest one, at 32 GB/s.
const MODEL_STEP_SECONDS: f64 = 0.05;

/// The next token is the last one plus one.
struct Scripted(Limits);

impl Runner for Scripted {
    fn limits(&self) -> &Limits {
        &self.0
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, _: &Interrupt) -> Result<()> {
        output.clear();
        let next = |index: &u32| Some((batch.input_ids[*index as usize] + 1) % self.0.num_token_ids as u32);
        output.argmax.extend(batch.logits_indices.iter().map(next));
        Ok(())
    }

    fn copy_blocks(&mut self, _: &[CopyBlock]) -> Result<()> {
        Ok(())
    }
}

/// Microseconds of a step in which each of `num_seqs` sequences, with prompts of `prompt` tokens, gets one token, and
/// how many tokens came in a step.
fn steps(num_seqs: usize, prompt: usize, params: &GenerateParams, prefix_cache: bool) -> Result<(f64, f64)> {
    let (block_size, context) = (32, prompt + 2 * STEPS * 32);
    let limits = Limits {
        max_model_len: context,
        max_num_batched_tokens: 2048,
        max_num_seqs: num_seqs,
        max_num_logits: 2 * num_seqs,
        block_size,
        num_blocks: num_seqs * context.div_ceil(block_size),
        vocab_size: 151_936,
        num_token_ids: 151_665,
    };
    let intake = Intake::default();
    let mut core = EngineCore::new(Box::new(Scripted(limits)), intake.clone()).with_prefix_cache(prefix_cache);
    for seq in 0..num_seqs {
        // Different from the first token on, and with nothing that repeats.
        let ids: Vec<u32> = (0..prompt).map(|i| ((seq * 7919 + i * 31) % 151_000) as u32).collect();
        core.add(Request::generate(ids, params.clone()), intake.ticket()?)?;
    }
    // Until all prompts are computed.
    let mut answering = 0;
    while answering < num_seqs {
        answering = 0;
        core.step(|_, event| answering += usize::from(matches!(event, Event::Token(_))));
    }
    let mut tokens = 0;
    let started = Instant::now();
    for _ in 0..STEPS {
        core.step(|_, event| tokens += usize::from(matches!(event, Event::Token(_))));
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok((1e6 * seconds / STEPS as f64, tokens as f64 / STEPS as f64))
}

fn main() -> Result<()> {
    println!(
        "{:<54}{:>12}{:>20}{:>14}   (medians of {ROUNDS} x {STEPS} steps)",
        "", "us a step", "sequence-steps/s", "of 50 ms"
    );
    let plain = GenerateParams::new();
    let guessing = GenerateParams::new().speculation(Speculation::PromptLookup);
    let rows = [
        ("1 sequence", 1, 64, &plain, true),
        ("8 sequences", 8, 64, &plain, true),
        ("64 sequences", 64, 64, &plain, true),
        ("64 sequences, without prefix cache", 64, 64, &plain, false),
        ("64 sequences after prompts of 4,096 tokens", 64, 4096, &plain, true),
        ("64 sequences that speculate, with nothing to guess", 64, 4096, &guessing, true),
        ("256 sequences", 256, 64, &plain, true),
    ];
    for (name, num_seqs, prompt, params, prefix_cache) in rows {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let (time, tokens) = steps(num_seqs, prompt, params, prefix_cache)?;
            assert!(tokens >= num_seqs as f64, "{name}: {tokens} tokens a step");
            times.push(time);
        }
        times.sort_by(f64::total_cmp);
        let time = times[ROUNDS / 2];
        let (rate, share) = (1e6 * num_seqs as f64 / time, 1e-6 * time / MODEL_STEP_SECONDS);
        println!("{name:<54}{time:>12.1}{rate:>20.0}{:>13.2}%", 100.0 * share);
    }
    Ok(())
}
