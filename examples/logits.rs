//! The logits of prompts and their greedy continuations, as a safetensors file.
//!
//! ```text
//! cargo run --release --example logits -- --model PATH --ids 1,2,3 --prompt "Hello" --new 8 --out FILE.safetensors
//! ```
//!
//! For prompt `n`: `prompt.n` i64 `[T]`, `logits.n` f32 `[T, vocab_size]`, `greedy.n` i64 `[N]`.

use std::path::PathBuf;

use clap::Parser;
use qwen::{Device, EngineOptions, GenerateOptions, Precision};
use safetensors::tensor::{Dtype, TensorView};

mod failure;

/// The logits of prompts and their greedy continuations.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// A prompt of token ids, separated by commas. May be repeated.
    #[arg(long)]
    ids: Vec<String>,
    /// A prompt of text, encoded with control tokens. May be repeated; follows all `--ids`.
    #[arg(long)]
    prompt: Vec<String>,
    /// Tokens of the greedy continuation.
    #[arg(long, default_value_t = 0)]
    new: usize,
    /// exact or fast.
    #[arg(long, default_value = "fast")]
    precision: Precision,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Positions of the context.
    #[arg(long)]
    context: Option<usize>,
    /// Threads; one for each physical core when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let mut options =
        EngineOptions::new().device(args.device.clone()).precision(args.precision).allow_padding_tokens(true);
    if let Some(context) = args.context {
        options = options.context(context);
    }
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    let engine = options.load(&args.model)?;
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for list in &args.ids {
        prompts.push(list.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>()?);
    }
    for text in &args.prompt {
        prompts.push(engine.tokenizer()?.encode(text, true)?);
    }
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let integers = |ids: &[u32]| ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect::<Vec<u8>>();
    for (n, prompt) in prompts.iter().enumerate() {
        let logits = engine.logits(prompt)?;
        let bytes = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let shape = vec![prompt.len(), engine.config().vocab_size];
        tensors.push((format!("prompt.{n}"), Dtype::I64, vec![prompt.len()], integers(prompt)));
        tensors.push((format!("logits.{n}"), Dtype::F32, shape, bytes));
        if args.new > 0 {
            let greedy = GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(args.new);
            let ids = engine.generate_ids(prompt.as_slice(), &greedy)?.collect::<qwen::Result<Vec<u32>>>()?;
            tensors.push((format!("greedy.{n}"), Dtype::I64, vec![ids.len()], integers(&ids)));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &args.out)?;
    Ok(())
}
