//! What was said in a conversation, and the ids that the model read and wrote for it.
//!
//! A text has several encodings, and a model need not choose the tokenizer's. So the ids of each prompt and of each answer
//! are kept, with the places where they begin and end: the next prompt begins with the very same ids as far as nothing was
//! changed, which is what an engine can re-use.

use qwen_tokenizer::{EncodedChat, Message, Role};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A message, and how it came to be.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) message: Message,
    /// What the model wrote, where the message is what was parsed of it.
    pub(super) written: Option<String>,
}

impl From<Message> for Turn {
    fn from(message: Message) -> Self {
        Turn { message, written: None }
    }
}

/// Where the answer that is the last of the first `messages` messages ends, or the prompt for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Border {
    pub(super) messages: usize,
    pub(super) is_answer: bool,
    /// Bytes of the text up to here.
    pub(super) text: usize,
    /// Ids up to here.
    pub(super) ids: usize,
}

/// The last prompt and its answer, as the model read and wrote them.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    text: String,
    ids: Vec<u32>,
    /// Ascending. The last one is the end.
    borders: Vec<Border>,
}

impl Known {
    /// What was saved, unless the figures contradict each other.
    pub(super) fn checked(text: String, ids: Vec<u32>, borders: Vec<Border>, messages: usize) -> Option<Self> {
        let ends = borders.last().is_some_and(|last| last.text == text.len() && last.ids == ids.len());
        let ascends = borders.is_sorted_by(|a, b| a.messages <= b.messages && a.text <= b.text && a.ids <= b.ids);
        let is_inside = |border: &Border| border.messages <= messages && text.is_char_boundary(border.text);
        (ends && ascends && borders.iter().all(is_inside)).then_some(Known { text, ids, borders })
    }

    pub(super) fn parts(&self) -> (&str, &[u32], &[Border]) {
        (&self.text, &self.ids, &self.borders)
    }

    /// What the prompt for `messages` messages goes on from, if anything is known. An earlier prompt ends with the
    /// beginning of an answer, so that only its own messages go on from it.
    pub(super) fn encoded(&self, messages: usize) -> Option<EncodedChat> {
        let goes_on = |border: &&Border| border.is_answer || border.messages == messages;
        let border = self.borders.iter().rev().find(goes_on)?;
        Some(EncodedChat::new(self.text.get(..border.text)?, self.ids.get(..border.ids)?))
    }

    /// Forget what was read or written for messages behind the first `messages`.
    pub(super) fn truncate(&mut self, messages: usize) {
        while self.borders.pop_if(|border| border.messages > messages).is_some() {}
        let (text, ids) = self.borders.last().map_or((0, 0), |border| (border.text, border.ids));
        self.text.truncate(text);
        self.ids.truncate(ids);
    }

    /// The model has read `prompt`, which is that of the first `messages` messages, and has written `answer`, which is
    /// unknown where the text that counts ends inside of a token.
    fn record(&mut self, messages: usize, prompt: EncodedChat, answer: Option<(&str, &[u32])>) {
        if !(prompt.text.starts_with(&self.text) && prompt.ids.starts_with(&self.ids)) {
            // The template has rewritten what was said before.
            self.borders.clear();
        }
        self.text = prompt.text;
        self.ids = prompt.ids;
        self.borders.push(Border { messages, is_answer: false, text: self.text.len(), ids: self.ids.len() });
        if let Some((text, ids)) = answer {
            self.text.push_str(text);
            self.ids.extend_from_slice(ids);
            let (text, ids) = (self.text.len(), self.ids.len());
            self.borders.push(Border { messages: messages + 1, is_answer: true, text, ids });
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) turns: Vec<Turn>,
    pub(super) known: Known,
    /// Counts the changes after which an answer to what was before belongs nowhere.
    pub(super) edition: u64,
    /// A reply that is still alive writes its message when it ends.
    pub(super) replying: bool,
}

impl History {
    /// What was said from message `index` on changes; an answer that is still arriving is not added.
    pub(super) fn changes_from(&mut self, index: usize) -> &mut Vec<Turn> {
        self.edition += 1;
        self.replying = false;
        self.known.truncate(index);
        &mut self.turns
    }

    /// Take back the last answer, with what was known until now.
    ///
    /// # Errors
    /// Where the last message is no answer, and while one is arriving.
    pub(super) fn take_answer(&mut self) -> Result<(Turn, Known)> {
        self.check_idle()?;
        let known = self.known.clone();
        match self.turns.pop_if(|turn| turn.message.role == Role::Assistant) {
            Some(answer) => {
                self.changes_from(self.turns.len());
                Ok((answer, known))
            }
            None => Err(qwen_core::Error::argument("regenerate", "the last message is no answer").into()),
        }
    }

    /// The contrary of [`History::take_answer`].
    pub(super) fn put_back(&mut self, (turn, known): (Turn, Known)) {
        self.turns.push(turn);
        self.known = known;
    }

    /// Add an answer to the messages so far.
    pub(super) fn answer(&mut self, turn: Turn, prompt: EncodedChat, written: Option<(&str, &[u32])>) {
        self.known.record(self.turns.len(), prompt, written);
        self.turns.push(turn);
    }

    pub(super) fn messages(&self) -> Vec<Message> {
        self.turns.iter().map(|turn| turn.message.clone()).collect()
    }

    /// The messages with the model's own texts in place of what was parsed of them; `None` where nothing was.
    pub(super) fn as_written(&self) -> Option<Vec<Message>> {
        let as_written = |turn: &Turn| turn.written.clone().map_or_else(|| turn.message.clone(), Message::assistant);
        let is_parsed = self.turns.iter().any(|turn| turn.written.is_some());
        is_parsed.then(|| self.turns.iter().map(as_written).collect())
    }

    pub(super) fn check_idle(&self) -> Result<()> {
        if self.replying {
            let reason = "a reply is still arriving: read it to its end, cancel it or drop it";
            return Err(qwen_core::Error::argument("chat", reason).into());
        }
        Ok(())
    }

    /// # Errors
    /// Where there is no such message.
    pub(super) fn check_index(&self, index: usize) -> Result<()> {
        let len = self.turns.len();
        match index < len {
            true => Ok(()),
            false => Err(qwen_core::Error::argument("index", format!("{index} of {len} messages")).into()),
        }
    }
}
