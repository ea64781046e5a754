//! A chat to ids: control tokens of the template and of the model are control tokens, everybody else's are text.
//!
//! How they are told apart is said in `guard`.

use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::guard::Guards;
use crate::template::{ChatInput, ChatTemplate};

/// A chat as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedChat {
    /// The rendered text.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
}

impl EncodedChat {
    /// A chat that was read before, for [`encode_chat_after`](crate::Tokenizer::encode_chat_after).
    ///
    /// ```
    /// use qwen_tokenizer::EncodedChat;
    /// assert_eq!(EncodedChat::new("Hi", [17]).answered("!", &[0]), EncodedChat::new("Hi!", [17, 0]));
    /// ```
    pub fn new(text: impl Into<String>, ids: impl Into<Vec<u32>>) -> Self {
        Self { text: text.into(), ids: ids.into() }
    }

    /// This prompt with what the model answered to it: the ids that it generated, and their text.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// use qwen_tokenizer::{ChatInput, Message};
    /// let mut messages = vec![Message::user("Hi")];
    /// let prompt = tokenizer.encode_chat(&ChatInput::new(&messages))?;
    /// // Models need not write a text as the tokenizer would.
    /// let answer = [tokenizer.encode("H", false)?, tokenizer.encode("i", false)?].concat();
    /// messages.extend([Message::assistant("Hi"), Message::user("Bye")]);
    /// let before = prompt.answered("Hi", &answer);
    /// let next = tokenizer.encode_chat_after(&ChatInput::new(&messages), usize::MAX, &before)?;
    /// assert!(next.ids.starts_with(&before.ids));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    #[must_use]
    pub fn answered(mut self, text: &str, ids: &[u32]) -> Self {
        self.text.push_str(text);
        self.ids.extend_from_slice(ids);
        self
    }
}

/// How long a chat may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) tokens: usize,
    /// The most bytes that as many tokens stand for.
    pub(crate) bytes: Option<usize>,
}

/// The places of `text` whose characters are others in `guarded`, which ends with as many characters.
fn guarded_places(text: &str, guarded: &str) -> Vec<usize> {
    let mut places: Vec<usize> = text
        .char_indices()
        .rev()
        .zip(guarded.chars().rev())
        .filter(|((_, c), g)| c != g)
        .map(|((at, _), _)| at)
        .collect();
    places.reverse();
    places
}

/// Renders `input` and encodes its text with `codec`. What of it is `before` keeps those ids.
pub(crate) fn encode(
    template: &ChatTemplate,
    input: &ChatInput<'_>,
    codec: &Codec,
    room: Room,
    before: Option<&EncodedChat>,
) -> Result<EncodedChat> {
    let variables = template.variables(input)?;
    let too_many = || Error::TooManyTokens { limit: room.tokens, bytes: None };
    let text = template.render_within(&variables, room.bytes.unwrap_or(usize::MAX))?.ok_or_else(too_many)?;
    let mut guards = Guards::new(codec, &text);
    let guarded = if input.trusts_contents() { None } else { variables.guarded(&mut guards) };
    let guarded = guarded.map(|guarded| template.render_variables(&guarded)).transpose()?;
    if guarded.as_ref().is_some_and(|guarded| !guards.is_text(guarded)) {
        return Err(Error::ControlTokensRewritten);
    }
    let known = before.and_then(|before| Some((before, text.strip_prefix(&before.text)?)));
    let (mut ids, rest) = known.map_or((Vec::new(), text.as_str()), |(before, rest)| (before.ids.clone(), rest));
    let guarded = guarded.map_or_else(Vec::new, |guarded| guarded_places(rest, &guarded));
    ids.extend(codec.encode(rest, &guarded, room.tokens)?);
    if ids.len() > room.tokens {
        return Err(too_many());
    }
    Ok(EncodedChat { text, ids })
}
