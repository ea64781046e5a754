//! The model card's Python quickstart, line for line.
//!
//! ```text
//! cargo run --release --example quickstart -- path/to/Qwen2.5-32B-Instruct --device auto
//! ```
//!
//! Without a path it asks this repository's demo model something that a toy can answer.

use std::path::PathBuf;

use clap::Parser;
use qwen::{ChatInput, Device, Engine, GenerateOptions, Message};

mod demo;
mod failure;

/// The model card's Python quickstart.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    model_name: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
}

fn main() -> Result<(), failure::Failure> {
    // model_name = "Qwen/Qwen2.5-32B-Instruct"
    let Args { model_name, device } = Args::parse();
    let is_demo = model_name.is_none();
    let model_name = model_name.map_or_else(demo::path, Ok)?;

    // model = AutoModelForCausalLM.from_pretrained(model_name, torch_dtype="auto", device_map="auto")
    let model = Engine::options().device(device).load(&model_name)?;
    // tokenizer = AutoTokenizer.from_pretrained(model_name)
    let tokenizer = model.tokenizer()?;

    // prompt = "Give me a short introduction to large language model."
    let prompt = match is_demo {
        true => "What is the capital of Peru?",
        false => "Give me a short introduction to large language model.",
    };
    // messages = [{"role": "system", ...}, {"role": "user", "content": prompt}]
    let messages = [
        Message::system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        Message::user(prompt),
    ];
    // text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    // model_inputs = tokenizer([text], return_tensors="pt")
    let model_inputs = tokenizer.encode_chat(&ChatInput::new(&messages).add_generation_prompt(true))?;

    // generated_ids = model.generate(**model_inputs, max_new_tokens=512)
    let generated_ids = model
        .generate_ids(model_inputs.ids, &GenerateOptions::new().max_new_tokens(512))?
        .collect::<qwen::Result<Vec<u32>>>()?;

    // response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
    let response = tokenizer.decode(&generated_ids, true);
    println!("{response}");
    Ok(())
}
