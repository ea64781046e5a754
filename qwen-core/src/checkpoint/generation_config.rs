//! `generation_config.json`: a checkpoint's sampling defaults.
//!
//! The values are the model's recommendations, parsed and range-checked; the sampler decides how a request uses them.
//! Qwen2.5 repeats itself without them, so an engine should pass them on rather than use its own defaults. A wrong
//! value affects only requests that use it: it is recorded, and a caller checks a field before using it
//! ([`GenerationConfig::check`]). Keys without effect are listed ([`GenerationConfig::warnings`]).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::json::{self, Fields};
use crate::engine::sampling::SamplingParams;
use crate::error::{Error, Result};
use crate::warning::Warning;

/// Keys that have a field in [`GenerationConfig`].
const FIELDS: [&str; 9] = [
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "eos_token_id",
    "max_new_tokens",
    "max_length",
];

/// Keys that have one, too, but that no published file of this family has: where a file cannot be read, a program need not
/// say that it wants none of them.
const RARE_FIELDS: [&str; 5] = ["typical_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "min_new_tokens"];

/// Keys that never change the tokens of an answer: they control what Python returns, caches or compiles.
const SILENT: [&str; 18] = [
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_dict_in_generate",
    "return_legacy_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "low_memory",
    "compile_config",
    "disable_compile",
    "prefill_chunk_size",
    "renormalize_logits",
    "chat_format",
];

/// Keys that have no effect at this value, which many files state explicitly.
const NEUTRAL: [(&str, f64); 12] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("length_penalty", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("min_length", 0.0),
    ("guidance_scale", 1.0),
    ("penalty_alpha", 0.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
];

/// Sampling defaults, under their names in `generation_config.json`. A checkpoint without the file has
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
    /// Sample from the distribution; if false the most likely token is taken and the temperature is not used.
    pub do_sample: bool,
    /// Logits are divided by this: above 0 if `do_sample`.
    pub temperature: f32,
    /// Keep the smallest set of most likely tokens with this total probability: 0 to 1, where 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this fraction as probable as the most likely one: 0 to 1, where 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the entropy, up to this total probability: above 0, and 1 keeps all.
    pub typical_p: f32,
    /// Drop tokens below this probability: 0, which keeps all, to below 1.
    pub epsilon_cutoff: f32,
    /// The same with a bound that falls with the entropy: 0, which keeps all, to below 1.
    pub eta_cutoff: f32,
    /// Divides positive and multiplies negative logits of every token in the prompt and answer: within
    /// [`SamplingParams::REPETITION_PENALTY`].
    pub repetition_penalty: f32,
    /// No sequence of this many tokens comes twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// The minimum number of tokens to generate.
    pub min_new_tokens: usize,
    /// Ids that end a generation, besides those of `config.json`.
    pub eos_token_id: Vec<u32>,
    /// The maximum number of tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// The maximum number of tokens of prompt and answer together.
    pub max_length: Option<usize>,
    /// What is wrong with the values of the file. Their fields hold the defaults.
    pub(in crate::checkpoint) faults: Vec<Fault>,
    /// Keys that have no effect.
    ignored: Vec<Warning>,
}

/// What is wrong with the value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::checkpoint) struct Fault {
    field: &'static str,
    path: PathBuf,
    /// `None` if the whole file cannot be read.
    key: Option<String>,
    reason: String,
}

impl Fault {
    /// The fault of `field` described by `error`; an error that names no key is about the whole file.
    pub(in crate::checkpoint) fn new(file: &Path, field: &'static str, error: &Error) -> Self {
        match error {
            Error::InvalidConfig { path, key, reason } => {
                Fault { field, path: path.clone(), key: Some(key.clone()), reason: reason.clone() }
            }
            Error::InvalidFile { path, reason } => {
                Fault { field, path: path.clone(), key: None, reason: reason.clone() }
            }
            Error::Io { path, error } => Fault { field, path: path.clone(), key: None, reason: error.to_string() },
            other => Fault { field, path: file.to_path_buf(), key: None, reason: other.to_string() },
        }
    }

    /// The same fault for another field that depends on the same key.
    pub(in crate::checkpoint) fn of(self, field: &'static str) -> Self {
        Fault { field, ..self }
    }

    /// What a program can do to go on without the value.
    fn advice(&self) -> String {
        let option = match self.field {
            "do_sample" => "temperature",
            "eos_token_id" => "stop_token_ids or ignore_eos",
            "max_length" => "max_new_tokens",
            field => field,
        };
        format!("{}: correct the file, or set {option} in the request", self.reason)
    }
}

impl Default for GenerationConfig {
    fn default() -> Self {
        GenerationConfig {
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 50,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            min_new_tokens: 0,
            eos_token_id: Vec::new(),
            max_new_tokens: None,
            max_length: None,
            faults: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

impl GenerationConfig {
    /// Parse the text of a `generation_config.json`. `path` is only for errors. Keys that are missing or `null` take
    /// their defaults. A value that is malformed or out of range is not an error yet: its field has the default, and
    /// [`GenerationConfig::check`] returns the error to callers that would use it.
    ///
    /// ```
    /// use qwen_core::GenerationConfig;
    ///
    /// let config = GenerationConfig::from_json("generation_config.json", r#"{"do_sample": false, "top_k": -1}"#)?;
    /// assert!(config.check("temperature").is_ok());
    /// assert!(config.check("top_k").unwrap_err().to_string().contains("found -1"));
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidFile`](crate::Error::InvalidFile) if it is not a JSON object.
    pub fn from_json(path: impl AsRef<Path>, json: &str) -> Result<Self> {
        let path = path.as_ref();
        let value = json::parse(path, json)?;
        let fields = Fields::root(path, &value)?;
        let mut config = GenerationConfig::default();
        let faults = &mut config.faults;
        let float = |key: &str, max: f32| Ok(fields.f64(key, 0.0, max.into())?.map(|value| value as f32));
        let count = |key: &str| fields.usize(key, 0, usize::MAX);
        set(&mut config.do_sample, faults, path, "do_sample", fields.bool("do_sample"));
        set(&mut config.temperature, faults, path, "temperature", float("temperature", f32::MAX));
        set(&mut config.top_p, faults, path, "top_p", float("top_p", 1.0));
        set(&mut config.top_k, faults, path, "top_k", count("top_k"));
        set(&mut config.min_p, faults, path, "min_p", float("min_p", 1.0));
        let typical_p = fields.f64("typical_p", f32::MIN_POSITIVE.into(), 1.0).map(|p| p.map(|p| p as f32));
        set(&mut config.typical_p, faults, path, "typical_p", typical_p);
        let below_one = 1f32.next_down();
        set(&mut config.epsilon_cutoff, faults, path, "epsilon_cutoff", float("epsilon_cutoff", below_one));
        set(&mut config.eta_cutoff, faults, path, "eta_cutoff", float("eta_cutoff", below_one));
        let penalty = float("repetition_penalty", f32::MAX).and_then(|penalty| {
            let bounds = SamplingParams::REPETITION_PENALTY;
            match penalty.filter(|penalty| !bounds.contains(penalty)) {
                None => Ok(penalty),
                Some(penalty) => {
                    let (low, high) = (bounds.start(), bounds.end());
                    let reason = format!("expected a number of {low} to {high} (1 is no penalty), found {penalty:?}");
                    Err(fields.error("repetition_penalty", reason))
                }
            }
        });
        set(&mut config.repetition_penalty, faults, path, "repetition_penalty", penalty);
        set(&mut config.no_repeat_ngram_size, faults, path, "no_repeat_ngram_size", count("no_repeat_ngram_size"));
        set(&mut config.min_new_tokens, faults, path, "min_new_tokens", count("min_new_tokens"));
        set(&mut config.eos_token_id, faults, path, "eos_token_id", fields.ids("eos_token_id").map(Some));
        set(&mut config.max_new_tokens, faults, path, "max_new_tokens", count("max_new_tokens").map(Some));
        set(&mut config.max_length, faults, path, "max_length", count("max_length").map(Some));
        // Some greedy checkpoints write temperature 0; together with sampling it has no meaning.
        if config.do_sample && config.temperature == 0.0 {
            let reason = "expected a number above 0 where do_sample is true, found 0";
            faults.push(Fault::new(path, "temperature", &fields.error("temperature", reason)));
        }
        config.ignored = fields
            .entries()
            .filter(|(key, value)| !has_effect_or_needs_none(key, value))
            .map(|(key, value)| Warning::IgnoredKey {
                path: path.to_path_buf(),
                key: key.clone(),
                value: json::describe(value),
            })
            .collect();
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

    /// The defaults in place of a file that cannot be read; [`GenerationConfig::check`] refuses each of them but
    /// the rare ones.
    pub(in crate::checkpoint) fn unreadable(path: &Path, error: &Error) -> Self {
        let faults = FIELDS.map(|field| Fault::new(path, field, error)).to_vec();
        GenerationConfig { faults, ..GenerationConfig::default() }
    }

    /// Check that the file's value of `field`, a field of this type, may be used. Fields that are not used need no
    /// check.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::Error::InvalidConfig) with the key that is malformed or out of range, and the option
    /// that overrides it; [`InvalidFile`](crate::Error::InvalidFile) if the whole file cannot be read.
    pub fn check(&self, field: &str) -> Result<()> {
        let Some(fault) = self.faults.iter().find(|fault| fault.field == field) else { return Ok(()) };
        let (path, reason) = (fault.path.clone(), fault.advice());
        Err(match &fault.key {
            Some(key) => Error::InvalidConfig { path, key: key.clone(), reason },
            None => Error::InvalidFile { path, reason },
        })
    }

    /// Every key with a value that should have an effect but has none here, and every wrong value.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.ignored.clone();
        for Fault { path, key, reason, .. } in &self.faults {
            let (path, reason) = (path.clone(), reason.clone());
            let warning = match key {
                Some(key) => Warning::InvalidValue { path, key: key.clone(), reason },
                None => Warning::UnreadableFile { path, reason },
            };
            // In a file that cannot be read, every field is at fault.
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }
}

/// Take the file's value for `field`, if there is one, or record what is wrong with it.
pub(in crate::checkpoint) fn set<T>(
    target: &mut T,
    faults: &mut Vec<Fault>,
    path: &Path,
    field: &'static str,
    found: Result<Option<T>>,
) {
    match found {
        Ok(Some(value)) => *target = value,
        Ok(None) => {}
        Err(error) => faults.push(Fault::new(path, field, &error)),
    }
}

/// Whether a key has a field here, or needs none because its value changes nothing.
fn has_effect_or_needs_none(key: &str, value: &Value) -> bool {
    let does_nothing = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => {
            NEUTRAL.iter().any(|(name, neutral)| *name == key && number.as_f64() == Some(*neutral))
        }
        _ => false,
    };
    let has_field = FIELDS.contains(&key) || RARE_FIELDS.contains(&key);
    does_nothing || key.starts_with('_') || has_field || SILENT.contains(&key)
}
