//! The answer of a chat: a stream that joins the conversation when it ends.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use qwen_core::engine::sampling::Logprobs;
use qwen_core::engine::{Canceller, FinishReason};
use qwen_tokenizer::{AnswerParser, Delta, EncodedChat, Message, ToolCall};

use super::history::{History, Known, Turn};
use crate::channel::Wait;
use crate::error::Result;
use crate::stats::{PromptProgress, Stats};
use crate::stream::{StoppedBy, TextStream};

/// What happens to the conversation where no answer comes.
#[derive(Debug)]
pub(super) enum Otherwise {
    /// It stays.
    Stays,
    /// The question leaves it.
    TakesQuestion,
    /// The answer that was there before returns, with what was known of it.
    Returns(Box<(Turn, Known)>),
}

/// An answer of a [`Chat`](crate::Chat), piece by piece. Owned: it may move into a thread.
#[derive(Debug)]
#[must_use = "dropping a reply cancels it"]
pub struct Reply {
    pub(super) stream: TextStream,
    pub(super) text: String,
    pub(super) prompt: EncodedChat,
    // `None` once the answer was added to the conversation.
    pub(super) history: Option<Arc<Mutex<History>>>,
    /// That of the history when the answer began.
    pub(super) edition: u64,
    pub(super) otherwise: Otherwise,
    /// Finds the parts of the answer.
    pub(super) parser: AnswerParser,
    /// Those of the latest piece.
    pub(super) deltas: Vec<Delta>,
}

impl Reply {
    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn text(mut self) -> Result<String> {
        self.read_to_end()?;
        Ok(mem::take(&mut self.text))
    }

    /// Wait for the whole answer, and give it as the message that joins the conversation: with
    /// [`tool_calls`](Message::tool_calls), and their text not in the content.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn message(mut self) -> Result<Message> {
        self.read_to_end()?;
        Ok(self.parsed())
    }

    fn read_to_end(&mut self) -> Result<()> {
        self.try_for_each(|piece| piece.map(drop))
    }

    /// The calls of tools in the answer so far, as far as they are complete; see [`AnswerParser`]. None where the chat has
    /// no [tools](crate::Chat::tools). They stand in the answer's text, too.
    pub fn tool_calls(&self) -> &[ToolCall] {
        self.parser.tool_calls()
    }

    fn parsed(&self) -> Message {
        self.parser.clone().into_message()
    }

    /// The ids of the prompt: the whole conversation so far.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.prompt.ids
    }

    /// The ids of the answer so far; see [`TextStream::ids`].
    pub fn ids(&self) -> &[u32] {
        self.stream.ids()
    }

    /// See [`TokenStream::on_prompt_progress`](crate::TokenStream::on_prompt_progress).
    pub fn on_prompt_progress(&mut self, report: impl FnMut(PromptProgress) + Send + 'static) {
        self.stream.on_prompt_progress(report);
    }

    /// A handle that stops the answer from any thread, also while the prompt is being computed.
    pub fn canceller(&self) -> Canceller {
        self.stream.canceller()
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stream.finish_reason()
    }

    /// The token or the string that ended the answer, if one did.
    pub fn stopped_by(&self) -> Option<&StoppedBy> {
        self.stream.stopped_by()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.stream.stats()
    }

    /// See [`TokenStream::logprobs`](crate::TokenStream::logprobs).
    pub fn logprobs(&self) -> &[Logprobs] {
        self.stream.logprobs()
    }

    /// See [`TokenStream::unread`](crate::TokenStream::unread).
    pub fn unread(&self) -> usize {
        self.stream.unread()
    }

    /// The next piece if it is there: see [`TextStream::try_next`].
    pub fn try_next(&mut self) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next piece for a task: see [`TextStream::poll_next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Wake(context))
    }

    pub(super) fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<String>>> {
        let piece = ready!(self.stream.advance(wait));
        match &piece {
            Some(Ok(piece)) => {
                self.text.push_str(piece);
                self.deltas = self.parser.push(piece);
            }
            Some(Err(_)) | None => {
                self.deltas = self.parser.finish();
                self.close();
            }
        }
        Poll::Ready(piece)
    }

    /// Add the answer, as far as it came, to the conversation.
    fn close(&mut self) {
        let Some(history) = self.history.take() else { return };
        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.edition != self.edition {
            return;
        }
        history.replying = false;
        let is_complete = self.finish_reason().is_some_and(|reason| reason != FinishReason::Cancelled);
        if self.text.is_empty() && !is_complete {
            match mem::replace(&mut self.otherwise, Otherwise::Stays) {
                Otherwise::Stays => {}
                Otherwise::TakesQuestion => drop(history.turns.pop()),
                Otherwise::Returns(answer) => history.put_back(*answer),
            }
            return;
        }
        let message = self.parsed();
        let written = (!message.tool_calls.is_empty()).then(|| self.text.clone());
        // A stop string may have cut a token.
        let ids = self.stream.whole_ids().map(|ids| (self.text.as_str(), ids));
        history.answer(Turn { message, written }, self.prompt.clone(), ids);
    }
}

impl Iterator for Reply {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        Wait::block(|wait| self.advance(wait))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.close();
    }
}
