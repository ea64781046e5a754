//! Completions as one JSON object.

use qwen::FinishReason;
use serde_json::{Value, json};

use super::request::Asked;
use crate::error::Result;
use crate::wire::{FINGERPRINT, finish_reason, usage};

/// Wait for all answers.
///
/// # Errors
/// The first one of any choice.
pub(super) async fn read(mut asked: Asked) -> Result<Value> {
    let mut choices = asked.beginnings.clone();
    let mut ends = vec![FinishReason::Stop; choices.len()];
    while let Some(next) = asked.answers.next().await {
        let (index, piece) = next?;
        let (Some(choice), Some(end)) = (choices.get_mut(index), ends.get_mut(index)) else { continue };
        choice.text.push_str(&piece.text);
        if let Some(list) = &mut choice.logprobs {
            list.extend(&piece.tokens, asked.answers.tokenizer());
        }
        *end = piece.finish.unwrap_or(*end);
    }
    let choices: Vec<Value> = choices
        .into_iter()
        .zip(ends)
        .enumerate()
        .map(|(index, (mut choice, end))| {
            let logprobs = choice.logprobs.as_mut().map(|list| list.take());
            json!({
                "index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": finish_reason(end, false),
            })
        })
        .collect();
    let Asked { id, created, model, answers, .. } = &asked;
    Ok(json!({
        "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices,
        "usage": usage(answers.usage()), "system_fingerprint": FINGERPRINT,
    }))
}
