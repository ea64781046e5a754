//! Added tokens: control tokens such as `<|im_end|>`, which stand outside BPE.
//!
//! Here lives how they are found in a text and which of them are `special`. What is done with the text between
//! them is `pipeline`'s business.

use std::ops::Range;

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, Input, MatchKind};
use regex_automata::meta::Regex;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::vocabulary::check_token;

/// One entry of tokenizer.json's `added_tokens`, or a control or user-defined token of a GGUF file.
#[derive(Debug, Clone, Default, Deserialize)]
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
    /// The token is none beside a letter, a digit or an underscore.
    #[serde(default)]
    pub(crate) single_word: bool,
    /// The token is looked for in the normalised text between those that are not, in its own normal form.
    #[serde(default)]
    pub(crate) normalized: bool,
    /// The normal form, where it is another than the token itself.
    #[serde(skip)]
    pub(crate) form: Option<String>,
}

impl AddedToken {
    /// A token without further rules.
    pub(crate) fn new(id: u32, content: &str, special: bool) -> Self {
        Self { id, content: content.to_owned(), special, ..Self::default() }
    }

    /// The text that the token is found by, and that it stands for.
    pub(crate) fn text(&self) -> &str {
        self.form.as_deref().unwrap_or(&self.content)
    }
}

/// Known models have up to some thousands.
pub(crate) const MAX_ADDED_TOKENS: usize = 1 << 14;
/// What finds the tokens takes some hundred bytes for each of theirs.
const MAX_BYTES: usize = 1 << 18;

/// The longest end of a text that is looked at as the beginning of a token.
const MOST_BEGUN: usize = 64;

/// A stretch of a text by its bytes, and the token that it is, if it is one.
pub(crate) type Piece<'a> = (Range<usize>, Option<&'a AddedToken>);

/// All added tokens, in the order of the file.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    by_id: AHashMap<u32, usize>,
    by_content: AHashMap<String, usize>,
    /// Finds the tokens that stand in texts as they are.
    plain: Finder,
    /// Finds those that stand in normalised texts; most tokenizers have none.
    normal: Option<Finder>,
    /// What a letter, a digit or an underscore is, where a token asks for it.
    word: Option<Regex>,
}

/// Finds tokens: the longest at the leftmost place, as in the library.
#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    /// The place in the list of each token.
    tokens: Vec<usize>,
}

impl AddedTokens {
    /// Takes the added tokens of `file`, where `key_of` names the one at a place and `normal` gives normal forms.
    pub(crate) fn new(
        file: &str,
        key_of: fn(usize, &AddedToken) -> String,
        mut tokens: Vec<AddedToken>,
        normal: impl Fn(&str) -> Result<String>,
    ) -> Result<Self> {
        let mut bytes = 0;
        for (i, token) in tokens.iter_mut().enumerate() {
            if token.normalized {
                token.form = Some(normal(&token.content)?).filter(|form| *form != token.content);
            }
            let invalid = |problem: String| Error::invalid(file, &key_of(i, token), problem);
            if token.text().is_empty() {
                return Err(invalid("is empty".into()));
            }
            check_token(&token.content, token.id).map_err(invalid)?;
            bytes += token.content.len().max(token.text().len());
            if bytes > MAX_BYTES {
                return Err(invalid(format!("is where the added tokens pass {MAX_BYTES} bytes in all")));
            }
        }
        let unfit = |e: String| Error::invalid(file, "the added tokens", e);
        let finder = |normalized: bool| {
            let those = tokens.iter().enumerate().filter(|(_, token)| token.normalized == normalized);
            let (tokens, texts): (Vec<usize>, Vec<&str>) = those.map(|(i, token)| (i, token.text())).unzip();
            let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
            automaton.map(|automaton| Finder { automaton, tokens }).map_err(|e| unfit(e.to_string()))
        };
        let (plain, normal) = (finder(false)?, finder(true)?);
        let has_words = tokens.iter().any(|token| token.single_word);
        let word = if has_words { Some(Regex::new(r"\w").map_err(|e| unfit(e.to_string()))?) } else { None };
        let by_id = tokens.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        let by_content = tokens.iter().enumerate().map(|(i, token)| (token.content.clone(), i)).collect();
        let normal = Some(normal).filter(|normal| !normal.tokens.is_empty());
        Ok(Self { tokens, by_id, by_content, plain, normal, word })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    /// The bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.tokens.iter().map(|token| token.content.len().max(token.text().len())).max().unwrap_or(0)
    }

    /// Whether a token swallows the white space beside it, and a text of any length with it.
    pub(crate) fn any_strips(&self) -> bool {
        self.tokens.iter().any(|token| token.lstrip || token.rstrip)
    }

    /// Whether a token is looked for in normalised texts.
    pub(crate) fn any_normalized(&self) -> bool {
        self.normal.is_some()
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).and_then(|&i| self.tokens.get(i))
    }

    pub(crate) fn by_content(&self, content: &str) -> Option<&AddedToken> {
        self.by_content.get(content).and_then(|&i| self.tokens.get(i))
    }

    /// Where in `text` a token begins: one that stands there, or one whose end may follow behind the text.
    pub(crate) fn starts(&self, text: &str) -> Vec<usize> {
        self.starts_by(&self.plain, text)
    }

    /// As [`starts`](Self::starts), in a normalised text and of the tokens that stand in such.
    pub(crate) fn normal_starts(&self, text: &str) -> Vec<usize> {
        self.normal.as_ref().map_or_else(Vec::new, |normal| self.starts_by(normal, text))
    }

    fn starts_by(&self, finder: &Finder, text: &str) -> Vec<usize> {
        let mut starts = Vec::new();
        let mut from = 0;
        // Tokens may overlap, so the search goes on behind the first character of each.
        while let Some(found) = finder.automaton.find(Input::new(text).span(from..text.len())) {
            starts.push(found.start());
            from = after_first(text, found.start());
        }
        let last = text.char_indices().rev().take_while(|(at, _)| text.len() - at <= MOST_BEGUN);
        let texts = || finder.tokens.iter().filter_map(|&i| self.tokens.get(i)).map(AddedToken::text);
        let begins = |end: &str| texts().any(|token| token.len() > end.len() && token.starts_with(end));
        starts.extend(last.map(|(at, _)| at).filter(|at| text.get(*at..).is_some_and(begins)));
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    /// Cuts `text` at every control token that stands in it, but for those with a character at one of the places
    /// `guarded`, which are in order.
    pub(crate) fn pieces(&self, text: &str, guarded: &[usize]) -> Vec<Piece<'_>> {
        self.pieces_by(&self.plain, text, guarded)
    }

    /// As [`pieces`](Self::pieces), of a normalised text and by the tokens that stand in such.
    pub(crate) fn normal_pieces(&self, text: &str, guarded: &[usize]) -> Vec<Piece<'_>> {
        match &self.normal {
            Some(normal) => self.pieces_by(normal, text, guarded),
            None => vec![(0..text.len(), None)],
        }
    }

    fn pieces_by(&self, finder: &Finder, text: &str, guarded: &[usize]) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let (mut from, mut done, mut spaces_end) = (0, 0, 0);
        while let Some(found) = finder.automaton.find(Input::new(text).span(from..text.len())) {
            let (mut start, mut end) = (found.start(), found.end());
            let next_guard = guarded.get(guarded.partition_point(|at| *at < start));
            if next_guard.is_some_and(|at| *at < end) {
                // What somebody wrote hides no token that begins within it.
                from = after_first(text, start);
                continue;
            }
            from = end;
            let token = finder.tokens.get(found.pattern().as_usize()).and_then(|&i| self.tokens.get(i));
            let Some(token) = token.filter(|token| !token.single_word || self.is_word(text, start, end)) else {
                continue;
            };
            if token.lstrip {
                start = done + text.get(done..start).map_or(0, |before| before.trim_end().len());
            }
            if token.rstrip {
                if end > spaces_end {
                    let after = text.get(end..).unwrap_or_default();
                    spaces_end = text.len() - after.trim_start().len();
                }
                end = spaces_end;
            }
            if done < start {
                pieces.push((done..start, None));
            }
            // White space that the token before has swallowed is none of this one, and all of it may be.
            if start < end {
                pieces.push((start..end, Some(token)));
            }
            done = end;
        }
        if done < text.len() {
            pieces.push((done..text.len(), None));
        }
        pieces
    }

    /// Whether no letter, digit or underscore stands beside a stretch of `text`.
    fn is_word(&self, text: &str, start: usize, end: usize) -> bool {
        let is_letter = |c: Option<char>| {
            c.is_some_and(|c| self.word.as_ref().is_some_and(|word| word.is_match(&*c.encode_utf8(&mut [0; 4]))))
        };
        let before = text.get(..start).and_then(|before| before.chars().next_back());
        let after = text.get(end..).and_then(|after| after.chars().next());
        !is_letter(before) && !is_letter(after)
    }
}

/// The place behind the character at `at`.
fn after_first(text: &str, at: usize) -> usize {
    at + text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
}
