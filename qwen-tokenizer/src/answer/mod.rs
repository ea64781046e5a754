//! What a model wrote, as it comes: its text, its thoughts, and its calls of tools.
//!
//! Models of this family call tools as Qwen2.5's and Hermes' templates ask for: a JSON object with a name and arguments
//! between `<tool_call>` and `</tool_call>`, one block for each call, with or without text around them. [`AnswerParser`]
//! reads an answer piece by piece, however it is cut, and never looks at a character twice unless a call turns out to be
//! none. It reads calls as JSON, not up to the next end: an argument may say `</tool_call>`. What it takes although no
//! template asks for it: blocks without line breaks or without their end, one redundant pair of braces, dictionaries of
//! Python, keys in any order, `parameters` for `arguments`; and where [`CallForms`] say so, the forms that Qwen2.5-Coder
//! prefers. Nothing is lost: what begins like a call and is none is [`Delta::Broken`], with its text.
//!
//! `object.rs` reads the JSON, `text.rs` joins the text around calls. Which templates write calls in this form is asked in
//! `template`.

mod object;
mod text;

use std::collections::VecDeque;

use object::ObjectScanner;
use serde::{Deserialize, Serialize};
use text::TextJoiner;

use crate::message::{Content, Message};
use crate::tool::{Arguments, ToolCall};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
const TOOLS_BEGIN: &str = "<tools>";
const TOOLS_END: &str = "</tools>";
pub(crate) const THOUGHT_BEGIN: &str = "<think>";
const THOUGHT_END: &str = "</think>";
const FENCE_BEGIN: &str = "```json";
const FENCE_END: &str = "```";

/// In which forms an answer may call tools, besides `<tool_call>` blocks. Each is taken for a call only where its JSON has
/// a name and arguments, since answers to other questions look alike.
///
/// Qwen2.5-Coder often answers in these, also where its template asks for blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CallForms {
    /// A JSON object in a fence, ```` ```json ````.
    pub fenced: bool,
    /// A JSON object between `<tools>` and `</tools>`.
    pub tools_blocks: bool,
    /// An answer that is a JSON object.
    pub bare: bool,
}

impl CallForms {
    /// `<tool_call>` blocks alone.
    pub const BLOCKS: CallForms = CallForms { fenced: false, tools_blocks: false, bare: false };
    /// All forms that models of this family were seen to write.
    pub const ALL: CallForms = CallForms { fenced: true, tools_blocks: true, bare: true };
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Delta {
    /// More of the text.
    Text(String),
    /// More of the thought that a reasoning model begins with, between `<think>` and `</think>`.
    Reasoning(String),
    /// More of a call.
    ToolCall(ToolCallDelta),
    /// What began like a call and is none: it stays part of the answer's text.
    Broken(BrokenCall),
}

/// More of a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ToolCallDelta {
    /// Which of the answer's calls: 0, 1 and so on.
    pub index: usize,
    /// The function, in the first delta of a call alone.
    pub name: Option<String>,
    /// More of the arguments' JSON text; in the end it is an empty text for a call without arguments.
    pub arguments: String,
    /// Whether the call is complete.
    pub is_complete: bool,
}

/// What began like a call and is none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokenCall {
    /// The call that deltas came of, if any did: it is not complete, and will not be.
    pub index: Option<usize>,
    /// What the model wrote.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Reads an answer piece by piece.
///
/// ```
/// use qwen_tokenizer::{AnswerParser, Delta};
///
/// let mut parser = AnswerParser::new();
/// let mut deltas = parser.push("I'll look.\n<tool_call>\n{\"name\": \"weather\", \"argum");
/// deltas.extend(parser.push("ents\": {\"city\": \"Os"));
/// assert_eq!(deltas[0], Delta::Text("I'll look.".into()));
/// let Delta::ToolCall(call) = &deltas[1] else { panic!("{deltas:?}") };
/// assert_eq!((call.index, call.name.as_deref()), (0, Some("weather")));
/// parser.push("lo\"}}\n</tool_call>");
/// parser.finish();
/// let message = parser.into_message();
/// assert_eq!(message.tool_calls[0].function.arguments.as_str(), r#"{"city": "Oslo"}"#);
/// ```
#[derive(Debug, Clone, Default)]
pub struct AnswerParser {
    forms: CallForms,
    ignores_calls: bool,
    calls_in_thought: bool,
    in_thought: bool,
    state: State,
    /// What is still to be read: the rest of a piece, or what turned out to be no part of a call.
    input: VecDeque<char>,
    /// What may be the beginning of a marker.
    held: String,
    /// Text that is in no delta yet.
    plain: String,
    /// Whether there was anything but space.
    has_begun: bool,
    text: TextJoiner,
    thought: TextJoiner,
    /// The message's content: texts, and thoughts as they were written.
    content: String,
    content_text: TextJoiner,
    calls: Vec<ToolCall>,
    next_index: usize,
    deltas: Vec<Delta>,
}

#[derive(Debug, Clone, Default)]
enum State {
    /// Text, or a thought.
    #[default]
    Prose,
    Call(Box<Call>),
    /// Behind the JSON of a call.
    Behind {
        form: Form,
        is_doubled: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Block,
    Tools,
    Fence,
    Bare,
}

impl Form {
    /// What begins a call.
    fn begin(self) -> &'static str {
        match self {
            Form::Block => BEGIN,
            Form::Tools => TOOLS_BEGIN,
            Form::Fence => FENCE_BEGIN,
            Form::Bare => "{",
        }
    }

    /// What may follow its JSON.
    fn end(self) -> &'static str {
        match self {
            Form::Block => END,
            Form::Tools => TOOLS_END,
            Form::Fence => FENCE_END,
            Form::Bare => "",
        }
    }
}

#[derive(Debug, Clone)]
struct Call {
    form: Form,
    /// Everything that was read of it.
    raw: String,
    object: ObjectScanner,
    index: Option<usize>,
    /// Bytes of the arguments that are in deltas.
    sent: usize,
}

impl AnswerParser {
    /// A parser of an answer that calls tools by `<tool_call>` blocks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls are also found in these forms.
    #[must_use]
    pub fn forms(mut self, forms: CallForms) -> Self {
        self.forms = forms;
        self
    }

    /// Calls are text like any other, as where no tools were offered.
    #[must_use]
    pub fn without_calls(mut self) -> Self {
        self.ignores_calls = true;
        self
    }

    /// Whether the prompt ends with `<think>`, so that the answer begins within a thought.
    #[must_use]
    pub fn in_thought(mut self, in_thought: bool) -> Self {
        self.in_thought = in_thought;
        self
    }

    /// Whether what comes next belongs to a thought.
    #[must_use]
    pub fn is_in_thought(&self) -> bool {
        self.in_thought
    }

    /// Whether calls within a thought count. By default they do not: a model thinks about them there.
    #[must_use]
    pub fn calls_in_thought(mut self, count: bool) -> Self {
        self.calls_in_thought = count;
        self
    }

    /// Read on. The deltas do not depend on how the answer is cut, except for how they are cut themselves.
    pub fn push(&mut self, piece: &str) -> Vec<Delta> {
        self.input.extend(piece.chars());
        self.read();
        if let State::Call(call) = &mut self.state {
            self.deltas.extend(call.stream(&mut self.next_index));
        }
        self.flush();
        std::mem::take(&mut self.deltas)
    }

    /// The answer is complete. The last deltas.
    pub fn finish(&mut self) -> Vec<Delta> {
        loop {
            self.read();
            match std::mem::take(&mut self.state) {
                State::Prose => {
                    let held = std::mem::take(&mut self.held);
                    self.plain.push_str(&held);
                    break;
                }
                State::Call(call) => self.broken(*call, "the answer ends within it"),
                // The end of a block may be missing, or cut.
                State::Behind { .. } => self.held.clear(),
            }
        }
        self.flush();
        let has_calls = !self.calls.is_empty();
        let (text, content) = (self.text.finish(has_calls), self.content_text.finish(has_calls));
        self.content.push_str(&content);
        if !self.in_thought {
            self.add(Delta::Text(text));
        }
        std::mem::take(&mut self.deltas)
    }

    /// The message that the answer is: its calls, and the text around them as its content. Thoughts stay in the content as
    /// they were written, as do broken calls.
    #[must_use]
    pub fn into_message(mut self) -> Message {
        self.finish();
        if self.calls.is_empty() {
            return Message::assistant(self.content);
        }
        let content = (!self.content.is_empty()).then_some(Content::Text(self.content));
        Message { content, ..Message::assistant_calls(self.calls) }
    }

    /// The calls that are complete.
    pub fn tool_calls(&self) -> &[ToolCall] {
        &self.calls
    }

    fn read(&mut self) {
        while let Some(c) = self.input.pop_front() {
            match std::mem::take(&mut self.state) {
                State::Prose => self.in_prose(c),
                State::Call(call) => self.in_call(call, c),
                State::Behind { form, is_doubled } => self.behind_call(form, is_doubled, c),
            }
        }
    }

    fn in_prose(&mut self, c: char) {
        if self.forms.bare
            && !self.ignores_calls
            && !self.has_begun
            && !self.in_thought
            && self.held.is_empty()
            && c == '{'
        {
            return self.begin_call(Form::Bare, c);
        }
        self.held.push(c);
        while !self.held.is_empty() {
            let markers = self.markers();
            if let Some(marker) = markers.into_iter().flatten().find(|marker| **marker == self.held) {
                return self.at_marker(marker);
            }
            if markers.into_iter().flatten().any(|marker| marker.starts_with(&self.held)) {
                return;
            }
            let first = self.held.remove(0);
            self.has_begun |= !first.is_whitespace();
            self.plain.push(first);
        }
    }

    /// What means something here.
    fn markers(&self) -> [Option<&'static str>; 4] {
        let calls = !self.ignores_calls && (!self.in_thought || self.calls_in_thought);
        let thought = match (self.in_thought, self.has_begun) {
            (true, _) => Some(THOUGHT_END),
            (false, false) => Some(THOUGHT_BEGIN),
            (false, true) => None,
        };
        [
            thought,
            calls.then_some(BEGIN),
            (calls && self.forms.tools_blocks).then_some(TOOLS_BEGIN),
            (calls && self.forms.fenced).then_some(FENCE_BEGIN),
        ]
    }

    fn at_marker(&mut self, marker: &'static str) {
        self.held.clear();
        self.has_begun = true;
        match [Form::Block, Form::Tools, Form::Fence].into_iter().find(|form| form.begin() == marker) {
            Some(form) => self.state = State::Call(Call::begin(form, marker)),
            None => {
                self.flush();
                // In a message it stands as it was written.
                let added = self.content_text.push(marker);
                self.content.push_str(&added);
                self.in_thought = marker == THOUGHT_BEGIN;
                self.text.call();
                self.thought.call();
            }
        }
    }

    /// A call that begins with the brace `c`.
    fn begin_call(&mut self, form: Form, c: char) {
        self.has_begun = true;
        self.in_call(Call::begin(form, ""), c);
    }

    fn in_call(&mut self, mut call: Box<Call>, c: char) {
        call.raw.push(c);
        match call.object.push(c) {
            Ok(false) => self.state = State::Call(call),
            Err(reason) => {
                // The character may begin something else.
                call.raw.pop();
                self.input.push_front(c);
                self.broken(*call, reason);
            }
            Ok(true) => match call.complete() {
                Err(reason) => self.broken(*call, reason),
                Ok(complete) => {
                    self.flush();
                    let (form, is_doubled) = (call.form, call.object.is_doubled);
                    self.deltas.push(call.finish(&complete, &mut self.next_index));
                    self.calls.push(complete);
                    for joiner in [&mut self.text, &mut self.thought, &mut self.content_text] {
                        joiner.call();
                    }
                    self.state = State::Behind { form, is_doubled };
                }
            },
        }
    }

    fn behind_call(&mut self, form: Form, mut is_doubled: bool, c: char) {
        if self.held.is_empty() && c.is_whitespace() {
            self.state = State::Behind { form, is_doubled };
            return;
        }
        self.held.push(c);
        match self.held.as_str() {
            "}" if is_doubled => {
                is_doubled = false;
                self.held.clear();
            }
            // Several calls in one block.
            "{" if form != Form::Bare => {
                self.held.clear();
                return self.begin_call(form, c);
            }
            held if held == form.end() => return self.held.clear(),
            held if form.end().starts_with(held) => {}
            // The end is missing.
            held => {
                held.chars().rev().for_each(|c| self.input.push_front(c));
                return self.held.clear();
            }
        }
        self.state = State::Behind { form, is_doubled };
    }

    /// What was read of a call is none.
    fn broken(&mut self, mut call: Call, reason: &'static str) {
        self.flush();
        let outstanding = call.stream(&mut self.next_index);
        self.deltas.extend(outstanding);
        // Another one may begin within it.
        let rest =
            call.raw.get(1..).and_then(|rest| rest.find(BEGIN)).map_or(String::new(), |at| call.raw.split_off(at + 1));
        rest.chars().rev().for_each(|c| self.input.push_front(c));
        if call.form != Form::Block {
            self.plain.push_str(&call.raw);
            return self.flush();
        }
        let added = self.content_text.push(&call.raw);
        self.content.push_str(&added);
        let joiner = if self.in_thought { &mut self.thought } else { &mut self.text };
        let added = joiner.push(&call.raw);
        let text = call.raw.trim_end().to_owned();
        let before = added.strip_suffix(&text).unwrap_or_default().to_owned();
        self.add(Delta::Text(before));
        self.deltas.push(Delta::Broken(BrokenCall { index: call.index, text, reason }));
    }

    /// Make a delta of the text so far.
    fn flush(&mut self) {
        let plain = std::mem::take(&mut self.plain);
        let added = self.content_text.push(&plain);
        self.content.push_str(&added);
        let delta = match self.in_thought {
            true => Delta::Reasoning(self.thought.push(&plain)),
            false => Delta::Text(self.text.push(&plain)),
        };
        self.add(delta);
    }

    fn add(&mut self, delta: Delta) {
        match (self.deltas.last_mut(), delta) {
            (_, Delta::Text(added) | Delta::Reasoning(added)) if added.is_empty() => {}
            (Some(Delta::Text(text)), Delta::Text(added)) => text.push_str(&added),
            (Some(Delta::Reasoning(text)), Delta::Reasoning(added)) => text.push_str(&added),
            (_, delta) => self.deltas.push(delta),
        }
    }
}

impl Call {
    fn begin(form: Form, marker: &str) -> Box<Self> {
        Box::new(Call { form, raw: marker.into(), object: ObjectScanner::default(), index: None, sent: 0 })
    }

    fn name(&self) -> Option<String> {
        self.object.name.end.and_then(|_| serde_json::from_str(self.object.part(self.object.name)).ok())
    }

    /// What is known of the call and in no delta yet.
    fn stream(&mut self, next_index: &mut usize) -> Option<Delta> {
        let arguments = self.object.part(self.object.arguments);
        // In the other forms it may turn out to be text, and arguments that are a text are decoded as a whole.
        if self.form != Form::Block || arguments.is_empty() || arguments.starts_with('"') {
            return None;
        }
        let added = arguments.get(self.sent..).unwrap_or_default().to_owned();
        let name = if self.index.is_none() { Some(self.name()?) } else { None };
        self.sent = arguments.len();
        let index = *self.index.get_or_insert_with(|| next(next_index));
        let is_new = name.is_some() || !added.is_empty();
        is_new.then_some(Delta::ToolCall(ToolCallDelta { index, name, arguments: added, is_complete: false }))
    }

    /// The call that its object says.
    fn complete(&self) -> Result<ToolCall, &'static str> {
        let name = self.name().ok_or("its JSON has no name")?;
        let json = self.object.part(self.object.arguments);
        if self.form != Form::Block && json.is_empty() {
            return Err("its JSON has no arguments");
        }
        let arguments: Arguments = match json {
            "" => "".into(),
            json => serde_json::from_str(json).map_err(|_| "its arguments cannot be read")?,
        };
        let mut call: ToolCall = serde_json::from_str(self.object.json()).map_err(|_| "its JSON is no call")?;
        // The first ones of several, as in the deltas.
        (call.function.name, call.function.arguments) = (name, arguments);
        call.function.extra.remove("parameters");
        Ok(call)
    }

    /// The last delta of the call.
    fn finish(mut self, complete: &ToolCall, next_index: &mut usize) -> Delta {
        let name = self.index.is_none().then(|| complete.function.name.clone());
        let index = *self.index.get_or_insert_with(|| next(next_index));
        let arguments = complete.function.arguments.as_str().get(self.sent..).unwrap_or_default().to_owned();
        Delta::ToolCall(ToolCallDelta { index, name, arguments, is_complete: true })
    }
}

fn next(index: &mut usize) -> usize {
    *index += 1;
    *index - 1
}

/// The message of the assistant that `answer` is. What is said about calls in a thought is no call.
pub(crate) fn parse(answer: &str) -> Message {
    // A template may have begun the thought.
    let in_thought = answer.split_once(THOUGHT_END).is_some_and(|(thought, _)| !thought.contains(THOUGHT_BEGIN));
    let mut parser = AnswerParser::new().in_thought(in_thought);
    parser.push(answer);
    parser.into_message()
}

/// Whether there is a call of this function in a text.
pub(crate) fn has_call(text: &str, name: &str) -> bool {
    let mut parser = AnswerParser::new().calls_in_thought(true);
    parser.push(text);
    parser.tool_calls().iter().any(|call| call.function.name == name)
}

#[cfg(test)]
mod tests;
