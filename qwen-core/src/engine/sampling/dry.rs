//! DRY ("don't repeat yourself"): against the repetition of whole sequences (p-e-w 2024, text-generation-webui).
//!
//! If the last `n` tokens stand somewhere before, the token that followed there would make the repetition longer: its
//! logit is lowered by `multiplier * base^(n - allowed_length)`, from `allowed_length` on. A match never reaches over a
//! breaker, such as a line break: what is repeated by nature, as the names of speakers, costs nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::processor::History;

/// The parameters of DRY.
///
/// ```
/// use qwen_core::engine::sampling::{Dry, Sampler, SamplingParams, Workspace};
/// // Token 3 followed 1 2 before.
/// let params = SamplingParams::new().dry(Dry::new(0.8));
/// let mut sampler = Sampler::new(params, &[1, 2, 3, 1, 2])?;
/// let chosen = sampler.sample(&[1, 2, 3, 1, 2], &mut [0.0, 0.0, 0.0, 1.5, 1.0], &mut Workspace::default());
/// assert_eq!(chosen, Ok(4));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct Dry {
    /// The penalty of a repetition of `allowed_length` tokens. 0 to 1e6; 0 is off. Default 0.
    pub multiplier: f32,
    /// How fast the penalty grows with each further token. 1 to 100. Default 1.75.
    pub base: f32,
    /// The shortest repetition that is penalised, at least 1. Default 2.
    pub allowed_length: usize,
    /// How many of the last tokens of prompt and answer are searched; 0 for all. Default 0.
    pub range: usize,
    /// Tokens, or sequences of them, that no match reaches over. Default none.
    pub sequence_breakers: SequenceBreakers,
}

impl Default for Dry {
    fn default() -> Self {
        Dry { multiplier: 0.0, base: 1.75, allowed_length: 2, range: 0, sequence_breakers: SequenceBreakers::default() }
    }
}

impl Dry {
    /// The defaults with this multiplier; 0.8 is usual.
    pub fn new(multiplier: f32) -> Self {
        Dry { multiplier, ..Self::default() }
    }

    /// See [`Dry::base`].
    pub fn base(mut self, base: f32) -> Self {
        self.base = base;
        self
    }

    /// See [`Dry::allowed_length`].
    pub fn allowed_length(mut self, tokens: usize) -> Self {
        self.allowed_length = tokens;
        self
    }

    /// See [`Dry::range`].
    pub fn range(mut self, tokens: usize) -> Self {
        self.range = tokens;
        self
    }

    /// See [`Dry::sequence_breakers`].
    pub fn sequence_breakers(mut self, breakers: impl Into<SequenceBreakers>) -> Self {
        self.sequence_breakers = breakers.into();
        self
    }
}

/// Tokens and sequences of tokens in the form in which they are looked for. Cheap to clone, however many they are: keep
/// one for all requests. In serde a list of lists of ids.
///
/// ```
/// use qwen_core::engine::sampling::{Dry, SequenceBreakers};
/// let breakers = SequenceBreakers::from([vec![198], vec![13, 220]]);
/// let requests = [Dry::new(0.8), Dry::new(0.4)].map(|dry| dry.sequence_breakers(breakers.clone()));
/// assert_eq!(requests[0].sequence_breakers, requests[1].sequence_breakers);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Vec<u32>>", into = "Vec<Vec<u32>>")]
pub struct SequenceBreakers {
    /// Of one token, sorted.
    single: Arc<[u32]>,
    others: Arc<[Vec<u32>]>,
}

impl From<Vec<Vec<u32>>> for SequenceBreakers {
    fn from(breakers: Vec<Vec<u32>>) -> Self {
        let (single, others): (Vec<_>, Vec<_>) = breakers.into_iter().partition(|ids| ids.len() == 1);
        let mut single: Vec<u32> = single.into_iter().flatten().collect();
        single.sort_unstable();
        single.dedup();
        SequenceBreakers { single: single.into(), others: others.into() }
    }
}

impl<const N: usize> From<[Vec<u32>; N]> for SequenceBreakers {
    fn from(breakers: [Vec<u32>; N]) -> Self {
        Vec::from(breakers).into()
    }
}

impl From<SequenceBreakers> for Vec<Vec<u32>> {
    fn from(breakers: SequenceBreakers) -> Self {
        breakers.single.iter().map(|id| vec![*id]).chain(breakers.others.iter().cloned()).collect()
    }
}

impl SequenceBreakers {
    /// Whether one of them has no tokens.
    pub(super) fn has_empty(&self) -> bool {
        self.others.iter().any(Vec::is_empty)
    }

    /// How many tokens stand after the last breaker.
    fn tokens_after(&self, tokens: &[u32]) -> usize {
        let ends_here = |end: usize| {
            let before = tokens.get(..end).unwrap_or_default();
            before.last().is_some_and(|id| self.single.binary_search(id).is_ok())
                || self.others.iter().any(|ids| before.ends_with(ids))
        };
        let end = (1..=tokens.len()).rev().find(|end| ends_here(*end));
        tokens.len() - end.unwrap_or(0)
    }
}

/// Scratch of [`apply`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    matches: Vec<usize>,
    penalised: Vec<(u32, usize)>,
}

/// Lower the logits of tokens that would continue a repetition.
pub(super) fn apply(dry: &Dry, history: &History<'_>, logits: &mut [f32], scratch: &mut Scratch) {
    let len = history.tokens.len();
    let range = if dry.range == 0 { len } else { dry.range.min(len) };
    let window = history.tokens.get(len - range..).unwrap_or_default();
    let limit = dry.sequence_breakers.tokens_after(window);
    if limit < dry.allowed_length {
        return;
    }
    suffix_matches(window, &mut scratch.matches);
    let penalised = &mut scratch.penalised;
    penalised.clear();
    for (&next, &length) in window.iter().skip(1).zip(&scratch.matches) {
        let length = length.min(limit);
        if length >= dry.allowed_length {
            penalised.push((next, length));
        }
    }
    // The longest repetition of each token counts.
    penalised.sort_unstable();
    for same in penalised.chunk_by(|a, b| a.0 == b.0) {
        let Some(&(id, length)) = same.last() else { continue };
        let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) else { continue };
        let exponent = (length - dry.allowed_length) as f64;
        let penalty = f64::from(dry.multiplier) * f64::from(dry.base).powf(exponent);
        *logit = (f64::from(*logit) - penalty).max(f64::from(f32::MIN)) as f32;
    }
}

/// For each token but the last one: how many tokens that end with it are also the end of `tokens`. The Z algorithm
/// (Gusfield 1997) on the reversed tokens.
fn suffix_matches(tokens: &[u32], matches: &mut Vec<usize>) {
    let len = tokens.len();
    matches.clear();
    matches.resize(len.saturating_sub(1), 0);
    // Distances from the end: `at(0)` is the last token.
    let at = |distance: usize| len.checked_sub(distance + 1).and_then(|index| tokens.get(index));
    let (mut left, mut right) = (0, 0);
    for distance in 1..len {
        let mirrored = || {
            let distance: usize = distance - left;
            (distance > 0).then(|| len.checked_sub(distance + 1)).flatten().and_then(|index| matches.get(index))
        };
        let mut length = if distance < right { mirrored().map_or(0, |m| (*m).min(right - distance)) } else { 0 };
        while distance + length < len && at(length) == at(distance + length) {
            length += 1;
        }
        if distance + length > right {
            (left, right) = (distance, distance + length);
        }
        if let Some(found) = len.checked_sub(distance + 1).and_then(|index| matches.get_mut(index)) {
            *found = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn matches_are_those_that_a_comparison_finds(tokens in prop::collection::vec(0u32..3, 0..40)) {
            let mut found = Vec::new();
            suffix_matches(&tokens, &mut found);
            let expected: Vec<usize> = (1..tokens.len())
                .map(|end| (0..=end).take_while(|length| tokens.ends_with(&tokens[end - length..end])).last().unwrap())
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn nothing_matches_over_a_breaker() {
        let breakers = SequenceBreakers::from([vec![9], vec![7, 8]]);
        for (tokens, after) in [
            (&[][..], 0),
            (&[1, 2], 2),
            (&[1, 9], 0),
            (&[9, 1, 2, 3], 3),
            (&[1, 7, 8, 2], 1),
            (&[7, 1, 8, 2], 4),
            (&[9, 9, 8, 1], 2),
        ] {
            assert_eq!(breakers.tokens_after(tokens), after, "{tokens:?}");
        }
    }
}
