//! The keys of a GGUF file that describe the model: parsed to the same [`Config`] and [`GenerationConfig`] as the JSON
//! files of other checkpoints, with the same bounds.
//!
//! Missing keys have llama.cpp's defaults, since the file was tested with those.

use std::path::Path;

use super::metadata::{Metadata, Value};
use super::strings::Strings;
use crate::checkpoint::config::{Config, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, RopeScaling, Yarn};
use crate::checkpoint::generation_config::{GenerationConfig, set};
use crate::engine::sampling::SamplingParams;
use crate::error::{Error, Result};

/// The only supported architecture.
const ARCHITECTURE: &str = "qwen2";

/// Control tokens that end an answer, whether or not a key of the file names them: `<|im_end|>` ends a turn and
/// `<|endoftext|>` a document. Published `generation_config.json` files name both; GGUF files have room for one.
const END_MARKS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// The value of `tokenizer.ggml.token_type` for a control token.
const CONTROL: i32 = 3;

/// The configuration of a model whose embedding table has `vocab_size` rows, and which has its own output matrix unless
/// `tied`.
pub(super) fn config(path: &Path, metadata: &Metadata, vocab_size: Option<usize>, tied: bool) -> Result<Config> {
    let keys = &Keys { path, metadata };
    let required = |key: &str, max| keys.required(key, keys.usize(key, 1, max)?);
    let hidden_size = required("qwen2.embedding_length", MAX_WIDTH)?;
    let num_attention_heads = required("qwen2.attention.head_count", MAX_WIDTH)?;
    let max_position_embeddings = required("qwen2.context_length", MAX_POSITIONS)?;
    let config = Config {
        quantization: None,
        hidden_size,
        intermediate_size: required("qwen2.feed_forward_length", MAX_WIDTH)?,
        num_hidden_layers: layers(path, metadata)?,
        num_attention_heads,
        num_key_value_heads: num_key_value_heads(keys, num_attention_heads)?,
        head_dim: head_dim(keys, hidden_size, num_attention_heads)?,
        vocab_size: self::vocab_size(keys, vocab_size)?,
        max_position_embeddings,
        rms_norm_eps: rms_norm_eps(keys)?,
        rope_theta: rope_theta(keys)?,
        rope_scaling: rope_scaling(keys, max_position_embeddings)?,
        sliding_window: None,
        tie_word_embeddings: tied,
        is_causal: true,
        bos_token_id: keys.id("tokenizer.ggml.bos_token_id")?,
        eos_token_id: keys.id("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
        torch_dtype: None,
    };
    match config.fits_pointers() {
        true => Ok(config),
        false => {
            let reason = "makes the model too large to address on this machine";
            Err(keys.error("qwen2.embedding_length", reason))
        }
    }
}

/// The number of layers, if the model is supported at all.
pub(super) fn layers(path: &Path, metadata: &Metadata) -> Result<usize> {
    let (keys, key) = (&Keys { path, metadata }, "qwen2.block_count");
    refuse_unsupported(keys)?;
    keys.required(key, keys.usize(key, 1, MAX_LAYERS)?)
}

/// The file's sampling defaults, and the tokens that end an answer. A malformed value affects only requests that use
/// it.
pub(super) fn generation_config(path: &Path, metadata: &Metadata) -> Result<GenerationConfig> {
    let keys = &Keys { path, metadata };
    let mut config = GenerationConfig::default();
    config.eos_token_id = end_tokens(keys)?;
    let faults = &mut config.faults;
    let float = |name: &str, min: f32, max: f32| {
        let value = keys.f64(&format!("general.sampling.{name}"), min.into(), max.into())?;
        Ok(value.map(|value| value as f32))
    };
    let (low, high) = SamplingParams::REPETITION_PENALTY.into_inner();
    let temperature = float("temp", 0.0, f32::MAX);
    // llama.cpp takes the most likely token at 0.
    config.do_sample = matches!(temperature, Ok(Some(temperature)) if temperature > 0.0);
    set(&mut config.temperature, faults, path, "temperature", temperature);
    if let Some(fault) = faults.first().cloned() {
        faults.push(fault.of("do_sample"));
    }
    set(&mut config.top_p, faults, path, "top_p", float("top_p", 0.0, 1.0));
    set(&mut config.top_k, faults, path, "top_k", keys.usize("general.sampling.top_k", 0, usize::MAX));
    set(&mut config.min_p, faults, path, "min_p", float("min_p", 0.0, 1.0));
    set(&mut config.repetition_penalty, faults, path, "repetition_penalty", float("penalty_repeat", low, high));
    Ok(config)
}

fn end_tokens(keys: &Keys<'_>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ids.extend(keys.id(key)?);
    }
    let tokens = keys.metadata.strings("tokenizer.ggml.tokens").into_iter().flat_map(Strings::iter);
    let types = keys.metadata.i32s("tokenizer.ggml.token_type").unwrap_or_default();
    for (id, (token, _)) in tokens.zip(types).enumerate().filter(|(_, (_, kind))| **kind == CONTROL) {
        if END_MARKS.contains(&token) {
            ids.extend(u32::try_from(id));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn vocab_size(keys: &Keys<'_>, rows: Option<usize>) -> Result<usize> {
    let key = "tokenizer.ggml.tokens";
    let tokens = keys.metadata.strings(key).map(Strings::len);
    let size = match (rows, tokens) {
        (Some(rows), Some(tokens)) if tokens > rows => {
            let reason = format!("has {tokens} tokens, the embedding table only {rows} rows: the file is damaged");
            return Err(keys.error(key, reason));
        }
        // Rows of the table beyond the tokens are padding.
        (Some(rows), _) => rows,
        (None, tokens) => keys.required(key, tokens)?,
    };
    match size {
        1..=MAX_VOCABULARY => Ok(size),
        _ => Err(keys.error(key, format!("expected a vocabulary of 1 to {MAX_VOCABULARY} rows, found {size}"))),
    }
}

fn num_key_value_heads(keys: &Keys<'_>, num_attention_heads: usize) -> Result<usize> {
    let key = "qwen2.attention.head_count_kv";
    let kv_heads = keys.usize(key, 1, num_attention_heads)?.unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(kv_heads) {
        return Err(keys.error(key, format!("{kv_heads} does not divide the {num_attention_heads} heads of queries")));
    }
    Ok(kv_heads)
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_attention_heads: usize) -> Result<usize> {
    let key = "qwen2.attention.key_length";
    let head_dim = match keys.usize(key, 1, MAX_WIDTH / num_attention_heads)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let reason = format!("{num_attention_heads} does not divide the width {hidden_size}");
            return Err(keys.error("qwen2.attention.head_count", reason));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(keys.error(key, format!("{head_dim} is odd: rotary embedding pairs the halves of a head")));
    }
    for (key, reason) in [
        ("qwen2.attention.value_length", "heads of Qwen2.5 are as wide for values as for keys"),
        ("qwen2.rope.dimension_count", "Qwen2.5 rotates whole heads"),
    ] {
        if let Some(width) = keys.usize(key, 0, usize::MAX)?.filter(|width| *width != head_dim) {
            return Err(keys.unsupported(key, &format!("{width} of the {head_dim} dimensions of a head"), reason));
        }
    }
    Ok(head_dim)
}

fn rms_norm_eps(keys: &Keys<'_>) -> Result<f32> {
    let key = "qwen2.attention.layer_norm_rms_epsilon";
    match keys.required(key, keys.f64(key, 0.0, 1.0)?)? as f32 {
        eps if eps > 0.0 => Ok(eps),
        eps => Err(keys.error(key, format!("expected a number above 0, found {eps:?}"))),
    }
}

fn rope_theta(keys: &Keys<'_>) -> Result<f64> {
    let key = "qwen2.rope.freq_base";
    // At 1 and below, frequencies do not decrease; the correction range of YaRN divides by ln(theta).
    match keys.f64(key, 1.0, 1e30)?.unwrap_or(10_000.0) {
        1.0 => Err(keys.error(key, "expected a number above 1, found 1")),
        theta => Ok(theta),
    }
}

fn rope_scaling(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<RopeScaling> {
    let type_key = "qwen2.rope.scaling.type";
    let factor_key = "qwen2.rope.scaling.factor";
    let (written, old) = (keys.f64(factor_key, 0.0, f64::MAX)?, keys.f64("qwen2.rope.scale_linear", 0.0, f64::MAX)?);
    // 0 stands for no factor.
    let factor = written.or(old).filter(|factor| *factor != 0.0);
    match keys.str(type_key)?.unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" if factor.is_none_or(|factor| factor == 1.0) => Ok(RopeScaling::None),
        "yarn" => {
            let factor = keys.required(factor_key, factor)?;
            yarn(keys, factor, max_position_embeddings).map(RopeScaling::Yarn)
        }
        other => Err(keys.unsupported(
            type_key,
            &format!("rope scaling {other:?}"),
            "Qwen2.5 uses \"yarn\" or none: another one belongs to another model",
        )),
    }
}

fn yarn(keys: &Keys<'_>, factor: f64, max_position_embeddings: usize) -> Result<Yarn> {
    const ANY: f64 = f64::MAX;
    let scaling = |name: &str| format!("qwen2.rope.scaling.{name}");
    let float = |name: &str| keys.f64(&scaling(name), -ANY, ANY);
    let original = keys.usize(&scaling("original_context_length"), 1, MAX_POSITIONS)?;
    let mut yarn = Yarn::new(factor, original.unwrap_or(max_position_embeddings));
    yarn.beta_fast = float("yarn_beta_fast")?.unwrap_or(yarn.beta_fast);
    yarn.beta_slow = float("yarn_beta_slow")?.unwrap_or(yarn.beta_slow);
    if let Some(weight) = float("yarn_log_multiplier")?.filter(|weight| *weight != 0.0) {
        (yarn.mscale, yarn.mscale_all_dim) = (Some(1.0), Some(weight));
    }
    // Here it multiplies the factor computed from the scaling; in `config.json` it replaces that factor.
    yarn.attention_factor = float("attn_factor")?.map(|factor| factor * yarn.attention_factor());
    for name in ["yarn_ext_factor", "yarn_attn_factor"] {
        if let Some(value) = float(name)?.filter(|value| *value != 1.0) {
            let reason = "YaRN is computed as in its paper, where this is 1";
            return Err(keys.unsupported(&scaling(name), &format!("a factor of {value:?} in YaRN"), reason));
        }
    }
    yarn.check().map_err(|(field, reason)| {
        let name = match field {
            "original_max_position_embeddings" => "original_context_length",
            "beta_fast" => "yarn_beta_fast",
            "beta_slow" => "yarn_beta_slow",
            "attention_factor" => "attn_factor",
            "mscale" => "yarn_log_multiplier",
            field => field,
        };
        keys.error(&scaling(name), reason)
    })?;
    Ok(yarn)
}

/// Refuse by name what would otherwise run and give wrong results. `attention.sliding_window` has no effect in this
/// architecture.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    let key = "general.architecture";
    let architecture = keys.required(key, keys.str(key)?)?;
    if architecture != ARCHITECTURE {
        let reason = "this library runs Qwen2.5, whose architecture is \"qwen2\"";
        return Err(keys.unsupported(key, &format!("architecture {architecture:?}"), reason));
    }
    let key = "general.type";
    if let Some(kind) = keys.str(key)?.filter(|kind| *kind != "model") {
        let reason = "give the file of a whole model: adapters and projectors are parts of one";
        return Err(keys.unsupported(key, &format!("a file of type {kind:?}"), reason));
    }
    const NO_TEXT: &str = "it makes embeddings, or scores; only models that generate text are run";
    let key = "qwen2.attention.causal";
    if keys.bool(key)? == Some(false) {
        return Err(keys.unsupported(key, "attention to later positions", NO_TEXT));
    }
    let key = "qwen2.pooling_type";
    if keys.usize(key, 0, usize::MAX)?.is_some_and(|pooling| pooling != 0) {
        return Err(keys.unsupported(key, "a model that pools its rows", NO_TEXT));
    }
    Ok(())
}

/// Typed reads with errors that name file and key.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(key, "a string", other)),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.expected(key, "true or false", other)),
        }
    }

    /// A number within `min..=max`; an integer counts.
    fn f64(&self, key: &str, min: f64, max: f64) -> Result<Option<f64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = self.metadata.get_f64(key).or(value.as_u64().map(|number| number as f64));
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.expected(key, &format!("a number from {min:?} to {max:?}"), value)),
        }
    }

    /// A whole number within `min..=max`.
    fn usize(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|n| (min..=max).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.expected(key, &format!("a whole number from {min} to {max}"), value)),
        }
    }

    /// The id of a token.
    fn id(&self, key: &str) -> Result<Option<u32>> {
        match (self.metadata.get(key), self.metadata.token_id(key)) {
            (None | Some(Value::U32(u32::MAX) | Value::I32(-1)), _) => Ok(None),
            (Some(_), Some(id)) => Ok(Some(id)),
            (Some(value), None) => Err(self.expected(key, "the id of a token", value)),
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::InvalidConfig { path: self.path.to_path_buf(), key: key.into(), reason: reason.into() }
    }

    fn expected(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(key, format!("expected {expected}, found {}", found.describe()))
    }

    fn unsupported(&self, key: &str, what: &str, reason: &str) -> Error {
        Error::unsupported(format!("{what} ({}: key `{key}`)", self.path.display()), reason)
    }
}
