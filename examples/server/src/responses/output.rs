//! A response as one JSON object.

use serde_json::{Value, json};

use crate::answers::Usage;
use crate::chat::answer::{Answer, Call};

/// What all events of a response have in common.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// What is repeated of the request.
    pub(super) echoed: Value,
}

impl Frame {
    /// The response, with what there is of it.
    pub(super) fn response(&self, status: &str, output: &[Value], usage: Option<Usage>) -> Value {
        let Frame { id, created, model, echoed } = self;
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            })
        });
        let details = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let mut response = json!({
            "id": id, "object": "response", "created_at": created, "status": status, "error": null,
            "incomplete_details": details, "model": model, "output": output, "usage": usage,
        });
        if let (Some(response), Some(echoed)) = (response.as_object_mut(), echoed.as_object()) {
            response.extend(echoed.clone());
        }
        response
    }

    /// The response of a complete answer.
    pub(super) fn complete(&self, answer: &Answer) -> Value {
        let mut output = Vec::new();
        let status = match answer.choices.first() {
            Some(choice) => {
                let status = status(choice.finish_reason());
                if !choice.reasoning.is_empty() {
                    output.push(self.reasoning(output.len(), &choice.reasoning));
                }
                if !choice.content.is_empty() || choice.calls.is_empty() {
                    output.push(self.message(output.len(), status, &choice.content));
                }
                for call in &choice.calls {
                    output.push(self.call(output.len(), status, call));
                }
                status
            }
            None => "completed",
        };
        self.response(status, &output, Some(answer.asked.answers.usage()))
    }

    fn item_id(&self, kind: &str, index: usize) -> String {
        let number = self.id.trim_start_matches("resp_");
        format!("{kind}_{number}_{index}")
    }

    pub(super) fn reasoning(&self, index: usize, text: &str) -> Value {
        let content = json!([{"type": "reasoning_text", "text": text}]);
        json!({"id": self.item_id("rs", index), "type": "reasoning", "summary": [], "content": content})
    }

    pub(super) fn message(&self, index: usize, status: &str, text: &str) -> Value {
        let content = json!([part(text)]);
        self.message_of(index, status, content)
    }

    pub(super) fn message_of(&self, index: usize, status: &str, content: Value) -> Value {
        let id = self.item_id("msg", index);
        json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    pub(super) fn call(&self, index: usize, status: &str, call: &Call) -> Value {
        let Call { id, name, arguments } = call;
        json!({
            "id": self.item_id("fc", index), "type": "function_call", "status": status, "call_id": id, "name": name,
            "arguments": arguments,
        })
    }
}

/// The text of a message.
pub(super) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The status of a response that ended for this reason.
pub(super) fn status(finish_reason: &str) -> &'static str {
    if finish_reason == "length" { "incomplete" } else { "completed" }
}
