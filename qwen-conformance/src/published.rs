//! The published models as shapes without weights: for tests of how much memory each takes on a device.

use qwen_core::Encoding;
use qwen_core::backend::Limits;
use qwen_core::backend::MatrixPart;
use qwen_core::checkpoint::config::Config;
use qwen_core::error::{Error, Result};
use qwen_core::model::source::WeightSource;

/// The dense Qwen2.5 models by their sizes, with the values of their `config.json`, extended to 131,072 positions.
///
/// ```
/// let shapes = qwen_conformance::published::shapes();
/// assert_eq!(shapes.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"]);
/// assert_eq!(shapes[3].1.intermediate_size, 18_944);
/// ```
pub fn shapes() -> Vec<(&'static str, Config)> {
    let shape = |name, [hidden, layers, heads, kv_heads, inner, vocab]: [usize; 6], tied: bool| {
        let config = format!(
            r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "hidden_size": {hidden}, "intermediate_size": {inner}, "num_hidden_layers": {layers},
            "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads}, "vocab_size": {vocab},
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": {tied}}}"#
        );
        Config::from_json(name, &config).ok().map(|config| (name, config))
    };
    let shapes = [
        shape("0.5B", [896, 24, 14, 2, 4_864, 151_936], true),
        shape("1.5B", [1_536, 28, 12, 2, 8_960, 151_936], true),
        shape("3B", [2_048, 36, 16, 2, 11_008, 151_936], true),
        shape("7B", [3_584, 28, 28, 4, 18_944, 152_064], false),
        shape("14B", [5_120, 48, 40, 8, 13_824, 152_064], false),
        shape("32B", [5_120, 64, 40, 8, 27_648, 152_064], false),
        shape("72B", [8_192, 80, 64, 8, 29_568, 152_064], false),
    ];
    shapes.into_iter().flatten().collect()
}

/// The limits of a runner of the 0.5B shape for one sequence of 32,768 positions.
pub fn limits(max_num_batched_tokens: usize, max_num_logits: usize) -> Limits {
    Limits {
        max_model_len: 32_768,
        max_num_batched_tokens,
        max_num_seqs: 8,
        max_num_logits,
        block_size: 32,
        num_blocks: 1024,
        vocab_size: 151_936,
        num_token_ids: 151_936,
    }
}

/// bf16 weights with small key biases, as headers only: enough to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers;

impl WeightSource for Headers {
    fn matrix(&self, name: &str, _: usize, _: usize) -> Result<MatrixPart<'_>> {
        Err(Error::unsupported(name, "there are headers alone"))
    }

    fn vector(&self, _: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn encoding(&self, _: &str) -> Result<Encoding> {
        Ok(Encoding::Bf16)
    }
}
