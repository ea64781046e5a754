//! The model card's quickstart with a list of prompts: all answers in one call, in order.
//!
//! ```text
//! cargo run --release --example batch -- --model path/to/Qwen2.5-7B-Instruct "Name a river." "Name a mountain."
//! ```
//!
//! Without a model it asks this repository's demo model, and without prompts something that a toy can answer.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use qwen::{Device, Engine, GenerateOptions, Message};

mod demo;
mod failure;

/// The model card's quickstart with a list of prompts.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// How many conversations of the whole context K/V memory is planned for.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// The maximum number of tokens of each answer.
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// The prompts.
    prompts: Vec<String>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine = Engine::options().device(args.device).context_at_most(4096).batch(args.batch).load(model)?;
    let prompts = match args.prompts.is_empty() {
        true => ["What is the capital of Peru?", "What is 3 + 4?", "Hello!"].map(String::from).into(),
        false => args.prompts,
    };
    // messages = [[{"role": "system", ...}, {"role": "user", "content": prompt}] for prompt in prompts]
    let system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    let conversations = prompts.iter().map(|prompt| [Message::system(system), Message::user(prompt)]);
    let started = Instant::now();
    let answers = engine.chat_batch(conversations, &GenerateOptions::new().max_new_tokens(args.max_new_tokens));
    let (mut tokens, mut failed) = (0, 0);
    for (prompt, answer) in prompts.iter().zip(answers) {
        match answer {
            Ok(answer) => {
                println!("> {prompt}\n{}\n", answer.text);
                tokens += answer.stats.new_tokens;
            }
            // The others have their answers.
            Err(error) => {
                println!("> {prompt}\nerror: {error}\n");
                failed += 1;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} prompts, {failed} of them failed; {tokens} new tokens in {seconds:.2} s", prompts.len());
    Ok(())
}
