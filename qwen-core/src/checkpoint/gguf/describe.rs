//! The keys that describe a model, from its configuration: the inverse of `config`.
//!
//! Keys and types are those that llama.cpp and the Python package `gguf` read. What they cannot express is refused, so
//! that a file never describes another model than the one it was made from.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::metadata::{Metadata, Value};
use crate::checkpoint::config::{Config, RopeScaling, Yarn};
use crate::checkpoint::generation_config::GenerationConfig;
use crate::error::{Error, Result};

/// The metadata of a model of this configuration, without its vocabulary.
///
/// ```
/// use qwen_core::checkpoint::gguf::describe;
/// use qwen_core::{Config, GenerationConfig};
/// # let config = Config::from_json("config.json", r#"{
/// #     "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
/// #     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-06,
/// #     "max_position_embeddings": 32768, "rope_theta": 1000000.0, "tie_word_embeddings": true
/// # }"#)?;
///
/// let metadata = describe(&config, &GenerationConfig::default())?;
/// assert_eq!(metadata.get_str("general.architecture"), Some("qwen2"));
/// assert_eq!(metadata.get_u32("qwen2.embedding_length"), Some(896));
/// # Ok::<(), qwen_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] for YaRN whose ramp is not rounded to whole dimensions (`truncate`), which GGUF cannot
/// express.
pub fn describe(config: &Config, generation: &GenerationConfig) -> Result<Metadata> {
    let mut metadata = Metadata::default();
    let text = |text: &str| Value::String(text.into());
    metadata.insert("general.architecture", text("qwen2"));
    metadata.insert("general.type", text("model"));
    for (name, size) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ] {
        metadata.insert(format!("qwen2.{name}"), count(size)?);
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        metadata.insert("qwen2.attention.key_length", count(config.head_dim)?);
        metadata.insert("qwen2.attention.value_length", count(config.head_dim)?);
    }
    metadata.insert("qwen2.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps));
    metadata.insert("qwen2.rope.freq_base", Value::F32(config.rope_theta as f32));
    match &config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Yarn(yarn) => describe_yarn(yarn, &mut metadata)?,
        RopeScaling::Auto(_) => {
            let reason = "a file cannot say so; write it without YaRN, and enable it at load";
            return Err(Error::unsupported("YaRN by the length of each sequence", reason));
        }
    }
    describe_sampling(generation, &mut metadata);
    Ok(metadata)
}

fn describe_yarn(yarn: &Yarn, metadata: &mut Metadata) -> Result<()> {
    if !yarn.truncate {
        let reason = "GGUF has no key for it, and readers round; write the file without YaRN, and enable it at load";
        return Err(Error::unsupported("YaRN with `truncate` false", reason));
    }
    let mut set = |name: &str, value: Value| metadata.insert(format!("qwen2.rope.scaling.{name}"), value);
    set("type", Value::String("yarn".into()));
    set("factor", Value::F32(yarn.factor as f32));
    set("original_context_length", count(yarn.original_max_position_embeddings)?);
    // The meaning of a file without the other keys.
    let plain = Yarn::new(yarn.factor, yarn.original_max_position_embeddings);
    for (name, value, default) in
        [("yarn_beta_fast", yarn.beta_fast, plain.beta_fast), ("yarn_beta_slow", yarn.beta_slow, plain.beta_slow)]
    {
        if value != default {
            set(name, Value::F32(value as f32));
        }
    }
    if yarn.attention_factor() != plain.attention_factor() {
        set("attn_factor", Value::F32((yarn.attention_factor() / plain.attention_factor()) as f32));
    }
    Ok(())
}

/// The sampling defaults, as far as they differ from those of a file without the keys.
fn describe_sampling(generation: &GenerationConfig, metadata: &mut Metadata) {
    let default = GenerationConfig::default();
    let mut set = |name: &str, value: Value| metadata.insert(format!("general.sampling.{name}"), value);
    if generation.do_sample {
        set("temp", Value::F32(generation.temperature));
    }
    if generation.top_k != default.top_k {
        // Large enough to keep all tokens.
        set("top_k", Value::I32(i32::try_from(generation.top_k).unwrap_or(0)));
    }
    for (name, value, default) in [
        ("top_p", generation.top_p, default.top_p),
        ("min_p", generation.min_p, default.min_p),
        ("penalty_repeat", generation.repetition_penalty, default.repetition_penalty),
    ] {
        if value != default {
            set(name, Value::F32(value));
        }
    }
}

fn count(size: usize) -> Result<Value> {
    let count = u32::try_from(size);
    count.map(Value::U32).map_err(|_| Error::argument("config", format!("{size} exceeds the 32 bits of GGUF")))
}
