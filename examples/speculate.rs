//! An answer with and without speculation: the same tokens, sooner. The next tokens are guessed by the prompt, parts of
//! which the answer may repeat, or by a small model.
//!
//! ```text
//! cargo run --release --example speculate -- --model path/to/Qwen2.5-7B-Instruct --prompt "Rename x to count: ..."
//! cargo run --release --example speculate -- --model path/to/Qwen2.5-7B-Instruct --draft path/to/Qwen2.5-0.5B-Instruct
//! ```
//!
//! Without a model, this repository's demo model continues a text that repeats itself.

use std::path::PathBuf;

use clap::Parser;
use qwen::{Device, Engine, GenerateOptions, Speculation, TokenStream};

mod demo;
mod failure;

/// An answer with and without speculation.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A small model of the same family, which guesses; by default the prompt does.
    #[arg(long)]
    draft: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// The text that is continued.
    #[arg(long)]
    prompt: Option<String>,
    /// The maximum number of tokens of the answer.
    #[arg(long, default_value_t = 120)]
    max_new_tokens: usize,
}

/// Read the answer, and print how fast it came.
fn read(name: &str, mut stream: TokenStream) -> qwen::Result<Vec<u32>> {
    let ids = stream.by_ref().collect::<qwen::Result<_>>()?;
    println!("{name:<18} {:8.1} tokens/s", stream.stats().tokens_per_second().unwrap_or_default());
    Ok(ids)
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let mut options = Engine::options().device(args.device).context_at_most(4096);
    let speculation = if args.draft.is_some() { Speculation::Draft } else { Speculation::PromptLookup };
    if let Some(draft) = args.draft {
        options = options.draft(draft);
    }
    let engine = options.load(model)?;
    let prompt = args.prompt.unwrap_or_else(|| "A young duck is called a duckling. ".repeat(4));
    let ids = engine.tokenizer()?.encode(&prompt, false)?;

    let plain = GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(args.max_new_tokens);
    let guessing = plain.clone().speculation(speculation);
    // Computes the prompt, whose K/V the others find.
    engine.generate_ids(ids.as_slice(), &plain)?.next().transpose()?;
    let one_by_one = read("one at a time", engine.generate_ids(ids.as_slice(), &plain)?)?;
    let before = engine.stats();
    let guessed = read("with speculation", engine.generate_ids(ids.as_slice(), &guessing)?)?;
    let after = engine.stats();

    println!("{}", engine.tokenizer()?.decode(&guessed, false));
    let drafted = after.drafted_tokens - before.drafted_tokens;
    println!("{drafted} tokens were guessed, {} of them right", after.accepted_tokens - before.accepted_tokens);
    if one_by_one != guessed {
        return Err("the answers differ".into());
    }
    println!("the answers are equal");
    Ok(())
}
