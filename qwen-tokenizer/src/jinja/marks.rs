//! Marks: which of a rendered text's control tokens the template wrote itself.
//!
//! A rendered chat is one text, in which a control token that a user typed looks like one that the template wrote.
//! To tell them apart the template is rendered a second time from a source in which every control token that it
//! writes is a *mark*, one private-use character. Whatever is a mark in that text was written by the template, by
//! construction; all else is text, whatever it looks like. Contents are never changed.
//!
//! A control token in the source that is compared with contents or searched for in them
//! (`content.split('</think>')`) stays as it is, since as a mark it would no longer be found there.

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

/// Control tokens and the mark of each.
#[derive(Debug)]
pub(crate) struct Marks {
    /// The longest token at the leftmost place wins, as in the tokenizer.
    finder: AhoCorasick,
    marks: Vec<char>,
}

impl Marks {
    pub(crate) fn new<'a>(marks: impl IntoIterator<Item = (&'a str, char)>) -> Result<Self, BuildError> {
        let (tokens, marks): (Vec<&str>, Vec<char>) = marks.into_iter().unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens)?;
        Ok(Self { finder, marks })
    }

    /// `text` with each control token replaced by its mark.
    pub(crate) fn mark(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            out.push_str(text.get(done..found.start()).unwrap_or_default());
            out.extend(self.marks.get(found.pattern().as_usize()));
            done = found.end();
        }
        out.push_str(text.get(done..).unwrap_or_default());
        out
    }
}
