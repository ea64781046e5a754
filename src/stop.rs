//! Which tokens end an answer: what the files name, and what the chat template writes after an answer.

use qwen_core::{Config, GenerationConfig};
use qwen_tokenizer::{ChatInput, Message, Tokenizer};

/// An answer that appears in no template's own text.
const PROBE: &str = "Zq7-answer-xK9";

/// A tool to be called.
const TOOLS: &str =
    r#"[{"type": "function", "function": {"name": "probe", "description": "", "parameters": {"type": "object"}}}]"#;

/// The union of the end tokens of config.json, generation_config.json and the tokenizer, and the one with which the
/// chat template ends a turn: published files exist in which each of these alone is wrong.
pub(crate) fn stop_token_ids(
    config: &Config,
    generation: &GenerationConfig,
    tokenizer: Option<&Tokenizer>,
) -> Vec<u32> {
    let mut ids: Vec<u32> = config.eos_token_id.iter().chain(&generation.eos_token_id).copied().collect();
    if let Some(tokenizer) = tokenizer {
        ids.extend(tokenizer.eos_token_id());
        let messages = [Message::user("Hello!"), Message::assistant(PROBE)];
        let input = || ChatInput::new(&messages).add_generation_prompt(false);
        // Chats with tools may have their own template.
        ids.extend([input(), input().tools_json(TOOLS)].iter().filter_map(|input| end_of_turn(tokenizer, input)));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The control token that the template writes after an answer, with at most white space in between: a model tuned on
/// this template ends its answers with it, and continues with the next turn unless it is stopped. `None` if the
/// template writes something else there, or refuses this conversation.
fn end_of_turn(tokenizer: &Tokenizer, input: &ChatInput<'_>) -> Option<u32> {
    let chat = tokenizer.render_chat(input).ok()?;
    let (_, after) = chat.rsplit_once(PROBE)?;
    let after = after.trim_start();
    let markers = tokenizer.control_ids().filter_map(|id| Some((tokenizer.id_to_token(id)?, id)));
    // The longest match, as in the tokenizer.
    let matching = markers.filter(|(marker, _)| !marker.is_empty() && after.starts_with(marker.as_str()));
    matching.max_by_key(|(marker, _)| marker.len()).map(|(_, id)| id)
}
