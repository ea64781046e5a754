//! How well a model predicts a text, and how far it is from another model: what a block format costs.
//!
//! ```text
//! cargo run --release --example perplexity -- --model small.gguf --text text.txt --base path/to/Qwen2.5-1.5B
//! ```
//!
//! The text is cut into windows. In each, the tokens of the second half are predicted, each from all tokens before it
//! in the window, as llama.cpp's `llama-perplexity` does. Perplexity is the exponential of the mean negative
//! log-likelihood; against `--base`, usually the same model in 16 bits, the divergence is the mean of KL(base ||
//! model), and top-1 the share of positions where both models rank the same token first.

use std::path::{Path, PathBuf};

use clap::Parser;
use qwen::{Device, Engine, EngineOptions, PerplexityOptions, Precision};
use serde_json::json;

mod failure;
mod output;

/// How well a model predicts a text, and how far it is from another.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// The text.
    #[arg(long)]
    text: PathBuf,
    /// A model with the same vocabulary to compare with.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Tokens of a window.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    window: u32,
    /// The most windows; all when absent.
    #[arg(long)]
    windows: Option<usize>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// exact or fast, of the model; the base is exact.
    #[arg(long, default_value = "fast")]
    precision: Precision,
    /// Threads; one for each physical core when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn load(&self, model: &Path, precision: Precision) -> qwen::Result<Engine> {
        let options =
            EngineOptions::new().device(self.device.clone()).precision(precision).context(self.window as usize);
        match self.threads {
            Some(threads) => options.threads(threads).load(model),
            None => options.load(model),
        }
    }
}

/// What a model's distributions are beside those of another.
#[derive(Default)]
struct Comparison {
    positions: usize,
    divergence: f64,
    same: usize,
}

impl Comparison {
    /// Add the positions whose next tokens are the second half of `window`.
    fn add(&mut self, window: &[u32], model: &Engine, base: &Engine) -> qwen::Result<()> {
        let rows = model.logits_rows(window)?.zip(base.logits_rows(window)?).take(window.len() - 1);
        for (row, base_row) in rows.skip(window.len() / 2) {
            let (row, base_row) = (log_softmax(&row?), log_softmax(&base_row?));
            self.positions += 1;
            self.divergence += base_row.iter().zip(&row).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            self.same += usize::from(most_likely(&base_row) == most_likely(&row));
        }
        Ok(())
    }
}

/// Log-probabilities of a row of logits.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = row.iter().map(|logit| (f64::from(*logit) - max).exp()).sum::<f64>().ln();
    row.iter().map(|logit| f64::from(*logit) - max - log_sum).collect()
}

fn most_likely(row: &[f64]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let text = std::fs::read_to_string(&args.text).map_err(|error| format!("{}: {error}", args.text.display()))?;
    let model = args.load(&args.model, args.precision)?;
    let base = args.base.as_ref().map(|base| args.load(base, Precision::Exact)).transpose()?;
    let mut ids = model.tokenizer()?.encode(&text, false)?;
    if let Some(base) = &base
        && (base.tokenizer()?.encode(&text, false)? != ids || base.config().vocab_size != model.config().vocab_size)
    {
        return Err("the base has another vocabulary".into());
    }
    let window = args.window as usize;
    let windows = (ids.len() / window).min(args.windows.unwrap_or(usize::MAX));
    if windows == 0 {
        return Err(format!("the text has {} tokens, and a window takes {window}", ids.len()).into());
    }
    ids.truncate(windows * window);
    let options = PerplexityOptions::new().window(window).stride(window).min_context(window / 2 + 1);
    let found = model.perplexity_ids(&ids, &options)?;
    let (perplexity, error) = (found.perplexity(), found.standard_error());
    let mut figures = json!({"positions": found.tokens, "perplexity": perplexity, "perplexity_error": error});
    let mut lines = format!("perplexity  {perplexity:.4} +/- {error:.4} over {} tokens", found.tokens);
    if let Some(base) = &base {
        let mut beside = Comparison::default();
        ids.chunks(window).try_for_each(|window| beside.add(window, &model, base))?;
        let n = beside.positions as f64;
        let (divergence, same) = (beside.divergence / n, beside.same as f64 / n);
        figures["divergence"] = divergence.into();
        figures["top_1"] = same.into();
        lines +=
            &format!("\ndivergence  {divergence:.6} nats from the base\ntop-1       {:.2} % the same", 100.0 * same);
    }
    Ok(if args.json { output::print(figures) } else { output::print(lines) }?)
}
