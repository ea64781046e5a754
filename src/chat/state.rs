//! Conversations as data.
//!
//! Beside the messages a state has what the model read and wrote for them, id for id. Ids mean the same only with the same
//! vocabulary, so a fingerprint of it is saved with them. The template needs none: the text of a prompt is compared with
//! the saved one whenever it is rendered.

use std::collections::BTreeMap;

use qwen_tokenizer::{CallForms, Message, Tool};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Chat;
use super::history::{Border, History, Known, Turn};
use crate::engine::Engine;
use crate::error::Result;
use crate::events::info;
use crate::generate::GenerateOptions;
use crate::tool_choice::ToolChoice;

/// A conversation as data: made by [`Chat::state`](crate::Chat::state), resumed by [`Engine::resume`].
///
/// It holds the messages, the tools, the options (without stages of the program's own, which are code), and the ids that
/// the model read and wrote. As with [`Message`], its form
/// is JSON. Versions that this library does not know are refused by name; the JSON is the program's own data, as its
/// messages are, so that ids which do not fit their text are not looked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use]
pub struct ChatState {
    // The first key, so that the version is what an unknown one is refused for.
    version: Version,
    messages: Vec<Message>,
    /// What the model wrote, by the index of the message that was parsed of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    written: BTreeMap<usize, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<Tool>,
    #[serde(default, skip_serializing_if = "are_blocks")]
    pub(super) call_forms: CallForms,
    #[serde(default, skip_serializing_if = "is_auto")]
    pub(super) tool_choice: ToolChoice,
    #[serde(default = "may_be_several", skip_serializing_if = "are_several")]
    pub(super) parallel_calls: bool,
    #[serde(default)]
    pub(super) options: GenerateOptions,
    #[serde(default)]
    pub(super) trust_contents: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded: Option<Encoded>,
}

fn are_blocks(forms: &CallForms) -> bool {
    *forms == CallForms::BLOCKS
}

fn is_auto(choice: &ToolChoice) -> bool {
    *choice == ToolChoice::Auto
}

const fn may_be_several() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn are_several(parallel: &bool) -> bool {
    *parallel
}

/// What the model read and wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    /// The fingerprint of the vocabulary.
    vocabulary: String,
    text: String,
    ids: Vec<u32>,
    borders: Vec<Border>,
}

/// The version that this library writes and reads.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            VERSION => Ok(Version),
            other => Err(serde::de::Error::custom(format!(
                "a conversation of version {other}: this version of qwen-rs reads version {VERSION}"
            ))),
        }
    }
}

impl ChatState {
    pub(super) fn new(history: &History, chat: &Chat) -> Self {
        let Chat { engine, tools, call_forms, tool_choice, parallel_calls, options, trust_contents, .. } = chat;
        let (text, ids, borders) = history.known.parts();
        let written = history.turns.iter().enumerate().filter_map(|(at, turn)| Some((at, turn.written.clone()?)));
        let encoded = engine.fingerprint().filter(|_| !ids.is_empty()).map(|vocabulary| Encoded {
            vocabulary: vocabulary.into(),
            text: text.into(),
            ids: ids.into(),
            borders: borders.into(),
        });
        ChatState {
            version: Version,
            messages: history.messages(),
            written: written.collect(),
            tools: tools.clone(),
            call_forms: *call_forms,
            tool_choice: tool_choice.clone(),
            parallel_calls: *parallel_calls,
            options: options.clone(),
            trust_contents: *trust_contents,
            encoded,
        }
    }

    /// The messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The tools that the model may call.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// How answers are generated.
    pub fn options(&self) -> &GenerateOptions {
        &self.options
    }

    /// The history for an engine, without the ids if its vocabulary is another one.
    ///
    /// # Errors
    /// For a state that contradicts itself, and for ids beyond the vocabulary.
    pub(super) fn history(&mut self, engine: &Engine) -> Result<History> {
        let invalid = |reason: String| qwen_core::Error::argument("state", reason).into();
        let messages = std::mem::take(&mut self.messages);
        let len = messages.len();
        if let Some((index, _)) = self.written.last_key_value().filter(|(index, _)| **index >= len) {
            return Err(invalid(format!("`written` has message {index} of {len}")));
        }
        let turns = messages.into_iter().enumerate();
        let turns = turns.map(|(at, message)| Turn { message, written: self.written.remove(&at) }).collect();
        let mut known = Known::default();
        match self.encoded.take() {
            Some(Encoded { vocabulary, text, ids, borders }) if engine.fingerprint() == Some(&vocabulary) => {
                let num_ids = engine.config().vocab_size;
                if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= num_ids) {
                    return Err(invalid(format!(
                        "id {id} at position {position} is beyond the vocabulary, {num_ids} ids"
                    )));
                }
                known = Known::checked(text, ids, borders, len)
                    .ok_or_else(|| invalid("`borders` do not fit the text, the ids or the messages".into()))?;
            }
            Some(_) => info!("a conversation was saved with another vocabulary: it is encoded again"),
            None => {}
        }
        Ok(History { turns, known, ..History::default() })
    }
}
