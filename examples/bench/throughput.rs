//! Tokens per second of prompts and answers, and what share of the device's limits they reach.
//!
//! The device's ceilings are measured between the repeats, since a shared machine's bandwidth drifts within minutes.
//! Throughput counts the work done: for a prompt, two operations per token and weight outside of the embedding, plus
//! attention; for a generated token, the bytes of weights and K/V that are read. A prompt's share of the arithmetic is
//! the time that this work would take at the ceilings, divided by the time of the run.

use std::time::{Duration, Instant};

use qwen::bench_support::{Ceilings, ceiling_meter, load_at_depth, split_meter};
use qwen::{Config, Device, Encoding, Engine, Plan, Precision, memory};
use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{exactly, first_token};
use crate::report::{Figure, PERCENT, Report, Spread, TOKENS, spread};

/// The work that a throughput counts.
struct Work {
    /// Operations of the prompt in products with weights.
    matrix_ops: f64,
    /// Operations of the prompt in attention.
    attention_ops: f64,
    /// Bytes that generating one token reads, averaged over the answer.
    token_bytes: f64,
}

impl Work {
    fn new(args: &Args, config: &Config, plan: &Plan) -> Self {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let layer = config.hidden_size * (2 * q_size + 2 * kv_size + 3 * config.intermediate_size);
        let weights = (config.num_hidden_layers * layer) as f64;
        let (tokens, depth, batch) = (args.prompt_tokens as f64, args.depth as f64, args.batch as f64);
        // A token at position p has p + 1 scores of `q_size` products each, and as many products for the values.
        let positions = tokens * depth + tokens * (tokens + 1.0) / 2.0;
        let attention = 4.0 * positions * (q_size * config.num_hidden_layers) as f64;
        let context = depth + tokens + args.new_tokens as f64 / 2.0;
        let kv_bytes = context * plan.kv_bytes as f64 / (plan.context * plan.batch) as f64;
        Work {
            matrix_ops: batch * 2.0 * weights * tokens,
            attention_ops: batch * attention,
            // A batch reads the weights once for all.
            token_bytes: plan.read_bytes as f64 / batch + kv_bytes,
        }
    }
}

/// Seconds of one repeat.
struct Run {
    prompt: f64,
    generation: f64,
}

/// Random but fixed ids, different for each conversation.
fn prompt(len: usize, conversation: usize, vocab_size: usize) -> Vec<u32> {
    let limit = vocab_size.min(1000) as u64;
    let id = |i: u64| ((i * 7919 + conversation as u64 * 104_729 + 13) % limit) as u32;
    (0..len as u64).map(id).collect()
}

/// Run the conversations at the same time. The engine timestamps each token, so a slow reader does not change figures.
fn converse(engine: &Engine, batch: usize, tokens: usize, new: usize) -> qwen::Result<Run> {
    let options = exactly(new);
    let streams = (0..batch)
        .map(|n| engine.generate_ids(prompt(tokens, n, engine.config().vocab_size), &options))
        .collect::<qwen::Result<Vec<_>>>()?;
    let (mut first, mut last) = (0.0_f64, 0.0_f64);
    for mut stream in streams {
        stream.try_for_each(|token| token.map(drop))?;
        let stats = stream.stats();
        first = first.max(first_token(&stats));
        last = last.max(first_token(&stats) + stats.generation.as_secs_f64());
    }
    Ok(Run { prompt: first, generation: last - first })
}

fn run(engine: &Engine, args: &Args) -> qwen::Result<Run> {
    converse(engine, args.batch, args.prompt_tokens, args.new_tokens)
}

/// Runs, each with a measurement of the ceilings before and after it.
struct Measured {
    runs: Vec<Run>,
    ceilings: Vec<Ceilings>,
}

impl Measured {
    /// Each run's `achieved` against the faster `ceiling` of the measurements before and after it.
    fn share(&self, achieved: impl Fn(&Run) -> f64, ceiling: impl Fn(&Ceilings) -> f64) -> Option<Spread> {
        let around = self.ceilings.windows(2).map(|pair| ceiling(&pair[0]).max(ceiling(&pair[1])));
        spread(self.runs.iter().zip(around).map(|(run, ceiling)| achieved(run) / ceiling))
    }

    fn figures(&self, engine: &Engine, args: &Args) -> Vec<Figure> {
        let prompt_tokens = (args.batch * args.prompt_tokens) as f64;
        let new_tokens = (args.batch * args.new_tokens.saturating_sub(1)) as f64;
        let work = Work::new(args, engine.config(), engine.plan());
        // The fastest arithmetic that is precise enough for these weights: dots of int8 or bf16, f16 matrices or f32.
        let fast = args.precision == Precision::Fast;
        let encoding = engine.weight_encoding();
        let bf16_dots = fast && encoding == Encoding::Bf16;
        let f16_matrices = fast && encoding != Encoding::F32;
        let int8_dots = fast && encoding.block().values > 1;
        let matrix_rate = |c: &Ceilings| {
            let bf16 = c.bf16_flops_per_second.filter(|_| bf16_dots);
            let f16 = c.f16_matrix_flops_per_second.filter(|_| f16_matrices);
            let int8 = c.int8_ops_per_second.filter(|_| int8_dots);
            [bf16, f16, int8].into_iter().flatten().fold(c.f32_flops_per_second, f64::max)
        };
        // Attention is f32 on the CPU; GPUs use the same arithmetic for it as for weights.
        let on_cpu = engine.device() == Some(&Device::Cpu);
        let attention_rate = |c: &Ceilings| if on_cpu { c.f32_flops_per_second } else { matrix_rate(c) };
        let least_seconds = |c: &Ceilings| work.matrix_ops / matrix_rate(c) + work.attention_ops / attention_rate(c);
        let of_runs = |figure: &dyn Fn(&Run) -> f64| spread(self.runs.iter().map(figure));
        let of_ceilings = |figure: fn(&Ceilings) -> Option<f64>| spread(self.ceilings.iter().filter_map(figure));
        // What a split is predicted to reach: its devices read their parts one after another.
        let is_split = matches!(engine.device(), Some(Device::Split(_)));
        let of_ceilings_of_split =
            |figure: &dyn Fn(&Ceilings) -> f64| spread(self.ceilings.iter().filter(|_| is_split).map(figure));
        let (tokens, bytes, flops, ops) = (TOKENS, (1e9, "GB/s"), (1e9, "Gflop/s"), (1e9, "Gop/s"));
        [
            ("prompt_tokens_per_second", "prompt", tokens, of_runs(&|run| prompt_tokens / run.prompt)),
            ("generation_tokens_per_second", "generation", tokens, of_runs(&|run| new_tokens / run.generation)),
            ("memory_bytes_per_second", "memory", bytes, of_ceilings(|c| Some(c.memory_bytes_per_second))),
            ("copy_bytes_per_second", "copying", bytes, of_ceilings(|c| c.copy_bytes_per_second)),
            ("f32_flops_per_second", "f32 multiply-add", flops, of_ceilings(|c| Some(c.f32_flops_per_second))),
            ("f16_flops_per_second", "f16 multiply-add", flops, of_ceilings(|c| c.f16_flops_per_second)),
            ("f16_matrix_flops_per_second", "f16 matrices", flops, of_ceilings(|c| c.f16_matrix_flops_per_second)),
            ("bf16_flops_per_second", "bf16 dot", flops, of_ceilings(|c| c.bf16_flops_per_second)),
            ("int8_ops_per_second", "int8 dot", ops, of_ceilings(|c| c.int8_ops_per_second)),
            (
                "generation_tokens_per_second_at_memory_rate",
                "generation at memory's rate",
                tokens,
                of_ceilings_of_split(&|c| c.memory_bytes_per_second / work.token_bytes),
            ),
            (
                "generation_share_of_memory",
                "generation of memory",
                PERCENT,
                self.share(|run| new_tokens * work.token_bytes / run.generation, |c| c.memory_bytes_per_second),
            ),
            (
                "prompt_share_of_arithmetic",
                "prompt of arithmetic",
                PERCENT,
                // Each device of a split has a fastest arithmetic of its own.
                self.share(|run| 1.0 / run.prompt, |c| 1.0 / least_seconds(c)).filter(|_| !is_split),
            ),
        ]
        .into_iter()
        .filter_map(|(key, name, unit, spread)| Figure::new(key, name, unit, spread))
        .collect()
    }
}

pub(crate) fn report(args: &Args) -> Result<Report, Failure> {
    let tokens = [args.depth, args.prompt_tokens, args.new_tokens];
    let context = tokens.into_iter().fold(1, usize::saturating_add);
    // Repeats have the same prompt, and all of them compute it.
    // Prompts of a batch are timed as a whole: none is cut short for the answers of those that are done.
    let options = args.engine_options(context, args.batch).prefix_cache(false).max_step_time(Duration::MAX);
    // Unknown for GPUs whose driver does not report it, and for `auto` before it has chosen.
    let free_bytes = |device: &Device| device.free_bytes().ok().flatten();
    let free_before = free_bytes(&args.device);
    let started = Instant::now();
    let engine = load_at_depth(options.clone(), &args.model, args.depth, args.batch)?;
    let load_seconds = started.elapsed().as_secs_f64();
    converse(&engine, 1, 8, 1)?;
    let first_token_seconds = started.elapsed().as_secs_f64();
    // A warm-up run touches all buffers and is not measured. The peak is read before the meter allocates memory.
    run(&engine, args)?;
    let peak_resident_bytes = memory::peak_resident_bytes();
    let device = engine.device().unwrap_or(&args.device);
    let taken_device_bytes = free_before.zip(free_bytes(device)).map(|(before, after)| before.saturating_sub(after));

    let mut meter = match device {
        Device::Split(split) => split_meter(split, engine.plan(), &options)?,
        device => ceiling_meter(device, &options)?,
    };
    let slice = Duration::from_millis(600);
    let mut measured = Measured { runs: Vec::new(), ceilings: vec![meter.measure(slice)?] };
    for _ in 0..args.repeat() {
        measured.runs.push(run(&engine, args)?);
        measured.ceilings.push(meter.measure(slice)?);
    }
    let mut facts = args.facts(&engine);
    facts["load_seconds"] = json!(load_seconds);
    facts["first_token_seconds"] = json!(first_token_seconds);
    facts["peak_resident_bytes"] = json!(peak_resident_bytes);
    facts["planned_bytes"] = json!(engine.plan().total_bytes);
    facts["parts"] = json!(engine.plan().parts);
    facts["taken_device_bytes"] = json!(taken_device_bytes);
    let mut heading = args.heading(&engine);
    heading += &format!("\nload {load_seconds:.2} s, first token {first_token_seconds:.2} s after the start");
    for part in &engine.plan().parts {
        heading += &format!("\n{part}");
    }
    if let Some(peak) = peak_resident_bytes {
        heading += &format!("\npeak resident {:.1} MiB", peak as f64 / f64::from(1 << 20));
    }
    Ok(Report { facts, heading, figures: measured.figures(&engine, args) })
}
