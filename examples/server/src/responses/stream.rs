//! A response as server-sent events: items begin, grow and end, one after the other.

use qwen::ToolCallDelta;
use serde_json::{Value, json};

use super::output::{Frame, part, status};
use crate::answers::{Answers, Piece};
use crate::chat::answer::{Call, Part, call_id, parts};
use crate::chat::request::Asked;
use crate::chunks::{Chunks, Queue};
use crate::error::ApiError;
use crate::wire::finish_reason;

/// The item that grows.
#[derive(Debug)]
enum Item {
    Reasoning(String),
    Message(String),
    Call(Call),
}

/// The events of a streamed response.
#[derive(Debug)]
pub(super) struct ResponseStream {
    asked: Asked,
    frame: Frame,
    /// The items that have ended.
    output: Vec<Value>,
    item: Option<Item>,
    has_calls: bool,
    number: u64,
    queue: Queue,
}

impl ResponseStream {
    pub(super) fn new(asked: Asked, frame: Frame) -> Self {
        let mut stream = ResponseStream {
            asked,
            frame,
            output: Vec::new(),
            item: None,
            has_calls: false,
            number: 0,
            queue: Queue::default(),
        };
        for event in ["response.created", "response.in_progress"] {
            let response = stream.frame.response("in_progress", &[], None);
            stream.send(event, json!({"response": response}));
        }
        stream
    }

    fn send(&mut self, event: &str, fields: Value) {
        let mut data = json!({"type": event, "sequence_number": self.number});
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        self.number += 1;
        self.queue.ready.push_back(format!("event: {event}\ndata: {data}\n\n"));
    }

    /// The place and the id of the item that grows.
    fn place(&self, item: &Value) -> Value {
        json!({"output_index": self.output.len(), "item_id": item["id"]})
    }

    fn begin(&mut self, item: Item) {
        self.end("completed");
        let index = self.output.len();
        let added = match &item {
            Item::Reasoning(_) => self.frame.reasoning(index, ""),
            Item::Message(_) => self.frame.message_of(index, "in_progress", json!([])),
            Item::Call(call) => self.frame.call(index, "in_progress", call),
        };
        self.send("response.output_item.added", json!({"output_index": index, "item": added}));
        if matches!(item, Item::Message(_)) {
            let place = with(self.place(&added), json!({"content_index": 0, "part": part("")}));
            self.send("response.content_part.added", place);
        }
        self.item = Some(item);
    }

    /// End the item that grows.
    fn end(&mut self, status: &str) {
        let index = self.output.len();
        let done = match self.item.take() {
            None => return,
            Some(Item::Reasoning(text)) => {
                let done = self.frame.reasoning(index, &text);
                let fields = with(self.place(&done), json!({"content_index": 0, "text": text}));
                self.send("response.reasoning_text.done", fields);
                done
            }
            Some(Item::Message(text)) => {
                let done = self.frame.message(index, status, &text);
                let place = with(self.place(&done), json!({"content_index": 0}));
                let fields = with(place.clone(), json!({"text": text, "logprobs": []}));
                self.send("response.output_text.done", fields);
                self.send("response.content_part.done", with(place, json!({"part": part(&text)})));
                done
            }
            Some(Item::Call(call)) => {
                let done = self.frame.call(index, status, &call);
                let fields = with(self.place(&done), json!({"name": call.name, "arguments": call.arguments}));
                self.send("response.function_call_arguments.done", fields);
                done
            }
        };
        self.send("response.output_item.done", json!({"output_index": index, "item": done}));
        self.output.push(done);
    }

    fn text(&mut self, text: &str) {
        if !matches!(self.item, Some(Item::Message(_))) {
            self.begin(Item::Message(String::new()));
        }
        if let Some(Item::Message(whole)) = &mut self.item {
            whole.push_str(text);
        }
        let place = self.place(&self.frame.message(self.output.len(), "", ""));
        let fields = with(place, json!({"content_index": 0, "delta": text, "logprobs": []}));
        self.send("response.output_text.delta", fields);
    }

    fn thought(&mut self, text: &str) {
        if !matches!(self.item, Some(Item::Reasoning(_))) {
            self.begin(Item::Reasoning(String::new()));
        }
        if let Some(Item::Reasoning(whole)) = &mut self.item {
            whole.push_str(text);
        }
        let place = self.place(&self.frame.reasoning(self.output.len(), ""));
        self.send("response.reasoning_text.delta", with(place, json!({"content_index": 0, "delta": text})));
    }

    fn call(&mut self, delta: ToolCallDelta) {
        self.has_calls = true;
        if let Some(name) = delta.name {
            let id = call_id(&self.frame.id, 0, delta.index);
            self.begin(Item::Call(Call { id, name, arguments: String::new() }));
        }
        let Some(Item::Call(call)) = &mut self.item else { return };
        call.arguments.push_str(&delta.arguments);
        if !delta.arguments.is_empty() {
            let item = self.frame.call(self.output.len(), "", call);
            let fields = with(self.place(&item), json!({"delta": delta.arguments}));
            self.send("response.function_call_arguments.delta", fields);
        }
    }
}

/// One object with the keys of both.
fn with(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

impl Chunks for ResponseStream {
    fn answers(&mut self) -> &mut Answers {
        &mut self.asked.answers
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    fn piece(&mut self, _: usize, piece: Piece) {
        for part in parts(piece.deltas) {
            match part {
                Part::Content(text) => self.text(&text),
                Part::Reasoning(text) => self.thought(&text),
                Part::Call(delta) => self.call(delta),
            }
        }
        if let Some(reason) = piece.finish {
            let status = status(finish_reason(reason, self.has_calls));
            if self.item.is_none() && self.output.is_empty() {
                self.begin(Item::Message(String::new()));
            }
            self.end(status);
            let usage = Some(self.asked.answers.usage());
            let response = self.frame.response(status, &self.output, usage);
            self.send(&format!("response.{status}"), json!({"response": response}));
        }
    }

    fn fail(&mut self, error: &ApiError) {
        let mut response = self.frame.response("failed", &self.output, None);
        let error = error.json();
        response["error"] = json!({"code": "server_error", "message": error["error"]["message"]});
        self.send("response.failed", json!({"response": response}));
    }

    /// The last piece said so.
    fn end(&mut self) {}
}
