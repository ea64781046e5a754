//! The prompt that a chat's fields are: messages, tools and variables of the template.

use qwen::{ChatInput, EncodedChat, Engine, Message, Tool};
use serde_json::{Map, Value};

use super::messages;
use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// A conversation and what the template is given beside it.
#[derive(Debug, Default)]
pub(crate) struct Prompt {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) variables: Map<String, Value>,
    pub(crate) without_answer: bool,
}

impl Prompt {
    /// Take the fields `messages`, `tools` and `chat_template_kwargs`.
    ///
    /// # Errors
    /// For what no template here shows.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self> {
        let messages = fields
            .value("messages")
            .ok_or_else(|| ApiError::invalid("messages", "is missing").code("missing_required_parameter"))?;
        Ok(Prompt {
            messages: messages::read(messages)?,
            tools: fields.value("tools").map(messages::tools).transpose()?.unwrap_or_default(),
            variables: fields.take("chat_template_kwargs")?.unwrap_or_default(),
            without_answer: false,
        })
    }

    /// Take the field `add_generation_prompt`, too: whether the prompt ends with the beginning of an answer.
    ///
    /// # Errors
    /// As [`Prompt::read`].
    pub(crate) fn read_whole(fields: &mut Fields) -> Result<Self> {
        let prompt = Prompt::read(fields)?;
        let without_answer = !fields.take("add_generation_prompt")?.unwrap_or(true);
        Ok(Prompt { without_answer, ..prompt })
    }

    /// The template's text, and its ids, of which there may be `limit`.
    ///
    /// # Errors
    /// For messages that the template refuses, and prompts that are too long.
    pub(crate) fn encode(&self, engine: &Engine, limit: usize) -> Result<EncodedChat> {
        Ok(engine.tokenizer()?.encode_chat_within(&self.input(), limit)?)
    }

    /// The template's text.
    ///
    /// # Errors
    /// For messages that the template refuses.
    pub(crate) fn render(&self, engine: &Engine) -> Result<String> {
        Ok(engine.tokenizer()?.render_chat(&self.input())?)
    }

    fn input(&self) -> ChatInput<'_> {
        let mut input = ChatInput::new(&self.messages).tools(&self.tools).add_generation_prompt(!self.without_answer);
        for (name, value) in &self.variables {
            input = input.variable(name.as_str(), value.clone());
        }
        input
    }
}
