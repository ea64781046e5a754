//! Which tokens end an answer.

use qwen_core::{Config, GenerationConfig};
use qwen_tokenizer::Tokenizer;

/// The union of what config.json, generation_config.json and the tokenizer's end marker say: each of the three has been
/// wrong alone in published files.
pub(crate) fn stop_token_ids(
    config: &Config,
    generation: &GenerationConfig,
    tokenizer: Option<&Tokenizer>,
) -> Vec<u32> {
    let mut ids: Vec<u32> = config.eos_token_id.iter().chain(&generation.eos_token_id).copied().collect();
    ids.extend(tokenizer.and_then(Tokenizer::eos_token_id));
    ids.sort_unstable();
    ids.dedup();
    ids
}
