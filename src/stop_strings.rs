//! Stop strings: the text of an answer is shown up to the first of them, and nothing of it is ever shown.
//!
//! A stop string rarely ends where a token does, so a piece of text may end with what could become one: such an end is
//! held back until the next pieces have decided. The engine's thread searches, too, so that it computes no token behind a
//! stop string, however late its reader reads. Each string is searched for by the method of Knuth, Morris and Pratt,
//! whose state is how much of the string the text ends with, which is also how much has to be held back.

use qwen_tokenizer::DecodeStream;

/// Searches a text that arrives in pieces for the first stop string.
///
/// That is the one that is complete first, wherever the pieces end; of those that are complete with the same character,
/// the longest.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopStrings {
    strings: Vec<Searched>,
    /// The end of the text that may be the beginning of a stop string.
    held: String,
}

#[derive(Debug, Clone)]
struct Searched {
    string: String,
    /// For each prefix of the string: the length of the longest shorter one that it ends with.
    borders: Vec<usize>,
    /// The bytes of the string that the text ends with.
    matched: usize,
}

/// What a piece of text decides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    /// What can be shown.
    pub(crate) text: String,
    /// The stop string that ends the text here.
    pub(crate) stop: Option<String>,
}

impl Searched {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes();
        let mut borders = vec![0; bytes.len()];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = borders[length - 1];
            }
            length += usize::from(bytes[at] == bytes[length]);
            borders[at] = length;
        }
        Searched { string: string.into(), borders, matched: 0 }
    }

    /// Take the next byte of the text. Whether the string ends with it.
    fn ends_with(&mut self, byte: u8) -> bool {
        let bytes = self.string.as_bytes();
        while self.matched > 0 && bytes.get(self.matched) != Some(&byte) {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

impl StopStrings {
    /// Empty strings, which would end every answer before it began, are refused where options are checked; here they
    /// are ignored.
    pub(crate) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|string| !string.is_empty()).map(|string| Searched::new(string)).collect();
        StopStrings { strings, held: String::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Take the next piece of the text. Nothing may follow a stop string.
    pub(crate) fn push(&mut self, piece: String) -> Decided {
        if self.is_empty() {
            return Decided { text: piece, stop: None };
        }
        let before = self.held.len();
        self.held.push_str(&piece);
        for (at, byte) in piece.bytes().enumerate() {
            let mut stop: Option<&str> = None;
            for searched in &mut self.strings {
                if searched.ends_with(byte) && stop.is_none_or(|stop| stop.len() < searched.string.len()) {
                    stop = Some(&searched.string);
                }
            }
            if let Some(stop) = stop {
                let (stop, end) = (stop.to_owned(), before + at + 1);
                let mut text = std::mem::take(&mut self.held);
                text.truncate(end - stop.len());
                return Decided { text, stop: Some(stop) };
            }
        }
        let undecided = self.strings.iter().map(|searched| searched.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - undecided);
        Decided { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text is over: what was held back is no stop string.
    pub(crate) fn finish(&mut self) -> String {
        self.strings.iter_mut().for_each(|searched| searched.matched = 0);
        std::mem::take(&mut self.held)
    }
}

/// Searches the text of ids.
#[derive(Debug)]
pub(crate) struct StopWatch {
    decoder: DecodeStream,
    strings: StopStrings,
}

impl StopWatch {
    pub(crate) fn new(decoder: DecodeStream, strings: &[String]) -> Self {
        StopWatch { decoder, strings: StopStrings::new(strings) }
    }

    /// Take the next id. The stop string that it completes.
    pub(crate) fn push(&mut self, id: u32) -> Option<String> {
        self.strings.push(self.decoder.push(id)?).stop
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text before the first stop string, and that string, by looking at every prefix of the whole text.
    fn expected(text: &str, stops: &[String]) -> (String, Option<String>) {
        for (end, _) in text.char_indices().map(|(at, c)| (at + c.len_utf8(), c)) {
            let found = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].into(), Some(stop.clone()));
            }
        }
        (text.into(), None)
    }

    fn pieces() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[abé👋]{0,5}", 0..12)
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_text_before_the_first_match(
            pieces in pieces(),
            stops in proptest::collection::vec("[abé👋]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            let (before, stop) = expected(&text, &stops);
            let (mut shown, mut found) = (String::new(), None);
            let mut strings = StopStrings::new(&stops);
            let mut arrived = String::new();
            for piece in pieces {
                arrived.push_str(&piece);
                let decided = strings.push(piece);
                shown.push_str(&decided.text);
                // At each moment: a part of the answer, and no more is held back than a stop string could need.
                prop_assert!(before.starts_with(&shown), "{shown:?} of {before:?}");
                if decided.stop.is_some() {
                    found = decided.stop;
                    break;
                }
                let held = &arrived[shown.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held) && stop != held));
            }
            if found.is_none() {
                shown.push_str(&strings.finish());
            }
            prop_assert_eq!((shown, found), (before, stop));
        }
    }

    #[test]
    fn long_runs_cost_no_more_than_their_length() {
        // Searching again from each place would take 10^10 comparisons.
        let stop = "a".repeat(100_000) + "b";
        let mut strings = StopStrings::new(&[stop]);
        let shown: usize = (0..20_000).map(|_| strings.push("aaaaaaaaaa".into()).text.len()).sum();
        assert_eq!((shown, strings.finish().len()), (100_000, 100_000));
    }
}
