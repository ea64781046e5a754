//! How long it takes to choose a token among 151,936, with one thread: `cargo bench -p qwen-core --bench sampling`.
//!
//! Each row of the table is a chain of stages, each column a kind of logits: `peaked` as in a model that is sure, with few
//! probable tokens, `broad` as in one that is not, `flat` with all logits nearly equal, which no model gives.

use std::time::Instant;

use qwen_core::Result;
use qwen_core::engine::sampling::{Dry, Mirostat, Preset, Sampler, SamplingParams, Workspace};

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
    Ok(())
}
