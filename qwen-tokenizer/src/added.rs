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

/// What finds the tokens takes some hundred bytes for each of theirs.
const MAX_BYTES: usize = 1 << 18;

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

    /// The tokens that a template writes: those in its source, and those of its variables.
    pub(crate) fn written_in<'a>(&'a self, source: &str, named: impl Iterator<Item = &'a str>) -> Vec<&'a AddedToken> {
        let mut places: Vec<usize> = self.finder.find_iter(source).map(|found| found.pattern().as_usize()).collect();
        places.extend(named.filter_map(|content| self.by_content.get(content)).copied());
        places.sort_unstable();
        places.dedup();
        places.into_iter().filter_map(|place| self.tokens.get(place)).collect()
    }

    /// Cuts `text` at every control token written in it.
    pub(crate) fn segments<'a>(&'a self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            if let Some(between) = text.get(done..found.start()).filter(|s| !s.is_empty()) {
                segments.push(Segment::Text(between));
            }
            segments.extend(self.tokens.get(found.pattern().as_usize()).map(Segment::Token));
            done = found.end();
        }
        segments.extend(text.get(done..).filter(|s| !s.is_empty()).map(Segment::Text));
        segments
    }
}
