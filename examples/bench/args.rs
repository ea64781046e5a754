//! The options of the program, and those of its engines.

use std::path::PathBuf;

use clap::Parser;
use qwen::{CapabilitySet, Device, Encoding, Engine, EngineOptions, Precision, Speculation};
use serde_json::{Value, json};

/// How fast a model runs.
#[derive(Parser)]
pub(crate) struct Args {
    /// The folder of the checkpoint, or a GGUF file.
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// Conversations at the same time. For --requests the number of the longest ones that K/V memory is there for.
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Positions of context before the prompt, rounded down to whole K/V blocks. They are filled, not computed.
    #[arg(long, default_value_t = 0)]
    pub(crate) depth: usize,
    /// This many requests of many users: at once, or with --rate one after the other.
    #[arg(long, value_name = "N", group = "mode")]
    requests: Option<usize>,
    /// Requests arrive as a Poisson process with this many a second.
    #[arg(long, value_name = "PER_SECOND", requires = "requests", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Lengths of the prompts and answers of --requests are uniform within this share of their mean.
    #[arg(long, default_value_t = 0.5, value_name = "SHARE", value_parser = share)]
    pub(crate) vary: f64,
    /// The prompts of --requests have this many first tokens in common.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub(crate) shared_tokens: usize,
    /// A conversation of this many turns, the last of which has a history of --prompt-tokens.
    #[arg(long, value_name = "N", group = "mode")]
    turns: Option<usize>,
    /// New tokens of the last turn of --turns, and of the short request of --neighbour.
    #[arg(long, default_value_t = 32)]
    pub(crate) short_tokens: usize,
    /// A short request that arrives while a prompt of --prompt-tokens is computed.
    #[arg(long, group = "mode")]
    neighbour: bool,
    /// Answers with and without speculation: by prompt_lookup, to edit a text of --prompt-tokens and to write a new one,
    /// or by a draft model.
    #[arg(
        long,
        group = "mode",
        value_name = "KIND",
        num_args = 0..=1,
        default_missing_value = "prompt_lookup",
        value_parser = speculation
    )]
    speculate: Option<Speculation>,
    /// The draft model of --speculate draft.
    #[arg(long, value_name = "PATH", requires = "speculate")]
    pub(crate) draft: Option<PathBuf>,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Stretch the context by this factor (YaRN).
    #[arg(long)]
    yarn: Option<f64>,
    /// Threads; one for each physical core when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Number of measured runs.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: Device,
    /// exact or fast.
    #[arg(long, default_value = "fast")]
    pub(crate) precision: Precision,
    /// How K/V is stored: f32, f16 or q8_0; by default f32 in exact and f16 in fast.
    #[arg(long)]
    kv: Option<Encoding>,
    /// Which features of a GPU wgpu uses: default, or best, which includes those that wgpu calls experimental.
    #[arg(long, default_value_t)]
    wgpu_capabilities: CapabilitySet,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or("has to be above 0".into())
}

fn speculation(text: &str) -> Result<Speculation, String> {
    match text {
        "prompt_lookup" => Ok(Speculation::PromptLookup),
        "draft" => Ok(Speculation::Draft),
        _ => Err("has to be prompt_lookup or draft".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value)).ok_or("has to be from 0 to 1".into())
}

/// What is measured.
pub(crate) enum Mode {
    Throughput,
    Requests(usize),
    Turns(usize),
    Neighbour,
    Speculate(Speculation),
}

impl Args {
    pub(crate) fn mode(&self) -> Mode {
        match (self.requests, self.turns, self.neighbour, self.speculate) {
            (Some(count), ..) => Mode::Requests(count.max(1)),
            (_, Some(count), ..) => Mode::Turns(count.max(2)),
            (_, _, true, _) => Mode::Neighbour,
            (_, _, _, Some(speculation)) => Mode::Speculate(speculation),
            _ => Mode::Throughput,
        }
    }

    pub(crate) fn repeat(&self) -> usize {
        self.repeat.max(1)
    }

    pub(crate) fn kv_encoding(&self) -> Encoding {
        self.kv.unwrap_or(self.precision.kv_encoding())
    }

    /// An engine for `batch` conversations of `context` positions.
    pub(crate) fn engine_options(&self, context: usize, batch: usize) -> EngineOptions {
        let mut options = EngineOptions::new()
            .device(self.device.clone())
            .precision(self.precision)
            .batch(batch)
            .wgpu_capabilities(self.wgpu_capabilities)
            .context(context.max(64));
        if let Some(encoding) = self.kv {
            options = options.kv_encoding(encoding);
        }
        if let Some(factor) = self.yarn {
            options = options.yarn(factor);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        options
    }

    /// What every mode says of itself in JSON.
    pub(crate) fn facts(&self, engine: &Engine) -> Value {
        json!({
            "model": self.model,
            "device": engine.device_name(),
            "selection_reason": engine.selection_reason(),
            "precision": self.precision.to_string(),
            "kv": self.kv_encoding().to_string().to_lowercase(),
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "batch": self.batch,
            "depth": self.depth,
            "repeat": self.repeat(),
        })
    }

    /// The same in the first line of a table.
    pub(crate) fn heading(&self, engine: &Engine) -> String {
        let (model, device, kv) = (self.model.display(), engine.device_name(), self.kv_encoding());
        format!("{model} on {device}, {}, K/V in {kv}", self.precision)
    }
}
