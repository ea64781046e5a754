//! How fast a model runs, and how much of what the device could do that is.
//!
//! ```text
//! cargo run --release --example bench -- --model PATH --prompt-tokens 512 --new-tokens 64 --repeat 5
//! ```
//!
//! The device's ceilings are measured between the repeats, since a shared machine's bandwidth drifts within minutes. A
//! throughput counts work that was done: the work of a prompt is two operations for each weight outside of the
//! embedding and each token, and attention; the bytes of a generated token are the weights and the K/V that are read.
//! Every figure is the median of the repeats, with the smallest and the largest.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use qwen::{CeilingMeter, Config, Device, Encoding, Engine, EngineOptions, GenerateOptions, Precision, memory};
use serde_json::json;

/// How fast a model runs.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// Conversations at the same time.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Positions that are in the context before the prompt.
    #[arg(long, default_value_t = 0)]
    depth: usize,
    /// Threads; one for each physical core when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// How many times.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// exact or fast.
    #[arg(long, default_value = "fast")]
    precision: Precision,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What the work of a step counts.
struct Work {
    /// Floating point operations of the prompt.
    prompt_flops: f64,
    /// Bytes that generating one token reads, averaged over the answer.
    token_bytes: f64,
}

impl Work {
    fn new(args: &Args, config: &Config, kv: Encoding, weight_bytes: f64) -> Self {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let layer = config.hidden_size * (2 * q_size + 2 * kv_size + 3 * config.intermediate_size);
        let weights = (config.num_hidden_layers * layer) as f64;
        let (tokens, depth, batch) = (args.prompt_tokens as f64, args.depth as f64, args.batch as f64);
        // A token at position p has p + 1 scores of `q_size` products each, and as many for the values.
        let positions = tokens * depth + tokens * (tokens + 1.0) / 2.0;
        let attention = 4.0 * positions * (q_size * config.num_hidden_layers) as f64;
        let context = depth + tokens + args.new_tokens as f64 / 2.0;
        let kv_bytes = context * (2 * kv_size * config.num_hidden_layers * kv.bytes(1)) as f64;
        Work {
            prompt_flops: batch * (2.0 * weights * tokens + attention),
            // A batch reads the weights once for all.
            token_bytes: weight_bytes / batch + kv_bytes,
        }
    }
}

/// The smallest, the median and the largest of some figures.
#[derive(Clone, Copy)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

fn spread(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    Some(Spread { min: *figures.first()?, median: figures[figures.len() / 2], max: *figures.last()? })
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

/// Run the conversations side by side. The engine stamps each token, so a slow reader falsifies nothing.
fn converse(engine: &Engine, args: &Args, tokens: usize, new: usize) -> qwen::Result<Run> {
    let options = GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(new);
    let streams = (0..args.batch)
        .map(|n| engine.generate_ids(prompt(tokens, n, engine.config().vocab_size), &options))
        .collect::<qwen::Result<Vec<_>>>()?;
    let (mut first, mut last) = (0.0_f64, 0.0_f64);
    for mut stream in streams {
        stream.try_for_each(|token| token.map(drop))?;
        let stats = stream.stats();
        let answered = stats.first_token.unwrap_or_default();
        first = first.max(answered.as_secs_f64());
        last = last.max((answered + stats.generation).as_secs_f64());
    }
    Ok(Run { prompt: first, generation: last - first })
}

fn run(engine: &Engine, args: &Args) -> qwen::Result<Run> {
    let before = match args.depth {
        0 => 0.0,
        depth => converse(engine, args, depth, 1)?.prompt,
    };
    let whole = converse(engine, args, args.depth + args.prompt_tokens, args.new_tokens)?;
    Ok(Run { prompt: whole.prompt - before, ..whole })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let context = args.depth + args.prompt_tokens + args.new_tokens + 1;
    let mut options = EngineOptions::new()
        .device(args.device.clone())
        .precision(args.precision)
        .batch(args.batch)
        .context(context.max(64));
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    // Unknown for GPUs that do not say, and while `auto` has not chosen.
    let free_bytes = |device: &Device| device.free_bytes().ok().flatten();
    let free_before = free_bytes(&args.device);
    let started = Instant::now();
    let engine = options.load(&args.model)?;
    let load_seconds = started.elapsed().as_secs_f64();
    converse(&engine, &Args { batch: 1, ..Args::parse() }, 8, 1)?;
    let first_token_seconds = started.elapsed().as_secs_f64();
    // Once unmeasured: buffers are touched for the first time. The meter's own memory comes after the peak is read.
    run(&engine, &args)?;
    let peak = memory::peak_resident_bytes();
    let placed_on = engine.placed_on().unwrap_or(&args.device);
    let taken = free_before.zip(free_bytes(placed_on)).map(|(before, after)| before.saturating_sub(after));

    let mut meter = CeilingMeter::new(placed_on, args.threads)?;
    let slice = Duration::from_millis(600);
    let (mut runs, mut ceilings) = (Vec::new(), vec![meter.measure(slice)?]);
    for _ in 0..args.repeat.max(1) {
        runs.push(run(&engine, &args)?);
        ceilings.push(meter.measure(slice)?);
    }

    let config = engine.config();
    let stored = engine.weight_encoding();
    // Dot products of bf16 would do for these weights; where f32 is as fast, it is the ceiling.
    let bf16_dots = stored == Encoding::Bf16 && args.precision == Precision::Fast;
    let work = Work::new(&args, config, args.precision.kv_encoding(), engine.plan().read_bytes as f64);
    let (prompt_tokens, new_tokens) = (args.batch * args.prompt_tokens, args.batch * (args.new_tokens - 1));
    let prompt_speed = spread(runs.iter().map(|run| prompt_tokens as f64 / run.prompt));
    let generation_speed = spread(runs.iter().map(|run| new_tokens as f64 / run.generation));
    let memory_speed = spread(ceilings.iter().map(|c| c.memory_bytes_per_second));
    let f32_speed = spread(ceilings.iter().map(|c| c.f32_flops_per_second));
    let copy_speed = spread(ceilings.iter().filter_map(|c| c.copy_bytes_per_second));
    let f16_speed = spread(ceilings.iter().filter_map(|c| c.f16_flops_per_second));
    let bf16_speed = spread(ceilings.iter().filter_map(|c| c.bf16_flops_per_second));
    let int8_speed = spread(ceilings.iter().filter_map(|c| c.int8_ops_per_second));
    // Each run against the faster of the measurements before and after it.
    let around = |n: usize, figure: fn(&qwen::Ceilings) -> Option<f64>| {
        figure(&ceilings[n]).unwrap_or(0.0).max(figure(&ceilings[n + 1]).unwrap_or(0.0))
    };
    let memory_share = spread(runs.iter().enumerate().map(|(n, run)| {
        new_tokens as f64 / run.generation * work.token_bytes / around(n, |c| Some(c.memory_bytes_per_second))
    }));
    let arithmetic_share = spread(runs.iter().enumerate().map(|(n, run)| {
        let f32_ceiling = around(n, |c| Some(c.f32_flops_per_second));
        let ceiling = if bf16_dots { f32_ceiling.max(around(n, |c| c.bf16_flops_per_second)) } else { f32_ceiling };
        work.prompt_flops / run.prompt / ceiling
    }));
    if args.json {
        let median = |figure: Option<Spread>| figure.map(|figure| figure.median);
        let object = json!({
            "model": args.model,
            "device": engine.device(),
            "device_reason": engine.device_reason(),
            "precision": format!("{:?}", args.precision).to_lowercase(),
            "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens,
            "batch": args.batch,
            "depth": args.depth,
            "repeat": runs.len(),
            "load_seconds": load_seconds,
            "first_token_seconds": first_token_seconds,
            "peak_resident_bytes": peak,
            "planned_bytes": engine.plan().total_bytes,
            "taken_device_bytes": taken,
            "prompt_tokens_per_second": median(prompt_speed),
            "generation_tokens_per_second": median(generation_speed),
            "memory_bytes_per_second": median(memory_speed),
            "f32_flops_per_second": median(f32_speed),
            "copy_bytes_per_second": median(copy_speed),
            "f16_flops_per_second": median(f16_speed),
            "bf16_flops_per_second": median(bf16_speed),
            "int8_ops_per_second": median(int8_speed),
            "generation_share_of_memory": median(memory_share),
            "prompt_share_of_arithmetic": median(arithmetic_share),
            "spread": {
                "prompt_tokens_per_second": prompt_speed.map(|s| [s.min, s.max]),
                "generation_tokens_per_second": generation_speed.map(|s| [s.min, s.max]),
                "memory_bytes_per_second": memory_speed.map(|s| [s.min, s.max]),
                "generation_share_of_memory": memory_share.map(|s| [s.min, s.max]),
                "prompt_share_of_arithmetic": arithmetic_share.map(|s| [s.min, s.max]),
            },
        });
        println!("{}", serde_json::to_string_pretty(&object)?);
        return Ok(());
    }
    println!("{} on {}, {:?}", args.model.display(), engine.device(), args.precision);
    println!("load {load_seconds:.2} s, first token {first_token_seconds:.2} s after the start");
    if let Some(peak) = peak {
        println!("peak resident {:.1} MiB", peak as f64 / f64::from(1 << 20));
    }
    let line = |name: &str, figure: Option<Spread>, scale: f64, unit: &str| {
        if let Some(Spread { min, median, max }) = figure {
            println!("{name:<26} {:9.2} {unit}  [{:.2} to {:.2}]", median / scale, min / scale, max / scale);
        }
    };
    line("prompt", prompt_speed, 1.0, "tokens/s");
    line("generation", generation_speed, 1.0, "tokens/s");
    line("memory", memory_speed, 1e9, "GB/s");
    line("copying", copy_speed, 1e9, "GB/s");
    line("f32 multiply-add", f32_speed, 1e9, "Gflop/s");
    line("f16 multiply-add", f16_speed, 1e9, "Gflop/s");
    line("bf16 dot", bf16_speed, 1e9, "Gflop/s");
    line("int8 dot", int8_speed, 1e9, "Gop/s");
    line("generation of memory", memory_share, 0.01, "%");
    line("prompt of arithmetic", arithmetic_share, 0.01, "%");
    Ok(())
}
