//! The devices of this machine, how a model fits on each, and why other devices are missing.
//!
//! ```text
//! cargo run --release --features wgpu --example devices -- --model PATH --context 8192
//! cargo run --release --features wgpu --example devices -- --json
//! ```

use std::fmt::Write;
use std::path::PathBuf;

use clap::Parser;
use qwen::{DeviceEntry, EngineOptions, HumanBytes, Precision};
use serde_json::{Value, json};

mod failure;
mod output;

/// The devices of this machine, and how a model fits on each.
#[derive(Parser)]
struct Args {
    /// The folder of a checkpoint, or a GGUF file, to plan for each device.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Positions of a conversation; the longest that fits when absent.
    #[arg(long)]
    context: Option<usize>,
    /// Conversations that have their whole context at the same time.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Compute with f32 activations and K/V.
    #[arg(long)]
    exact: bool,
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn options(&self, entry: &DeviceEntry) -> EngineOptions {
        let mut options = EngineOptions::new().device(entry.device.clone()).batch(self.batch);
        if self.exact {
            options = options.precision(Precision::Exact);
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        options
    }
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let devices = qwen::devices();
    if args.json {
        output::print(serde_json::to_string_pretty(&list(&devices, &args)?)?)?;
    } else {
        output::print(table(&devices, &args)?.trim_end())?;
    }
    Ok(())
}

fn list(devices: &[DeviceEntry], args: &Args) -> serde_json::Result<Vec<Value>> {
    let entry = |entry: &DeviceEntry| {
        let mut object = serde_json::to_value(entry)?;
        if let Some(model) = &args.model {
            match qwen::plan(model, &args.options(entry)) {
                Ok(plan) => object["plan"] = json!(plan),
                Err(error) => object["error"] = json!(error.to_string()),
            }
        }
        Ok(object)
    };
    devices.iter().map(entry).collect()
}

fn table(devices: &[DeviceEntry], args: &Args) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for entry in devices {
        writeln!(out, "{}  {} ({})", entry.device, entry.name, entry.kind)?;
        if let Some(driver) = &entry.driver {
            writeln!(out, "    driver    {driver}")?;
        }
        writeln!(
            out,
            "    memory    {}",
            entry.memory_bytes.map_or("unknown".into(), |bytes| HumanBytes(bytes).to_string())
        )?;
        for (name, limit) in &entry.limits {
            match name.strip_suffix("_bytes") {
                Some(name) => writeln!(out, "    limit     {name} {}", HumanBytes(*limit))?,
                None => writeln!(out, "    limit     {name} {limit}")?,
            }
        }
        writeln!(out, "    features  {}", entry.features.join(", "))?;
        let Some(model) = &args.model else { continue };
        match qwen::plan(model, &args.options(entry)) {
            Ok(plan) => {
                writeln!(out, "    model     {plan}")?;
                if let Err(error) = plan.check() {
                    writeln!(out, "    fits      no: {error}")?;
                }
            }
            Err(error) => writeln!(out, "    model     {error}")?,
        }
    }
    for (device, reason) in qwen::absent_devices() {
        writeln!(out, "{device}  absent: {reason}")?;
    }
    Ok(out)
}
