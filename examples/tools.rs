//! Functions of this program as tools: the model calls them, and answers with what they return.
//!
//! ```text
//! cargo run --release --features tools --example tools -- --model path/to/Qwen2.5-7B-Instruct "Which time is it in Oslo?"
//! ```
//!
//! Without a model it asks this repository's demo model.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use qwen::schemars::{self, JsonSchema};
use qwen::{Device, Engine, GenerateOptions, Role, Toolbox};
use serde::Deserialize;

mod demo;
mod failure;

/// Let a model call functions of this program.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// What to ask.
    #[arg(default_value = "Which time is it now in Cairo?")]
    question: String,
}

#[derive(Deserialize, JsonSchema)]
struct Place {
    /// The name of a city, in English.
    city: String,
}

/// The local time of a few cities, without summer time.
fn time_in(place: Place) -> Result<String, String> {
    let zones = [("London", 0), ("Oslo", 1), ("Cairo", 2), ("Delhi", 5), ("Tokyo", 9)];
    let zone = zones.into_iter().find(|(city, _)| *city == place.city);
    let (_, hours) = zone.ok_or_else(|| format!("unknown city {}", place.city))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    let minutes = now.as_secs() / 60 + hours * 60;
    Ok(format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60))
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine = Engine::options().device(args.device).context_at_most(4096).load(model)?;
    let tools = Toolbox::new().function("get_time", "Current local time of a city", time_in);
    let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    chat.send_with_tools(args.question, &tools)?;
    for message in chat.messages() {
        for call in &message.tool_calls {
            println!("[calls {} {}]", call.function.name, call.function.arguments.as_str());
        }
        match (&message.role, message.text()) {
            (Role::Tool, Some(result)) => println!("[returns {result}]"),
            (_, Some(text)) => println!("{text}"),
            (_, None) => {}
        }
    }
    Ok(())
}
