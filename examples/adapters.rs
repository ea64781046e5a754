//! One question to a model without an adapter and with each of several, all in the same steps.
//!
//! ```text
//! cargo run --release --example adapters -- --model path/to/Qwen2.5-0.5B-Instruct adapters/poet adapters/lawyer
//! ```
//!
//! An adapter is a folder as PEFT saves it. Without a model this uses the repository's demo model.

use std::path::PathBuf;

use clap::Parser;
use qwen::{Device, Engine, GenerateOptions};

mod demo;
mod failure;

/// Ask a model something, without an adapter and with each of several.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// The question.
    #[arg(long, default_value = "What is 3 + 4?")]
    prompt: String,
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 200)]
    max_new_tokens: usize,
    /// Folders of adapters.
    adapters: Vec<PathBuf>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine =
        Engine::options().device(args.device).context_at_most(4096).batch(args.adapters.len() + 1).load(model)?;
    for adapter in &args.adapters {
        eprintln!("loaded {:?}", engine.load_adapter(adapter)?);
    }
    let options = GenerateOptions::new().greedy().max_new_tokens(args.max_new_tokens);
    // All questions are sent before the first answer is read: they run together.
    let mut replies = vec![("no adapter".to_owned(), engine.chat().options(options.clone()).send(&args.prompt)?)];
    for adapter in engine.adapters() {
        let mut chat = engine.chat().options(options.clone().adapter(&adapter));
        replies.push((adapter.name().to_owned(), chat.send(&args.prompt)?));
    }
    for (name, reply) in replies {
        println!("-- {name}\n{}", reply.text()?);
    }
    Ok(())
}
