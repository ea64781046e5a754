//! Completions as server-sent events.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use serde_json::{Value, json};

use super::request::Asked;
use crate::answers::Piece;
use crate::sse::{self, Events};
use crate::wire::{FINGERPRINT, finish_reason, usage};

/// The chunks of a streamed completion.
#[derive(Debug)]
pub(super) struct CompletionStream {
    asked: Asked,
    ready: VecDeque<String>,
    is_done: bool,
}

impl CompletionStream {
    pub(super) fn new(asked: Asked) -> Self {
        let mut stream = CompletionStream { asked, ready: VecDeque::new(), is_done: false };
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
        self.ready.push_back(sse::data(chunk));
    }
}

impl Events for CompletionStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            if let Some(text) = self.ready.pop_front() {
                return Poll::Ready(Some(text));
            }
            if self.is_done {
                return Poll::Ready(None);
            }
            match ready!(self.asked.answers.poll_next(context)) {
                Some(Ok((index, piece))) => self.choice(index, piece),
                Some(Err(error)) => {
                    self.is_done = true;
                    self.ready.push_back(sse::data(error.json()));
                }
                None => {
                    self.is_done = true;
                    if self.asked.streaming.include_usage {
                        let usage = usage(self.asked.answers.usage());
                        self.send(json!([]), Some(usage));
                    }
                    self.ready.push_back(sse::DONE.to_owned());
                }
            }
        }
    }
}
