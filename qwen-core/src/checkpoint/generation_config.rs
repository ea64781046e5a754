//! `generation_config.json`: how a checkpoint wants to be sampled.
//!
//! The values here are the model's advice, parsed and in bounds; what a request makes of them is decided by whoever
//! samples. Qwen2.5 repeats itself without its own values, so they should be passed on, not replaced by an engine's taste.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use crate::checkpoint::json::{self, Fields};
use crate::engine::sampling::SamplingParams;
use crate::error::Result;

/// Sampling defaults under the names that `generation_config.json` has for them. A checkpoint without the file has
/// [`GenerationConfig::default`], which is what transformers assumes.
///
/// ```
/// use qwen_core::GenerationConfig;
///
/// let config = GenerationConfig::from_json("generation_config.json", r#"{
///     "do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05,
///     "eos_token_id": [151645, 151643]
/// }"#)?;
/// assert_eq!(config.top_k, 20);
/// assert_eq!(config.eos_token_id, [151645, 151643]);
/// assert_eq!(config.min_p, 0.0);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Draw from the distribution; if false the likeliest token is taken and the temperature has no part.
    pub do_sample: bool,
    /// Logits are divided by this: above 0 if `do_sample`.
    pub temperature: f32,
    /// Keep the smallest set of tokens that has this probability: 0 to 1, where 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this fraction as probable as the likeliest: 0 to 1, where 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of every token of prompt and answer: within
    /// [`SamplingParams::REPETITION_PENALTY`].
    pub repetition_penalty: f32,
    /// Ids that end a generation, besides those of `config.json`.
    pub eos_token_id: Vec<u32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and answer together at most.
    pub max_length: Option<usize>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        GenerationConfig {
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 50,
            min_p: 0.0,
            repetition_penalty: 1.0,
            eos_token_id: Vec::new(),
            max_new_tokens: None,
            max_length: None,
        }
    }
}

impl GenerationConfig {
    /// Parse the text of a `generation_config.json`. `path` is only for errors. Keys that are missing or `null` take
    /// their defaults, keys without a field here are ignored.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::Error::InvalidConfig) names the key that is malformed or out of its bounds.
    pub fn from_json(path: impl AsRef<Path>, json: &str) -> Result<Self> {
        let path = path.as_ref();
        let value = json::parse(path, json)?;
        let fields = Fields::root(path, &value)?;
        let default = GenerationConfig::default();
        let float = |key: &str, max: f32, default: f32| -> Result<f32> {
            Ok(fields.f64(key, 0.0, max.into())?.map_or(default, |value| value as f32))
        };
        let config = GenerationConfig {
            do_sample: fields.bool("do_sample")?.unwrap_or(default.do_sample),
            temperature: float("temperature", f32::MAX, default.temperature)?,
            top_p: float("top_p", 1.0, default.top_p)?,
            top_k: fields.usize("top_k", 0, usize::MAX)?.unwrap_or(default.top_k),
            min_p: float("min_p", 1.0, default.min_p)?,
            repetition_penalty: float("repetition_penalty", f32::MAX, default.repetition_penalty)?,
            eos_token_id: fields.ids("eos_token_id")?,
            max_new_tokens: fields.usize("max_new_tokens", 0, usize::MAX)?,
            max_length: fields.usize("max_length", 0, usize::MAX)?,
        };
        // Some greedy checkpoints write temperature 0; together with sampling it has no meaning.
        if config.do_sample && config.temperature == 0.0 {
            return Err(fields.error("temperature", "expected a number above 0 where do_sample is true, found 0"));
        }
        let (bounds, penalty) = (SamplingParams::REPETITION_PENALTY, config.repetition_penalty);
        if !bounds.contains(&penalty) {
            let (low, high) = (bounds.start(), bounds.end());
            let reason = format!("expected a number of {low} to {high} (1 is no penalty), found {penalty:?}");
            return Err(fields.error("repetition_penalty", &reason));
        }
        Ok(config)
    }

    /// Read and parse a `generation_config.json`.
    ///
    /// # Errors
    /// As [`GenerationConfig::from_json`], and [`Io`](crate::Error::Io) if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        GenerationConfig::from_json(path, &json::read_config(path)?)
    }
}
