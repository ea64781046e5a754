//! Guards: control tokens that somebody other than the model wrote, told from those that the template writes.
//!
//! A rendered chat is one text, in which a control token that a user typed looks like one of the template's. So a chat
//! whose contents hold control tokens is rendered a second time, with the first character of each of those replaced by
//! a *guard*, a private-use character that occurs nowhere else. What is a control token in that text was written by the
//! template, in whatever way, or by the model; all else is text, whatever it looks like. The template compares and
//! searches guards as what they stand for (`jinja::guards`), and the plain text must come out the same but for them.
//!
//! What the model said (messages of the assistant) is not guarded: its control tokens are what it generated.

use std::sync::Arc;

use crate::codec::Codec;
use crate::jinja::Value;

/// Guards are characters for private use.
const CANDIDATES: [(u32, u32); 2] = [(0xe000, 0xf8ff), (0xf_0000, 0xf_fffd)];

/// First characters of control tokens and the guard of each.
pub(crate) struct Guards<'a> {
    codec: &'a Codec,
    /// The chat as it is: guards do not occur in it.
    text: &'a str,
    pairs: Vec<(char, char)>,
}

impl<'a> Guards<'a> {
    /// Guards for a chat whose text is `text`.
    pub(crate) fn new(codec: &'a Codec, text: &'a str) -> Self {
        Self { codec, text, pairs: Vec::new() }
    }

    /// First characters and their guards, as far as they were needed.
    pub(crate) fn pairs(&self) -> &[(char, char)] {
        &self.pairs
    }

    /// A value of the chat with guards in its texts; `None` where it needs none.
    pub(crate) fn guard(&mut self, value: &Value) -> Option<Value> {
        value.with_texts(&mut |text| self.guarded(text))
    }

    /// `text` with guards; `None` where it needs none.
    fn guarded(&mut self, text: &str) -> Option<Arc<str>> {
        let starts = self.codec.starts(text);
        if starts.is_empty() {
            return None;
        }
        let mut guarded = String::with_capacity(text.len());
        let mut starts = starts.into_iter().peekable();
        for (at, c) in text.char_indices() {
            let is_start = starts.next_if_eq(&at).is_some();
            guarded.push(if is_start { self.guard_of(c) } else { c });
        }
        Some(guarded.into())
    }

    fn guard_of(&mut self, first: char) -> char {
        if let Some((_, guard)) = self.pairs.iter().find(|(c, _)| *c == first) {
            return *guard;
        }
        let fits = |c: &char| !self.text.contains(*c) && !self.pairs.iter().any(|(_, guard)| guard == c);
        let mut candidates = CANDIDATES.iter().flat_map(|(from, to)| *from..=*to).filter_map(char::from_u32);
        // One that stands for itself guards nothing, and the text is refused then.
        let guard = candidates.find(fits).unwrap_or(first);
        self.pairs.push((first, guard));
        guard
    }

    /// Whether a rendered text with guards is the plain one, up to them.
    pub(crate) fn is_text(&self, guarded: &str) -> bool {
        let stands_for = |(is, was): (char, char)| is == was || self.pairs.contains(&(was, is));
        guarded.chars().count() == self.text.chars().count()
            && guarded.chars().zip(self.text.chars()).all(stands_for)
            && self.pairs.iter().all(|(first, guard)| first != guard)
    }
}
