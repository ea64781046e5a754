//! Answers of a chat as server-sent events, chunk by chunk.

use qwen::ToolCallDelta;
use serde_json::{Value, json};

use super::answer::{Part, call_id, logprob, parts};
use super::request::Asked;
use crate::answers::{Answers, Piece};
use crate::chunks::{Chunks, Queue};
use crate::sse;
use crate::wire::{FINGERPRINT, finish_reason, usage};

/// The chunks of a streamed answer.
#[derive(Debug)]
pub(super) struct ChatStream {
    asked: Asked,
    /// Of each choice, whether it has called a tool.
    has_calls: Vec<bool>,
    queue: Queue,
}

impl ChatStream {
    pub(super) fn new(asked: Asked) -> Self {
        let has_calls = vec![false; asked.answers.len()];
        let mut stream = ChatStream { asked, has_calls, queue: Queue::default() };
        for index in 0..stream.asked.answers.len() {
            stream.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None);
        }
        stream
    }

    fn chunk(&mut self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.send(json!([choice]), None);
    }

    fn send(&mut self, choices: Value, usage: Option<Value>) {
        let Asked { id, created, model, streaming, .. } = &self.asked;
        let mut chunk = json!({
            "id": id, "object": "chat.completion.chunk", "created": created, "model": model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        });
        if streaming.include_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        self.queue.ready.push_back(sse::data(chunk));
    }
}

/// A call's delta: its id and name once, then pieces of its arguments. Nothing where it only says that it is complete.
fn call_delta(response: &str, choice: usize, call: ToolCallDelta) -> Option<Value> {
    let ToolCallDelta { index, name, arguments, .. } = call;
    let call = match name {
        Some(name) => {
            let function = json!({"name": name, "arguments": arguments});
            json!({"index": index, "id": call_id(response, choice, index), "type": "function", "function": function})
        }
        None if arguments.is_empty() => return None,
        None => json!({"index": index, "function": {"arguments": arguments}}),
    };
    Some(json!({"tool_calls": [call]}))
}

impl Chunks for ChatStream {
    fn answers(&mut self) -> &mut Answers {
        &mut self.asked.answers
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    fn piece(&mut self, index: usize, piece: Piece) {
        // The tokens of a piece come with its first chunk.
        let mut logprobs = match piece.tokens.is_empty() {
            true => Value::Null,
            false => {
                let tokenizer = self.asked.answers.tokenizer();
                let tokens: Vec<Value> = piece.tokens.iter().map(|token| logprob(token, tokenizer)).collect();
                json!({"content": tokens, "refusal": null})
            }
        };
        for part in parts(piece.deltas) {
            let delta = match part {
                Part::Content(text) => json!({"content": text}),
                Part::Reasoning(text) => json!({"reasoning_content": text}),
                Part::Call(call) => {
                    if let Some(has_calls) = self.has_calls.get_mut(index) {
                        *has_calls = true;
                    }
                    match call_delta(&self.asked.id, index, call) {
                        Some(delta) => delta,
                        None => continue,
                    }
                }
            };
            self.chunk(index, delta, logprobs.take(), None);
        }
        match piece.finish {
            Some(reason) => {
                let has_calls = self.has_calls.get(index).copied().unwrap_or_default();
                self.chunk(index, json!({}), logprobs, Some(finish_reason(reason, has_calls)));
            }
            // Tokens of a marker, for example, are no part of any text.
            None if !logprobs.is_null() => self.chunk(index, json!({"content": ""}), logprobs, None),
            None => {}
        }
    }

    fn end(&mut self) {
        if self.asked.streaming.include_usage {
            let usage = usage(self.asked.answers.usage());
            self.send(json!([]), Some(usage));
        }
        self.queue.ready.push_back(sse::DONE.to_owned());
    }
}
