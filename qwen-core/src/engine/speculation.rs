//! Speculation: guesses of the next tokens, which a step checks all at once.
//!
//! A step that computes several tokens of a sequence takes less time than as many steps, since weights are read once.
//! So the tokens that probably come next are computed together with the last one. At each of them the sequence's own
//! sampler draws as it does without guesses, and guesses count as far as they are what it draws: the answer has the very
//! tokens of plain decoding, greedy or sampled, with the same seed. (Leviathan et al. 2023 keep the distribution; here
//! logits do not depend on the step that computes them, and draws only on the seed and the position, so the tokens
//! themselves are kept.)
//!
//! Guesses come from a small model that runs beside the large one (`draft/`), or from the text so far: what followed the
//! latest place where its last tokens stood (prompt lookup), which is in this file. How
//! many there are depends on how often guesses were right, and on measured times of steps. Guesses are also compared with
//! what came where they were not worth a step, so that nothing has to be tried to learn whether they are right. Where few
//! tokens agree with an earlier place, that is often by chance, so this is learned apart from where many agree.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Whether the next tokens of an answer are guessed and checked several at a time. Changes its speed, never its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Speculation {
    /// One token per step.
    #[default]
    Off,
    /// Guess that the text goes on as it did after the same tokens before: for answers that repeat parts of the prompt
    /// or of themselves, as edits of texts and code do. Guesses only where that was right often enough to save time.
    PromptLookup,
    /// Guess what the engine's draft model would write, a small model that was loaded beside the large one: for texts of
    /// any kind. Guesses only while that saves time by what was measured. An engine without a draft model refuses it.
    Draft,
}

/// Where the guesses of a sequence come from.
#[derive(Debug)]
pub(super) enum Guesser {
    None,
    Lookup(Box<Drafter>),
    /// The engine's draft model, which leaves them in the sequence before a step.
    Model,
}

impl From<Speculation> for Guesser {
    fn from(speculation: Speculation) -> Self {
        match speculation {
            Speculation::Off => Guesser::None,
            Speculation::PromptLookup => Guesser::Lookup(Box::default()),
            Speculation::Draft => Guesser::Model,
        }
    }
}

/// Tokens that have to agree with an earlier place.
const NGRAM: usize = 3;

/// Fewer tokens than this often agree by chance.
const SHORT: usize = 6;

/// So many hardly ever do.
const LONG: usize = 16;

/// The most guesses of a step.
const MOST: usize = 31;

/// Guesses what follows a sequence's tokens.
#[derive(Debug, Default)]
pub(super) struct Drafter {
    /// After which token each n-gram stood last, as a position.
    places: HashMap<[u32; NGRAM], usize>,
    /// Positions whose n-grams are in `places`.
    indexed: usize,
    guesses: Vec<u32>,
    /// How many tokens agree with the place that they come from, as an index of `records`.
    agreement: usize,
    records: [Record; 3],
}

/// How often the next token was as guessed, and how often not; both fade.
#[derive(Debug, Default)]
struct Record {
    hits: f64,
    misses: f64,
}

impl Record {
    /// How often guesses are right, with one more doubt than there were misses.
    fn rate(&self) -> f64 {
        self.hits / (self.hits + self.misses + 1.0)
    }
}

impl Drafter {
    /// What probably follows `tokens`, at most `MOST` of them.
    fn look_up(&mut self, tokens: &[u32]) {
        for end in self.indexed.max(NGRAM)..tokens.len() {
            if let Some(&gram) = tokens[..end].last_chunk() {
                self.places.insert(gram, end);
            }
        }
        self.indexed = tokens.len();
        self.guesses.clear();
        let Some(&place) = tokens.last_chunk().and_then(|gram: &[u32; NGRAM]| self.places.get(gram)) else { return };
        let agree = tokens[..place].iter().rev().zip(tokens.iter().rev()).take_while(|(a, b)| a == b);
        self.agreement = match agree.take(LONG).count() {
            ..SHORT => 0,
            SHORT..LONG => 1,
            _ => 2,
        };
        for index in place..place + MOST {
            // Text that repeats itself goes on repeating.
            let id = tokens.get(index).or_else(|| self.guesses.get(index - tokens.len()));
            self.guesses.extend(id.copied());
        }
    }

    /// Guesses worth checking in a step for `num_seqs` sequences, at most `at_most`.
    pub(super) fn draft(&mut self, tokens: &[u32], at_most: usize, num_seqs: usize, times: &StepTimes) -> &[u32] {
        self.look_up(tokens);
        let rate = self.records[self.agreement].rate();
        // Tokens of a step with `count` guesses, if each is right at this rate and the first wrong one ends them.
        let tokens = |count: usize| (0..=count).map(|n| rate.powi(n as i32)).sum::<f64>();
        let gain = |count: usize| tokens(count) / times.ratio(num_seqs, num_seqs * (1 + count));
        let most = self.guesses.len().min(at_most);
        let counts = [1, 3, 7, 15, 31].map(|count| most.min(count));
        let best = counts.into_iter().max_by(|a, b| gain(*a).total_cmp(&gain(*b))).unwrap_or(0);
        &self.guesses[..if gain(best) > 1.0 { best } else { 0 }]
    }

    /// Learn from the tokens that came, the first of which every guess was about.
    pub(super) fn learn(&mut self, came: &[u32]) {
        let right = came.iter().zip(&self.guesses).take_while(|(a, b)| a == b).count();
        if self.guesses.is_empty() {
            return;
        }
        let missed = right < came.len();
        let fade = 0.95f64.powi(right as i32 + i32::from(missed));
        let Record { hits, misses } = &mut self.records[self.agreement];
        *hits = *hits * fade + right as f64;
        *misses = *misses * fade + f64::from(u8::from(missed));
        self.guesses.clear();
    }
}

/// How long steps take that compute a token for each sequence, by their number of tokens.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    /// Seconds of steps with 1, 2, up to 4, up to 8, ... tokens; those measured last count most.
    seconds: [Option<f64>; 12],
    /// Tests that count steps keep to the expected times.
    #[cfg(test)]
    pub(super) is_frozen: bool,
}

impl StepTimes {
    /// What a token more costs before it is measured, as a share of a step of one.
    const GUESS: f64 = 0.05;

    /// How much of what a measured time has above the expected one is forgotten with each other step: what was slow once
    /// is tried again.
    const FORGET: f64 = 0.005;

    fn expected(tokens: usize, more: usize) -> f64 {
        (1.0 + Self::GUESS * more as f64) / (1.0 + Self::GUESS * tokens as f64)
    }

    fn bucket(tokens: usize) -> usize {
        (tokens.max(1).next_power_of_two().trailing_zeros() as usize).min(11)
    }

    /// A step of `tokens` took `seconds`.
    pub(super) fn record(&mut self, tokens: usize, seconds: f64) {
        #[cfg(test)]
        if self.is_frozen {
            return;
        }
        let known = &mut self.seconds[Self::bucket(tokens)];
        // A single slow step, such as one beside another program, changes little.
        *known = Some(known.map_or(seconds, |known| known + 0.2 * (seconds.min(2.0 * known) - known)));
        for (bucket, other) in self.seconds.iter_mut().enumerate() {
            let excess = other.map_or(0.0, |other| other - seconds * Self::expected(tokens, 1 << bucket));
            *other = other.map(|other| other - Self::FORGET * excess.max(0.0));
        }
    }

    /// How long a step of `tokens` takes: measured, or by what was measured of the step nearest to it. `None` before the
    /// first measurement.
    pub(super) fn seconds(&self, tokens: usize) -> Option<f64> {
        let wanted = Self::bucket(tokens);
        let measured = self.seconds.iter().enumerate().filter_map(|(bucket, seconds)| Some((bucket, (*seconds)?)));
        let (bucket, seconds) = measured.min_by_key(|(bucket, _)| bucket.abs_diff(wanted))?;
        Some(if bucket == wanted { seconds } else { seconds * Self::expected(1 << bucket, tokens) })
    }

    /// Doubt all times a little: what was slow once may have been so by chance.
    pub(super) fn doubt(&mut self) {
        self.seconds.iter_mut().flatten().for_each(|seconds| *seconds *= 0.95);
    }

    /// How much longer a step of `more` tokens takes than one of `tokens`.
    pub(super) fn ratio(&self, tokens: usize, more: usize) -> f64 {
        match (self.seconds[Self::bucket(tokens)], self.seconds[Self::bucket(more)]) {
            (Some(few), Some(many)) if few > 0.0 => (many / few).max(1.0),
            _ => Self::expected(tokens, more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(drafter: &mut Drafter, tokens: &[u32]) -> Vec<u32> {
        drafter.look_up(tokens);
        drafter.guesses.clone()
    }

    #[test]
    fn what_followed_before_follows_again() {
        let mut drafter = Drafter::default();
        assert!(guesses(&mut drafter, &[1, 2]).is_empty());
        assert!(guesses(&mut drafter, &[1, 2, 3, 4, 5]).is_empty());
        assert_eq!(guesses(&mut drafter, &[1, 2, 3, 4, 5, 9, 1, 2, 3])[..6], [4, 5, 9, 1, 2, 3]);
        // The latest place counts, and what repeats goes on repeating.
        assert_eq!(guesses(&mut drafter, &[1, 2, 3, 4, 5, 9, 1, 2, 3, 7, 1, 2, 3])[..6], [7, 1, 2, 3, 7, 1]);
        assert_eq!(guesses(&mut Drafter::default(), &[6; 4]), [6; MOST]);
    }

    #[test]
    fn guesses_that_were_wrong_are_made_again_only_when_they_would_be_right() {
        let (mut drafter, times) = (Drafter::default(), StepTimes::default());
        let mut tokens = vec![1, 2, 3, 4, 1, 2, 3];
        // Nothing was learned yet.
        assert!(drafter.draft(&tokens, 8, 1, &times).is_empty());
        for _ in 0..6 {
            drafter.learn(&[4]);
        }
        assert!(!drafter.draft(&tokens, 8, 1, &times).is_empty());
        assert!(drafter.draft(&tokens, 2, 1, &times).len() <= 2);
        for _ in 0..20 {
            drafter.draft(&tokens, 8, 1, &times);
            drafter.learn(&[5]);
        }
        assert!(drafter.draft(&tokens, 8, 1, &times).is_empty());
        tokens.push(8);
        assert!(drafter.draft(&tokens, 8, 1, &times).is_empty());
    }

    #[test]
    fn where_more_tokens_take_more_time_nothing_is_guessed() {
        let mut drafter = Drafter::default();
        let tokens = vec![6; 9];
        let (mut cheap, mut dear) = (StepTimes::default(), StepTimes::default());
        for tokens in [1, 2, 4, 8, 16, 32] {
            cheap.record(tokens, 1.0);
            dear.record(tokens, tokens as f64 * 1.1);
        }
        for _ in 0..30 {
            drafter.draft(&tokens, 8, 1, &cheap);
            drafter.learn(&[6]);
        }
        assert_eq!(drafter.draft(&tokens, 8, 1, &cheap).len(), 8);
        assert_eq!(drafter.draft(&tokens, 8, 1, &dear).len(), 0);
    }

    #[test]
    fn what_agrees_by_chance_is_told_from_a_copy() {
        let (mut drafter, mut times) = (Drafter::default(), StepTimes::default());
        // Steps with guesses have to have more than half of them right.
        for (tokens, seconds) in [(1, 1.0), (2, 1.6), (4, 1.8), (8, 2.0)] {
            times.record(tokens, seconds);
        }
        let copied: Vec<u32> = (100..120).collect();
        let (mut tokens, mut new) = (copied.clone(), 1000..);
        let (mut by_chance, mut in_copies) = (0, 0);
        for round in 0..20 {
            // A copy of twenty tokens, then three of them that go on in another way, several times.
            let mut text = copied.clone();
            text.extend((4..12).flat_map(|at| [copied[at], copied[at + 1], copied[at + 2], new.next().unwrap_or(0)]));
            for (place, &next) in text.iter().enumerate() {
                let drafts = !drafter.draft(&tokens, 8, 1, &times).is_empty();
                if round > 10 {
                    by_chance += usize::from(drafts && place > 20);
                    in_copies += usize::from(drafts && (16..20).contains(&place));
                }
                drafter.learn(&[next]);
                tokens.push(next);
            }
        }
        // Of nine rounds.
        assert!(by_chance <= 9 * 8 / 3, "{by_chance}");
        assert_eq!(in_copies, 9 * 4);
    }

    #[test]
    fn what_was_slow_once_is_tried_again() {
        let mut times = StepTimes::default();
        times.record(1, 1.0);
        times.record(8, 50.0);
        let slow = times.ratio(1, 8);
        (0..2000).for_each(|_| times.record(1, 1.0));
        assert!(slow > 40.0 && times.ratio(1, 8) < 1.5, "{slow}, then {}", times.ratio(1, 8));
    }
}
