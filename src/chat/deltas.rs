//! The answer of a chat in parts: text, thoughts and calls of tools.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use qwen_tokenizer::Delta;

use super::reply::Reply;
use crate::channel::Wait;
use crate::error::Result;

/// The parts of an answer as they come; made by [`Reply::deltas`].
///
/// ```
/// use qwen::{Delta, Engine, GenerateOptions, Tool};
/// use serde_json::json;
///
/// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
/// let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
/// let tools = [Tool::function("get_time", "Current local time of a city", city)];
/// let mut chat = engine.chat().tools(tools).options(GenerateOptions::new().greedy());
/// let mut arguments = String::new();
/// for delta in chat.send("Which time is it now in Cairo?")?.deltas() {
///     match delta? {
///         Delta::Text(text) => print!("{text}"),
///         Delta::ToolCall(call) => arguments.push_str(&call.arguments),
///         _ => {}
///     }
/// }
/// assert_eq!(arguments, r#"{"city": "Cairo"}"#);
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the deltas cancels the answer"]
pub struct Deltas {
    reply: Reply,
    ready: VecDeque<Delta>,
}

impl Reply {
    /// The parts of the answer as they come, told apart: text, the thought of a reasoning model, and calls of tools, whose
    /// arguments arrive piece by piece.
    pub fn deltas(mut self) -> Deltas {
        let ready = std::mem::take(&mut self.deltas).into();
        Deltas { reply: self, ready }
    }
}

impl Deltas {
    /// The answer itself: for its statistics and the reason why it ended.
    pub fn reply(&self) -> &Reply {
        &self.reply
    }

    /// The answer itself, with what was not read of it.
    pub fn into_reply(self) -> Reply {
        self.reply
    }

    /// The next part if it is there: see [`TextStream::try_next`](crate::TextStream::try_next).
    pub fn try_next(&mut self) -> Poll<Option<Result<Delta>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next part for a task: see [`TextStream::poll_next`](crate::TextStream::poll_next).
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delta>>> {
        self.advance(&mut Wait::Wake(context))
    }

    fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<Delta>>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(delta)));
            }
            let piece = ready!(self.reply.advance(wait));
            self.ready.extend(self.reply.deltas.drain(..));
            match piece {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.ready.is_empty() => return Poll::Ready(None),
                None => {}
            }
        }
    }
}

impl Iterator for Deltas {
    type Item = Result<Delta>;

    fn next(&mut self) -> Option<Result<Delta>> {
        Wait::block(|wait| self.advance(wait))
    }
}
