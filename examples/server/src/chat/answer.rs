//! Answers of a chat as one JSON object: what its stream says, put together.

use qwen::{BrokenCall, Delta, FinishReason, Logprobs, Tokenizer, ToolCallDelta};
use serde_json::{Value, json};

use super::request::Asked;
use crate::answers::Piece;
use crate::error::Result;
use crate::wire::{FINGERPRINT, finish_reason, finite, usage};

/// The reason of a broken call that is only cut.
const CUT: &str = "the answer ends within it";

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) asked: Asked,
    pub(crate) choices: Vec<Choice>,
}

/// One of its choices so far.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
    tokens: Vec<Value>,
    finish: Option<FinishReason>,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// What a delta is on the wire.
#[derive(Debug)]
pub(crate) enum Part {
    Content(String),
    Reasoning(String),
    Call(ToolCallDelta),
}

/// The parts of a piece. What is no call after all is text; what is a call that the answer's end cuts stays a call.
pub(crate) fn parts(deltas: Vec<Delta>) -> impl Iterator<Item = Part> {
    deltas.into_iter().filter_map(|delta| match delta {
        Delta::Text(text) => Some(Part::Content(text)),
        Delta::Reasoning(text) => Some(Part::Reasoning(text)),
        Delta::ToolCall(call) => Some(Part::Call(call)),
        Delta::Broken(BrokenCall { index: Some(_), reason: CUT, .. }) => None,
        Delta::Broken(broken) => Some(Part::Content(broken.text)),
        _ => None,
    })
}

/// The id of a call: of the response, its choice and its place.
pub(crate) fn call_id(response: &str, choice: usize, index: usize) -> String {
    let number = response.rsplit(['-', '_']).next().unwrap_or_default();
    format!("call_{number}_{choice}_{index}")
}

impl Answer {
    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The first one of any choice.
    pub(crate) async fn read(mut asked: Asked) -> Result<Self> {
        let mut choices: Vec<Choice> = (0..asked.answers.len()).map(|_| Choice::default()).collect();
        while let Some(next) = asked.answers.next().await {
            let (index, piece) = next?;
            if let Some(choice) = choices.get_mut(index) {
                choice.add(piece, &asked.id, index, asked.answers.tokenizer());
            }
        }
        Ok(Answer { asked, choices })
    }

    pub(crate) fn json(&self) -> Value {
        let Asked { id, created, model, answers, logprobs, .. } = &self.asked;
        let choices: Vec<Value> =
            self.choices.iter().enumerate().map(|(index, choice)| choice.json(index, *logprobs)).collect();
        json!({
            "id": id, "object": "chat.completion", "created": created, "model": model, "choices": choices,
            "usage": usage(answers.usage()), "system_fingerprint": FINGERPRINT, "service_tier": "default",
        })
    }
}

/// A token with its log-probability, and those of the likeliest ones.
pub(super) fn logprob(token: &Logprobs, tokenizer: &Tokenizer) -> Value {
    let one = |id: u32, logprob: f64| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let mut value = one(token.id, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|top| one(top.id, top.logprob)).collect();
    value
}

impl Choice {
    fn add(&mut self, piece: Piece, response: &str, index: usize, tokenizer: &Tokenizer) {
        for part in parts(piece.deltas) {
            match part {
                Part::Content(text) => self.content.push_str(&text),
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Call(delta) => {
                    if let Some(name) = delta.name {
                        let id = call_id(response, index, delta.index);
                        self.calls.push(Call { id, name, arguments: String::new() });
                    }
                    if let Some(call) = self.calls.get_mut(delta.index) {
                        call.arguments.push_str(&delta.arguments);
                    }
                }
            }
        }
        self.tokens.extend(piece.tokens.iter().map(|token| logprob(token, tokenizer)));
        self.finish = self.finish.or(piece.finish);
    }

    pub(crate) fn finish_reason(&self) -> &'static str {
        finish_reason(self.finish.unwrap_or(FinishReason::Stop), !self.calls.is_empty())
    }

    fn json(&self, index: usize, logprobs: bool) -> Value {
        let content = match self.content.is_empty() && !self.calls.is_empty() {
            true => Value::Null,
            false => json!(self.content),
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.reasoning);
        }
        if !self.calls.is_empty() {
            let call = |call: &Call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        let logprobs = if logprobs { json!({"content": self.tokens, "refusal": null}) } else { Value::Null };
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason()})
    }
}
