//! Splitting text into words before BPE, in time linear in the text.
//!
//! The patterns of this family are alternations whose only look-ahead is the tail `\s+(?!\S)|\s+` ("a run of
//! spaces leaves its last one to the word that follows"). A backtracking engine spends its budget on a long run
//! of spaces and then stops, after which the rest of the text would become one unsplit piece and the ids wrong.
//! Here the pattern is run without the look-ahead on a finite automaton and the tail is applied by hand, so every
//! text gets the ids that the pattern means.
//!
//! Patterns with another look-around are refused when a file is read.

use regex_automata::meta::Regex;

use crate::error::Result;

/// The two alternatives which need a look-ahead, as every file of this family spells them.
const SPACES_TAIL: &str = r"|\s+(?!\S)|\s+";

/// The pattern that `ByteLevel` with `use_regex` stands for.
pub(crate) const BYTE_LEVEL_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pattern of Qwen2 and Qwen2.5, as their tokenizer.json has it.
pub(crate) const QWEN2_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The most bytes of a compiled pattern, so that none takes long to search with.
const MAX_COMPILED_BYTES: usize = 1 << 21;

/// A splitting pattern without look-ahead.
#[derive(Debug)]
pub(crate) struct LinearSplit {
    /// Pattern 0 is everything before the tail, pattern 1 (if there is a tail) is `\s+`.
    regex: Regex,
    /// Whether what stands between the matches is dropped.
    only_matches: bool,
    /// As the file has it.
    pattern: String,
}

impl LinearSplit {
    /// Takes `pattern` if it has no look-around but the known tail, and is not too large.
    pub(crate) fn new(pattern: &str) -> Option<Self> {
        let mut builder = Regex::builder();
        builder.configure(Regex::config().nfa_size_limit(Some(MAX_COMPILED_BYTES)));
        let regex = match pattern.strip_suffix(SPACES_TAIL) {
            Some(head) => builder.build_many(&[head, r"\s+"]),
            None => builder.build(pattern),
        };
        regex.ok().map(|regex| Self { regex, only_matches: false, pattern: pattern.into() })
    }

    /// This split, with what stands between the matches dropped.
    pub(crate) fn keeping_matches(self) -> Self {
        Self { only_matches: true, ..self }
    }

    /// The pattern, where no part of a text is dropped.
    pub(crate) fn isolated_pattern(&self) -> Option<&str> {
        self.keeps_all().then_some(&self.pattern)
    }

    /// Whether no part of a text is dropped.
    pub(crate) fn keeps_all(&self) -> bool {
        !self.only_matches
    }

    /// The end of the match from `start` to `end` after the look-ahead has had its say.
    ///
    /// `\s+(?!\S)` gives up the last space of a run if a word follows; a run of one space falls to the plain
    /// `\s+` and is kept. The run is maximal, so something after it means something that is no space.
    fn leave_last_space(text: &str, start: usize, end: usize) -> usize {
        if end == text.len() {
            return end;
        }
        let last = text.get(start..end).and_then(|run| run.char_indices().next_back());
        match last {
            Some((at, _)) if at > 0 => start + at,
            _ => end,
        }
    }

    /// Gives each word of `text` to `take`, in order.
    pub(crate) fn words(&self, text: &str, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        let mut input = regex_automata::Input::new(text);
        let mut done = 0;
        let mut give = |from: usize, to: usize, matched: bool| match text.get(from..to) {
            Some(word) if !word.is_empty() && (matched || !self.only_matches) => take(word),
            _ => Ok(()),
        };
        while let Some(found) = self.regex.search(&input) {
            let (start, mut end) = (found.start(), found.end());
            if found.pattern().as_usize() == 1 {
                end = Self::leave_last_space(text, start, end);
            }
            if end == start {
                // An empty match splits nothing; look again one character on, as regex iterators do.
                let step = text.get(end..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
                if end + step > text.len() {
                    break;
                }
                input.set_start(end + step);
                continue;
            }
            give(done, start, false)?;
            give(start, end, true)?;
            done = end;
            input.set_start(end);
        }
        give(done, text.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(split: &LinearSplit, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut take = |word: &str| {
            words.push(word.to_owned());
            Ok(())
        };
        split.words(text, &mut take).unwrap();
        words
    }

    fn byte_level(text: &str) -> Vec<String> {
        words(&LinearSplit::new(BYTE_LEVEL_PATTERN).unwrap(), text)
    }

    #[test]
    fn a_run_of_spaces_leaves_its_last_to_the_word() {
        assert_eq!(byte_level("a   b"), ["a", "  ", " b"]);
        assert_eq!(byte_level("a b"), ["a", " b"]);
        assert_eq!(byte_level("a\tb"), ["a", "\t", "b"]);
        assert_eq!(byte_level("a\u{3000}\u{3000}b"), ["a", "\u{3000}", "\u{3000}", "b"]);
        assert_eq!(byte_level("a  "), ["a", "  "]);
        assert!(byte_level("").is_empty());
    }

    #[test]
    fn a_long_run_of_spaces_does_not_stop_the_splitting() {
        let text = format!("{}a b", " ".repeat(3_000_000));
        assert_eq!(byte_level(&text).len(), 3);
    }

    #[test]
    fn other_look_arounds_and_patterns_that_grow_are_refused() {
        for pattern in [r"(?<=a)b", r"(a|\s+(?!\S)|\s+", r"(?:\p{L}{1000}){1000}", r"(a{9}){9}{9}{9}{9}{9}{9}{9}"] {
            assert!(LinearSplit::new(pattern).is_none(), "{pattern}");
        }
    }

    #[test]
    fn what_is_between_matches_is_a_word_or_dropped() {
        let split = LinearSplit::new("x*").unwrap();
        assert_eq!(words(&split, "éxxé"), ["é", "xx", "é"]);
        assert_eq!(words(&split.keeping_matches(), "éxxé"), ["xx"]);
    }
}
