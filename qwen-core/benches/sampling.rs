//! How long it takes to choose a token among 151,936, with one thread, and 64 of them in a step of an engine, with
//! several: `cargo bench -p qwen-core --bench sampling`.
//!
//! Each row of the table is a chain of stages, each column a kind of logits: `peaked` as in a model that is sure, with few
//! probable tokens, `broad` as in one that is not, `flat` with all logits nearly equal, which no model gives.

use std::time::Instant;

use qwen_core::Result;
use qwen_core::backend::{Interrupt, Limits};
use qwen_core::engine::sampling::{Dry, Mirostat, Preset, Sampler, SamplingParams, Workspace};
use qwen_core::engine::{EngineCore, GenerateParams, Intake, Request};
use qwen_core::model::batch::{Batch, CopyBlock, StepOutput};
use qwen_core::model::runner::Runner;

const VOCAB: usize = 151_936;
const ROUNDS: usize = 60;

/// Normally distributed numbers, the same in each run.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        // The sum of twelve uniform numbers.
        let mut sum = -6.0;
        for _ in 0..12 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f32 / (1u64 << 24) as f32;
        }
        sum
    }
}

/// Logits with this standard deviation; the best of them rise by `lead` over the others.
fn row(deviation: f32, lead: f32) -> Vec<f32> {
    let mut normal = Normal(7);
    let mut row: Vec<f32> = (0..VOCAB).map(|_| deviation * normal.next()).collect();
    for (rank, at) in (0..VOCAB).step_by(7919).enumerate() {
        row[at] += lead * (1.0 - 0.03 * rank as f32);
    }
    row
}

fn main() -> Result<()> {
    let prompt: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(2_654_435_761) % VOCAB as u32).collect();
    let mut tokens = prompt.clone();
    tokens.extend((0..512u32).map(|i| (i * 31) % 977));
    let rows = [("peaked", row(2.5, 22.0)), ("broad", row(2.5, 8.0)), ("flat", row(0.01, 0.0))];
    let instruct = || SamplingParams::new().temperature(0.7).top_k(20).top_p(0.8).repetition_penalty(1.05).seed(1);
    let hot = || SamplingParams::new().temperature(1.0).seed(1);
    let chains = [
        ("Qwen2.5-Instruct: penalty, temperature, top-k 20, top-p", instruct()),
        ("the same in llama.cpp's order", instruct().preset(Preset::LlamaCpp)),
        ("greedy with a penalty", SamplingParams::new().repetition_penalty(1.05)),
        ("temperature alone", hot()),
        ("top-p 0.95", hot().top_p(0.95)),
        ("min-p 0.05", hot().min_p(0.05)),
        ("typical-p 0.95", hot().typical_p(0.95)),
        ("top-n-sigma 1", hot().top_n_sigma(1.0)),
        ("XTC", hot().top_k(40).xtc_probability(1.0)),
        ("mirostat 2", hot().mirostat(Mirostat::default())),
        ("dynamic temperature, min-p", hot().dynatemp_range(0.5).min_p(0.05)),
        ("DRY over 4,608 tokens, top-k 20", hot().top_k(20).dry(Dry::new(0.8))),
    ];
    println!("{:<58}{:>10}{:>10}{:>10}   (us a token, the median of {ROUNDS})", "", "peaked", "broad", "flat");
    let mut workspace = Workspace::default();
    let mut logits = vec![0.0; VOCAB];
    for (name, params) in chains {
        let mut line = format!("{name:<58}");
        for (kind, row) in &rows {
            let sampler = Sampler::new(params.clone(), &prompt)?;
            let mut times = Vec::with_capacity(ROUNDS);
            for round in 0..ROUNDS {
                logits.copy_from_slice(row);
                let mut sampler = sampler.clone();
                let start = Instant::now();
                let chosen = sampler.sample(&tokens[..prompt.len() + round], &mut logits, &mut workspace);
                times.push(start.elapsed().as_secs_f64() * 1e6);
                std::hint::black_box(chosen).unwrap_or_else(|error| panic!("{name}, {kind}: {error}"));
            }
            times.sort_by(f64::total_cmp);
            line += &format!("{:>10.0}", times[ROUNDS / 2]);
        }
        println!("{line}");
    }
    println!();
    let mut serial = 0.0;
    for threads in [1, 2, 4, 8].into_iter().filter(|threads| *threads <= available_threads()) {
        let time = step_of_64(instruct(), row(2.5, 22.0), threads)?;
        serial = if threads == 1 { time } else { serial };
        println!("64 sequences in a step, {threads} threads{time:>10.2} ms, {:.2} x", serial / time);
    }
    Ok(())
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Gives every sequence the same row, in no time.
struct Instantly {
    limits: Limits,
    row: Vec<f32>,
}

impl Runner for Instantly {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, _: &Interrupt) -> Result<()> {
        output.argmax.clear();
        output.argmax.resize(batch.logits_indices.len(), Some(0));
        // Rows of the last step stay: only a few of their values were changed.
        while output.logits.len() < batch.num_logits_read * VOCAB {
            output.logits.extend_from_slice(&self.row);
        }
        Ok(())
    }

    fn copy_blocks(&mut self, _: &[CopyBlock]) -> Result<()> {
        Ok(())
    }
}

/// Milliseconds of a step: what nine tenths of them exceed, since neighbours slow some down.
fn step_of_64(params: SamplingParams, row: Vec<f32>, threads: usize) -> Result<f64> {
    let limits = Limits {
        max_model_len: 256,
        max_num_batched_tokens: 4096,
        max_num_seqs: 64,
        max_num_logits: 64,
        block_size: 32,
        num_blocks: 1024,
        vocab_size: VOCAB,
        num_token_ids: VOCAB,
    };
    let intake = Intake::default();
    let mut core = EngineCore::new(Box::new(Instantly { limits, row }), intake.clone()).with_sampling_threads(threads);
    for seed in 0..64 {
        let prompt: Vec<u32> = (0..32).map(|i| seed as u32 * 100 + i).collect();
        let answer = GenerateParams::new().max_new_tokens(100).sampling(params.clone().seed(seed));
        core.add(Request::generate(prompt, answer), intake.ticket()?)?;
    }
    let mut times = Vec::new();
    loop {
        let start = Instant::now();
        if !core.step(|_, _| {}) {
            break;
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 10])
}
