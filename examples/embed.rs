//! Embeddings: which of several sentences are alike.
//!
//! ```text
//! cargo run --release --example embed -- --model path/to/jina-code-embeddings-0.5b "sort a list" "order an array" "read a file"
//! ```
//!
//! Without a model it uses this repository's demo model, whose vectors mean little, and without texts a few of its own.

use std::path::PathBuf;

use clap::Parser;
use qwen::{Device, EmbedOptions, Engine, Pooling};

mod demo;
mod failure;

/// Embed texts, and print the cosine of each pair.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Which hidden states: last or mean; the checkpoint's own pooling when absent.
    #[arg(long)]
    pooling: Option<Pooling>,
    /// Append the end-of-sequence token to each text.
    #[arg(long)]
    append_eos: bool,
    /// The texts.
    texts: Vec<String>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine = Engine::options().device(args.device).context_at_most(4096).batch(2).load(model)?;
    let texts = match args.texts.is_empty() {
        true => ["A cat sleeps.", "A dog sleeps.", "What is 3 + 4?"].map(String::from).to_vec(),
        false => args.texts,
    };
    let mut options = EmbedOptions::new().append_eos(args.append_eos);
    options.pooling = args.pooling;
    let found = engine.embed(&texts, &options)?;
    for (row, (text, embedding)) in texts.iter().zip(&found).enumerate() {
        println!("{row}: {text:?}, {} tokens, {} values", embedding.num_tokens, embedding.values.len());
    }
    for (a, first) in found.iter().enumerate() {
        for (b, second) in found.iter().enumerate().skip(a + 1) {
            let cosine: f32 = first.values.iter().zip(&second.values).map(|(x, y)| x * y).sum();
            println!("{a} and {b}: {cosine:.3}");
        }
    }
    Ok(())
}
