//! A chat to ids: the template's control tokens are control tokens, everybody else's are text.
//!
//! How the two are told apart is said in `jinja::marks`. Here the marks are chosen, and the marked text is
//! checked against the plain one and cut at them.

use std::collections::HashSet;

use ahash::AHashMap;

use crate::added::{AddedToken, AddedTokens, Segment};
use crate::error::{Error, Result};
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

/// How long a chat may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) tokens: usize,
    /// The most bytes that as many tokens stand for.
    pub(crate) bytes: Option<usize>,
}

/// A template with its marked twin.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) template: ChatTemplate,
    marked: Marked,
}

#[derive(Debug)]
struct Marked {
    template: ChatTemplate,
    /// The content of each control token that the template knows, and its mark.
    marks: Vec<(String, char)>,
    /// Where each mark is in `marks`.
    places: AHashMap<char, usize>,
}

/// Marks are characters for private use, from here on.
const FIRST_MARK: char = '\u{f0000}';

impl Chat {
    pub(crate) fn new(template: ChatTemplate, added: &AddedTokens) -> Result<Self> {
        let tokens = added.written_in(template.source(), template.named_tokens());
        let marked = Marked::new(&template, &tokens, "")?;
        Ok(Self { template, marked })
    }

    /// Renders `input` and gives the stretches of its text to `encode`.
    pub(crate) fn encode(
        &self,
        input: &ChatInput<'_>,
        added: &AddedTokens,
        room: Room,
        encode: impl FnOnce(&[Segment<'_>]) -> Result<Vec<u32>>,
    ) -> Result<EncodedChat> {
        let variables = self.template.variables(input)?;
        let too_many = || Error::TooManyTokens { limit: room.tokens, bytes: None };
        let text = self.template.render_within(&variables, room.bytes.unwrap_or(usize::MAX))?.ok_or_else(too_many)?;
        if input.trusts_contents() {
            let ids = encode(&added.segments(&text))?;
            return Ok(EncodedChat { text, ids });
        }
        // Private-use characters hardly occur in chats. Where they do, others serve as marks.
        let others;
        let marked = if text.chars().any(|c| self.marked.is_mark(c)) {
            let tokens: Vec<&AddedToken> =
                self.marked.marks.iter().filter_map(|(content, _)| added.by_content(content)).collect();
            others = Marked::new(&self.template, &tokens, &text)?;
            &others
        } else {
            &self.marked
        };
        let marked_text = marked.template.render_variables(&variables)?;
        let segments = marked.segments(&marked_text, added);
        if !is_text(&segments, &text) {
            return Err(Error::ControlTokensRewritten);
        }
        let ids = encode(&segments)?;
        Ok(EncodedChat { text, ids })
    }
}

impl Marked {
    /// Marks `tokens` by characters which do not occur in `text`.
    fn new(template: &ChatTemplate, tokens: &[&AddedToken], text: &str) -> Result<Self> {
        let taken: HashSet<char> = text.chars().filter(|c| *c >= FIRST_MARK).collect();
        let free = ('\u{100000}'..='\u{10fffd}').chain(FIRST_MARK..='\u{ffffd}').filter(|c| !taken.contains(c));
        let marks: Vec<(String, char)> = tokens.iter().map(|token| token.content.clone()).zip(free).collect();
        if marks.len() < tokens.len() {
            return Err(Error::ControlTokensRewritten);
        }
        let places = marks.iter().enumerate().map(|(at, (_, mark))| (*mark, at)).collect();
        Ok(Self { template: template.marked(&marks)?, marks, places })
    }

    fn is_mark(&self, c: char) -> bool {
        c >= FIRST_MARK && self.places.contains_key(&c)
    }

    /// Cuts a marked text at its marks.
    fn segments<'a>(&self, text: &'a str, added: &'a AddedTokens) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut done = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| *c >= FIRST_MARK) {
            let Some((content, _)) = self.places.get(&c).and_then(|&place| self.marks.get(place)) else { continue };
            segments.extend(text.get(done..at).filter(|part| !part.is_empty()).map(Segment::Text));
            segments.extend(added.by_content(content).map(Segment::Token));
            done = at + c.len_utf8();
        }
        segments.extend(text.get(done..).filter(|part| !part.is_empty()).map(Segment::Text));
        segments
    }
}

/// Whether the segments with their tokens written out are `text`.
fn is_text(segments: &[Segment<'_>], text: &str) -> bool {
    let mut rest = text;
    for segment in segments {
        let part = match segment {
            Segment::Text(part) => part,
            Segment::Token(token) => token.content.as_str(),
        };
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}
