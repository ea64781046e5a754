//! A chat to ids: the template's control tokens are control tokens, everybody else's are text.
//!
//! How the two are told apart is said in `template::source`. Here the marks are chosen, and the marked text is
//! checked against the plain one and cut at them.

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
}

impl Chat {
    pub(crate) fn new(template: ChatTemplate, added: &AddedTokens) -> Result<Self> {
        let tokens: Vec<&AddedToken> = added
            .iter()
            .filter(|token| template.mentions(&token.content))
            .collect();
        let marked = Marked::new(&template, &tokens, "")?;
        Ok(Self { template, marked })
    }

    /// Renders `input` and gives the stretches of its text to `encode`.
    pub(crate) fn encode(
        &self,
        input: &ChatInput<'_>,
        added: &AddedTokens,
        encode: impl FnOnce(&[Segment<'_>]) -> Result<Vec<u32>>,
    ) -> Result<EncodedChat> {
        let variables = self.template.variables(input)?;
        let text = self.template.render_variables(variables.clone())?;
        if input.trusts_contents() {
            let ids = encode(&added.segments(&text))?;
            return Ok(EncodedChat { text, ids });
        }
        // Private-use characters hardly occur in chats. Where they do, others serve as marks.
        let others;
        let marked = if self
            .marked
            .marks
            .iter()
            .any(|(_, mark)| text.contains(*mark))
        {
            let tokens: Vec<&AddedToken> = self
                .marked
                .marks
                .iter()
                .filter_map(|(content, _)| added.by_content(content))
                .collect();
            others = Marked::new(&self.template, &tokens, &text)?;
            &others
        } else {
            &self.marked
        };
        let marked_text = marked.template.render_variables(variables)?;
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
        let taken: std::collections::HashSet<char> =
            text.chars().filter(|c| *c >= '\u{f0000}').collect();
        let free = ('\u{100000}'..='\u{10fffd}')
            .chain('\u{f0000}'..='\u{ffffd}')
            .filter(|c| !taken.contains(c));
        let marks: Vec<(String, char)> = tokens
            .iter()
            .map(|token| token.content.clone())
            .zip(free)
            .collect();
        if marks.len() < tokens.len() {
            return Err(Error::ControlTokensRewritten);
        }
        Ok(Self {
            template: template.marked(&marks)?,
            marks,
        })
    }

    /// Cuts a marked text at its marks.
    fn segments<'a>(&self, text: &'a str, added: &'a AddedTokens) -> Vec<Segment<'a>> {
        let is_mark = |c: char| c >= '\u{f0000}' && self.marks.iter().any(|(_, mark)| *mark == c);
        let mut segments = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(is_mark) {
            let (before, marked) = rest.split_at(at);
            if !before.is_empty() {
                segments.push(Segment::Text(before));
            }
            let mut chars = marked.chars();
            let mark = chars.next();
            let token = self.marks.iter().find(|(_, m)| Some(*m) == mark);
            segments.extend(
                token
                    .and_then(|(content, _)| added.by_content(content))
                    .map(Segment::Token),
            );
            rest = chars.as_str();
        }
        if !rest.is_empty() {
            segments.push(Segment::Text(rest));
        }
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
