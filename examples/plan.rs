//! How much memory a model takes, before it is loaded.
//!
//! ```text
//! cargo run --release --example plan -- --model PATH --context 8192 --batch 4
//! ```
//!
//! The exit status is 0 when the model fits and 1 when it does not.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use qwen::{Device, Encoding, EngineOptions, HumanBytes, Plan, Precision};

mod failure;
mod output;

/// How much memory a model takes, before it is loaded.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// A draft model beside it.
    #[arg(long)]
    draft: Option<PathBuf>,
    /// Positions of a conversation; the longest that fits when absent.
    #[arg(long)]
    context: Option<usize>,
    /// Conversations that have their whole context at the same time.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Compute with f32 activations and K/V.
    #[arg(long)]
    exact: bool,
    /// How K/V is stored: f32, f16 or q8_0; by default f32 in exact and f16 in fast.
    #[arg(long)]
    kv: Option<Encoding>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode, failure::Failure> {
    let args = Args::parse();
    let mut options = EngineOptions::new().device(args.device.clone()).batch(args.batch);
    if args.exact {
        options = options.precision(Precision::Exact);
    }
    if let Some(encoding) = args.kv {
        options = options.kv_encoding(encoding);
    }
    if let Some(draft) = &args.draft {
        options = options.draft(draft);
    }
    if let Some(context) = args.context {
        options = options.context(context);
    }
    let plan = qwen::plan(&args.model, &options)?;
    if args.json {
        output::print(serde_json::to_string_pretty(&plan)?)?;
    } else {
        output::print(table(&plan)?)?;
    }
    Ok(if plan.fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(plan: &Plan) -> Result<String, std::fmt::Error> {
    let size = |bytes: u64| format!("{:>10}", HumanBytes(bytes));
    let mut out = String::new();
    writeln!(out, "weights      {}", size(plan.weight_bytes))?;
    writeln!(out, "K/V          {}  for {} x {} positions", size(plan.kv_bytes), plan.batch, plan.context)?;
    writeln!(out, "activations  {}", size(plan.activation_bytes))?;
    writeln!(out, "loading      {}  at most, before K/V and activations", size(plan.load_bytes))?;
    if let Some(draft) = &plan.draft {
        writeln!(out, "draft model  {}  weights", size(draft.weight_bytes))?;
        writeln!(out, "             {}  K/V", size(draft.kv_bytes))?;
        writeln!(out, "             {}  activations", size(draft.activation_bytes))?;
    }
    for part in &plan.parts {
        writeln!(out, "of these     {part}")?;
    }
    writeln!(out, "total        {}", size(plan.total_bytes))?;
    if let Some(available) = plan.available_bytes {
        writeln!(out, "available    {}", size(available))?;
    }
    match plan.check() {
        Ok(()) => write!(out, "it fits")?,
        Err(error) => write!(out, "it does not fit: {error}")?,
    }
    Ok(out)
}
