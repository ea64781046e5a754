//! Completions as server-sent events.

use serde_json::{Value, json};

use super::request::Asked;
use crate::answers::{Answers, Piece};
use crate::chunks::{Chunks, Queue};
use crate::sse;
use crate::wire::{FINGERPRINT, finish_reason, usage};

/// The chunks of a streamed completion.
#[derive(Debug)]
pub(super) struct CompletionStream {
    asked: Asked,
    queue: Queue,
}

impl CompletionStream {
    pub(super) fn new(asked: Asked) -> Self {
        let mut stream = CompletionStream { asked, queue: Queue::default() };
        for index in 0..stream.asked.beginnings.len() {
            let text = std::mem::take(&mut stream.asked.beginnings[index].text);
            if !text.is_empty() {
                stream.choice(index, Piece { text, ..Piece::default() });
            }
        }
        stream
    }

    fn choice(&mut self, index: usize, piece: Piece) {
        let tokenizer = self.asked.answers.tokenizer().clone();
        let list = self.asked.beginnings.get_mut(index).and_then(|beginning| beginning.logprobs.as_mut());
        let logprobs = list.map(|list| {
            list.extend(&piece.tokens, &tokenizer);
            list.take()
        });
        let finish = piece.finish.map(|reason| finish_reason(reason, false));
        let choice = json!({"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish});
        self.send(json!([choice]), None);
    }

    fn send(&mut self, choices: Value, usage: Option<Value>) {
        let Asked { id, created, model, streaming, .. } = &self.asked;
        let mut chunk = json!({
            "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices,
            "system_fingerprint": FINGERPRINT,
        });
        if streaming.include_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        self.queue.ready.push_back(sse::data(chunk));
    }
}

impl Chunks for CompletionStream {
    fn answers(&mut self) -> &mut Answers {
        &mut self.asked.answers
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    fn piece(&mut self, index: usize, piece: Piece) {
        self.choice(index, piece);
    }

    fn end(&mut self) {
        if self.asked.streaming.include_usage {
            let usage = usage(self.asked.answers.usage());
            self.send(json!([]), Some(usage));
        }
        self.queue.ready.push_back(sse::DONE.to_owned());
    }
}
