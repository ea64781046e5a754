//! Answers of a fixed form: JSON of a Rust type, of a schema in a file, or a text that a pattern or a grammar allows.
//!
//! ```text
//! cargo run --release --features structure --example structure -- --model path/to/Qwen2.5-7B-Instruct \
//!     --schema person.json "Anna is 31 years old and lives in Oslo."
//! ```
//!
//! Without a model it asks this repository's demo model.

use std::fs;
use std::path::PathBuf;

use clap::Parser;
use qwen::schemars::{self, JsonSchema};
use qwen::{Device, Engine, GenerateOptions, Grammar};
use serde::{Deserialize, Serialize};

mod demo;
mod failure;

/// Get an answer of a fixed form.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// A file with the JSON schema of the answer.
    #[arg(long, conflicts_with_all = ["regex", "lark"])]
    schema: Option<PathBuf>,
    /// The regular expression that the answer matches.
    #[arg(long, conflicts_with = "lark")]
    regex: Option<String>,
    /// A file with the grammar of the answer, in Lark.
    #[arg(long)]
    lark: Option<PathBuf>,
    /// What to ask.
    #[arg(default_value = "Turn this into JSON: Anna is 31 years old and lives in Oslo.")]
    question: String,
}

/// What the answer is when no other form is asked for.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Person {
    name: String,
    age: u8,
    city: Option<String>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine = Engine::options().device(args.device).context_at_most(4096).load(model)?;
    let options = GenerateOptions::new().greedy().max_new_tokens(500);
    let grammar = match (args.schema, args.regex, args.lark) {
        (Some(file), ..) => {
            let schema: serde_json::Value = serde_json::from_str(&fs::read_to_string(file)?)?;
            Grammar::json_schema(schema)
        }
        (_, Some(pattern), _) => Grammar::regex(&pattern),
        (_, _, Some(file)) => Grammar::lark(&fs::read_to_string(file)?),
        _ => {
            let person: Person = engine.chat().options(options).send_as(args.question)?;
            println!("{person:?}");
            return Ok(());
        }
    };
    let mut chat = engine.chat().options(options.grammar(grammar));
    for piece in chat.send(args.question)? {
        print!("{}", piece?);
    }
    println!();
    Ok(())
}
