//! Added tokens: control tokens such as `<|im_end|>`, which stand outside BPE.
//!
//! Here lives how they are found in a text and which of them are `special`. What is done with the text between
//! them is `pipeline`'s business.

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::vocabulary::check_token;

/// One entry of tokenizer.json's `added_tokens`, or a control or user-defined token of a GGUF file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) special: bool,
    /// The token swallows white space before it.
    #[serde(default)]
    pub(crate) lstrip: bool,
    /// The token swallows white space after it.
    #[serde(default)]
    pub(crate) rstrip: bool,
    #[serde(default)]
    pub(crate) single_word: bool,
}

/// Known models have up to some thousands.
pub(crate) const MAX_ADDED_TOKENS: usize = 1 << 14;
/// What finds the tokens takes some hundred bytes for each of theirs.
const MAX_BYTES: usize = 1 << 18;

/// The longest end of a text that is looked at as the beginning of a token.
const MOST_BEGUN: usize = 64;

/// A stretch of a text, as far as control tokens go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Segment<'a> {
    Text(&'a str),
    Token(&'a AddedToken),
}

/// All added tokens, in the order of the file.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    by_id: AHashMap<u32, usize>,
    by_content: AHashMap<String, usize>,
    /// The longest token at the leftmost place wins, as in the library.
    finder: AhoCorasick,
}

impl AddedTokens {
    /// Takes the added tokens of `file`, where `key_of` names the one at a place.
    pub(crate) fn new(file: &str, key_of: fn(usize, &AddedToken) -> String, tokens: Vec<AddedToken>) -> Result<Self> {
        let mut bytes = 0;
        for (i, token) in tokens.iter().enumerate() {
            let invalid = |problem: String| Error::invalid(file, &key_of(i, token), problem);
            if token.content.is_empty() {
                return Err(invalid("is empty".into()));
            }
            check_token(&token.content, token.id).map_err(invalid)?;
            bytes += token.content.len();
            if bytes > MAX_BYTES {
                return Err(invalid(format!("is where the added tokens pass {MAX_BYTES} bytes in all")));
            }
            if token.single_word {
                let key = format!("{}.single_word", key_of(i, token));
                return Err(Error::unsupported(file, &key, "true", "no Qwen2.5 tokenizer has it"));
            }
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(|e| Error::invalid(file, "the added tokens", e))?;
        let by_id = tokens.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        let by_content = tokens.iter().enumerate().map(|(i, token)| (token.content.clone(), i)).collect();
        Ok(Self { tokens, by_id, by_content, finder })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    /// The bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.tokens.iter().map(|token| token.content.len()).max().unwrap_or(0)
    }

    /// Whether a token swallows the white space beside it, and a text of any length with it.
    pub(crate) fn any_strips(&self) -> bool {
        self.tokens.iter().any(|token| token.lstrip || token.rstrip)
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).and_then(|&i| self.tokens.get(i))
    }

    pub(crate) fn by_content(&self, content: &str) -> Option<&AddedToken> {
        self.by_content.get(content).and_then(|&i| self.tokens.get(i))
    }

    /// Where in `text` a token begins: one that stands there, or one whose end may follow behind the text.
    pub(crate) fn starts(&self, text: &str) -> Vec<usize> {
        let mut starts = Vec::new();
        let mut from = 0;
        // Tokens may overlap, so the search goes on behind the first character of each.
        while let Some(found) = text.get(from..).and_then(|rest| self.finder.find(rest)) {
            let at = from + found.start();
            starts.push(at);
            from = at + text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
        }
        let last = text.char_indices().rev().take_while(|(at, _)| text.len() - at <= MOST_BEGUN);
        let begins = |end: &str| self.tokens.iter().any(|t| t.content.len() > end.len() && t.content.starts_with(end));
        starts.extend(last.map(|(at, _)| at).filter(|at| text.get(*at..).is_some_and(begins)));
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    /// Cuts `text` at every control token written in it.
    pub(crate) fn segments<'a>(&'a self, text: &'a str) -> Vec<Segment<'a>> {
        self.segments_by(text, text)
    }

    /// Cuts `text` where there are control tokens in `guarded`, which has as many characters.
    pub(crate) fn segments_by<'a>(&'a self, guarded: &str, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let (mut done, mut rest) = (0, text);
        for found in self.finder.find_iter(guarded) {
            let between = cut(&mut rest, guarded.get(done..found.start()).unwrap_or_default());
            segments.extend(Some(between).filter(|between| !between.is_empty()).map(Segment::Text));
            segments.extend(self.tokens.get(found.pattern().as_usize()).map(Segment::Token));
            cut(&mut rest, guarded.get(found.range()).unwrap_or_default());
            done = found.end();
        }
        segments.extend(Some(rest).filter(|rest| !rest.is_empty()).map(Segment::Text));
        segments
    }
}

/// Cuts as many characters off `rest` as `like` has.
fn cut<'a>(rest: &mut &'a str, like: &str) -> &'a str {
    let at = match rest.get(..like.len()) == Some(like) {
        true => like.len(),
        false => like.chars().zip(rest.chars()).map(|(_, c)| c.len_utf8()).sum(),
    };
    let (first, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
    *rest = after;
    first
}
