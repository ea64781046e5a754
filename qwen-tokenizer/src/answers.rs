//! What a program asks about a checkpoint's templates: what the calls in an answer are, and what to be warned of.

use crate::error::Error;
use crate::message::Message;
use crate::template::{ChatInput, ChatTemplate};
use crate::tokenizer::Tokenizer;
use crate::{AnswerParser, answer, chat};

/// The most control tokens that a template is tried with.
const MOST_TRIED: usize = 16;

impl Tokenizer {
    /// The message that an answer's text is: calls of tools as [`Message::tool_calls`], the text around them as the content.
    ///
    /// Calls are found in the form of Qwen2.5 and Hermes, a JSON object between `<tool_call>` and `</tool_call>`, where the
    /// checkpoint's template writes calls in that form; arguments keep their form and every digit. What is no whole call
    /// stays text, and so does everything where the template writes calls otherwise.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// let answer = "I'll look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    /// let message = tokenizer.parse_answer(answer);
    /// assert_eq!(message.text().as_deref(), Some("I'll look."));
    /// assert_eq!(message.tool_calls[0].function.name, "weather");
    /// assert_eq!(message.tool_calls[0].function.arguments.as_str(), r#"{"city": "Oslo"}"#);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    #[must_use]
    pub fn parse_answer(&self, answer: &str) -> Message {
        match self.template_for(true).is_ok_and(ChatTemplate::writes_calls) {
            true => answer::parse(answer),
            false => Message::assistant(answer),
        }
    }

    /// A parser that finds the parts of an answer as it comes: calls of tools in the form in which this checkpoint's template
    /// writes them, none where it writes them otherwise, and the thought of a reasoning model. `prompt_ids` is the prompt
    /// that is answered: a template may have begun the thought.
    #[must_use]
    pub fn answer_parser(&self, prompt_ids: &[u32]) -> AnswerParser {
        // The line break behind it may be a token of its own.
        let end = prompt_ids.get(prompt_ids.len().saturating_sub(2)..).unwrap_or_default();
        let in_thought = self.decode(end, false).trim_end().ends_with(answer::THOUGHT_BEGIN);
        let parser = AnswerParser::new().in_thought(in_thought);
        match self.template_for(true).is_ok_and(ChatTemplate::writes_calls) {
            true => parser,
            false => parser.without_calls(),
        }
    }

    /// What whoever chose this checkpoint should know of its chat templates: that one escapes or rewrites what users write,
    /// or that control tokens in messages cannot be told from its own, so that chats with such are refused. Empty for most.
    /// Found by rendering some small chats, anew with each call.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert!(tokenizer.warnings().is_empty());
    /// let escaping = tokenizer.with_chat_template("{{ messages[0].content | replace('&', '&amp;') }}")?;
    /// assert!(escaping.warnings()[0].contains("changes what users write"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn warnings(&self) -> Vec<String> {
        let default = self.template_for(false).ok();
        // The one for chats with tools, where it is another.
        let tool_use =
            self.template_for(true).ok().filter(|tool_use| default.map(ChatTemplate::name) != Some(tool_use.name()));
        let mut warnings = Vec::new();
        for template in default.into_iter().chain(tool_use) {
            warnings.extend(template.changes_texts());
            if self.refuses_control_tokens(template) {
                warnings.push(format!(
                    "chat template `{}` searches or rewrites control tokens in what users write, so that they cannot be told \
                     from its own: chats whose messages hold some are refused, unless their contents are trusted",
                    template.name()
                ));
            }
        }
        warnings
    }

    /// Whether control tokens that a user wrote cannot be told from the template's own.
    fn refuses_control_tokens(&self, template: &ChatTemplate) -> bool {
        let tokens = self.inner.added.iter().filter(|token| token.special).take(MOST_TRIED);
        let said = tokens.fold("20481024".to_owned(), |said, token| said + " " + &token.content) + " 40962048";
        let messages = [Message::user(said)];
        let room = chat::Room { tokens: usize::MAX, bytes: None };
        let chat = chat::encode(template, &ChatInput::new(&messages), &self.inner, room, None);
        matches!(chat, Err(Error::ControlTokensRewritten))
    }
}
