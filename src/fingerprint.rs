//! Short values that tell contents apart: the same in every process and on every machine. They find accidents, such as
//! another model's files, and no attacks.

use qwen_core::checkpoint::Checkpoint;
use qwen_core::{Config, Result};
use qwen_tokenizer::Tokenizer;

/// The 64-bit hash FNV-1a.
pub(crate) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes = bytes.into_iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the ids of a tokenizer stand for: where it is the same, ids that were saved mean the same.
pub(crate) fn of_vocabulary(tokenizer: &Tokenizer) -> String {
    let tokens = (0..tokenizer.num_ids() as u32).flat_map(|id| {
        let bytes = tokenizer.token_bytes(id);
        let length = (bytes.len() as u32).to_le_bytes();
        [u8::from(tokenizer.is_special(id))].into_iter().chain(length).chain(bytes)
    });
    format!("{:016x}", fnv1a(tokens))
}

/// Which checkpoint it is: names, element types, shapes, and a few bytes of each tensor.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn of_weights(checkpoint: &Checkpoint) -> Result<String> {
    let mut known = Vec::new();
    checkpoint.samples(&mut |tensor, bytes| {
        known.extend_from_slice(
            format!("{} {} {:?} {} ", tensor.name, tensor.dtype, tensor.shape, bytes.len()).as_bytes(),
        );
        known.extend_from_slice(bytes);
    })?;
    Ok(format!("{:016x}", fnv1a(known)))
}

/// What the model computes, by the names of the configuration.
pub(crate) fn of_config(config: &Config) -> [(&'static str, String); 11] {
    [
        ("`hidden_size`", config.hidden_size.to_string()),
        ("`intermediate_size`", config.intermediate_size.to_string()),
        ("`num_hidden_layers`", config.num_hidden_layers.to_string()),
        ("`num_attention_heads`", config.num_attention_heads.to_string()),
        ("`num_key_value_heads`", config.num_key_value_heads.to_string()),
        ("`head_dim`", config.head_dim.to_string()),
        ("`vocab_size`", config.vocab_size.to_string()),
        ("`rms_norm_eps`", config.rms_norm_eps.to_string()),
        ("`rope_theta`", config.rope_theta.to_string()),
        ("`rope_scaling`", format!("{:?}", config.rope_scaling)),
        ("`tie_word_embeddings`", config.tie_word_embeddings.to_string()),
    ]
}
