//! Splitting text into words before BPE, in time linear in the text.
//!
//! The patterns of this family are alternations whose only look-ahead is the tail `\s+(?!\S)|\s+` ("a run of
//! spaces leaves its last one to the word that follows"). A backtracking engine spends its budget on a long run
//! of spaces and then stops, after which the rest of the text would become one unsplit piece and the ids wrong.
//! Here the pattern is run without the look-ahead on a finite automaton and the tail is applied by hand, so every
//! text gets the ids that the pattern means.
//!
//! Other patterns are left to the `tokenizers` library; see `pipeline`.

use regex_automata::meta::Regex;
use tokenizers::tokenizer::pattern::Pattern;

/// The two alternatives which need a look-ahead, as every file of this family spells them.
const SPACES_TAIL: &str = r"|\s+(?!\S)|\s+";

/// The pattern that `ByteLevel` with `use_regex` stands for.
pub(crate) const BYTE_LEVEL_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A splitting pattern without look-ahead.
#[derive(Debug)]
pub(crate) struct LinearSplit {
    /// Pattern 0 is everything before the tail, pattern 1 (if there is a tail) is `\s+`.
    regex: Regex,
}

impl LinearSplit {
    /// Takes `pattern` if it has no look-around but the known tail.
    pub(crate) fn new(pattern: &str) -> Option<Self> {
        let regex = match pattern.strip_suffix(SPACES_TAIL) {
            Some(head) => Regex::new_many(&[head, r"\s+"]),
            None => Regex::new(pattern),
        };
        regex.ok().map(|regex| Self { regex })
    }

    /// The end of the match from `start` to `end` after the look-ahead has had its say.
    ///
    /// `\s+(?!\S)` gives up the last space of a run if a word follows; a run of one space falls to the plain
    /// `\s+` and is kept. The run is maximal, so something after it means something that is no space.
    fn leave_last_space(text: &str, start: usize, end: usize) -> usize {
        if end == text.len() {
            return end;
        }
        let last = text
            .get(start..end)
            .and_then(|run| run.char_indices().next_back());
        match last {
            Some((at, _)) if at > 0 => start + at,
            _ => end,
        }
    }
}

impl Pattern for &LinearSplit {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<((usize, usize), bool)>> {
        let mut pieces = Vec::with_capacity(inside.len() / 4 + 1);
        let mut input = regex_automata::Input::new(inside);
        let mut done = 0;
        while let Some(found) = self.regex.search(&input) {
            let (start, mut end) = (found.start(), found.end());
            if found.pattern().as_usize() == 1 {
                end = LinearSplit::leave_last_space(inside, start, end);
            }
            if end == start {
                // An empty match splits nothing; look again one character on, as regex iterators do.
                let step = inside
                    .get(end..)
                    .and_then(|rest| rest.chars().next())
                    .map_or(1, char::len_utf8);
                if end + step > inside.len() {
                    break;
                }
                input.set_start(end + step);
                continue;
            }
            if done != start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
            input.set_start(end);
        }
        if done != inside.len() || pieces.is_empty() {
            pieces.push(((done, inside.len()), false));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let split = LinearSplit::new(BYTE_LEVEL_PATTERN).unwrap();
        let pieces = (&split).find_matches(text).unwrap();
        pieces
            .into_iter()
            .map(|((start, end), _)| &text[start..end])
            .collect()
    }

    #[test]
    fn a_run_of_spaces_leaves_its_last_to_the_word() {
        assert_eq!(words("a   b"), ["a", "  ", " b"]);
        assert_eq!(words("a b"), ["a", " b"]);
        assert_eq!(words("a\tb"), ["a", "\t", "b"]);
        assert_eq!(
            words("a\u{3000}\u{3000}b"),
            ["a", "\u{3000}", "\u{3000}", "b"]
        );
        assert_eq!(words("a  "), ["a", "  "]);
        assert_eq!(words(""), [""]);
    }

    #[test]
    fn a_long_run_of_spaces_does_not_stop_the_splitting() {
        let text = format!("{}a b", " ".repeat(3_000_000));
        assert_eq!(words(&text).len(), 3);
    }

    #[test]
    fn other_look_arounds_are_left_to_the_library() {
        assert!(LinearSplit::new(r"(?<=a)b").is_none());
        assert!(LinearSplit::new(r"(a|\s+(?!\S)|\s+").is_none());
    }

    #[test]
    fn empty_matches_advance() {
        let split = LinearSplit::new("x*").unwrap();
        let pieces = (&split).find_matches("éxxé").unwrap();
        assert_eq!(pieces, [((0, 2), false), ((2, 4), true), ((4, 6), false)]);
    }
}
