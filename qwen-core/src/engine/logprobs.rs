//! How likely tokens are: log-probabilities from rows of logits.
//!
//! A log-probability is a logit minus the logarithm of the sum of the exponentials of all logits of its row. The sum is
//! taken in f64 and in a fixed order, with an exponential of our own, so that the same logits give the same bits on
//! every machine. Padding rows of the output head, which no token has, take no part in it.

use serde::{Deserialize, Serialize};

use super::sampling::{LogSoftmax, TokenLogprob};
use crate::error::{Error, Result};

/// How likely a token is after those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability: at most 0.
    pub logprob: f64,
    /// Its place among all tokens: 1 for the one that greedy decoding takes.
    pub rank: usize,
    /// The most likely tokens with their log-probabilities, best first, as many as were asked for.
    pub top: Vec<(u32, f64)>,
}

/// What [`super::Goal::Logprobs`] computes.
///
/// ```
/// use qwen_core::engine::{LogprobsParams, Request};
/// // How likely 4 and 5 are after 1, 2, 3, and how likely 6 would be in the place of 5.
/// let params = LogprobsParams::new([4, 5]).alternatives([6]);
/// assert_eq!(Request::logprobs([1, 2, 3, 4], params).prompt, [1, 2, 3, 4]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct LogprobsParams {
    /// The tokens that follow the last tokens of the prompt: the last of them follows the whole prompt, the one before
    /// it the prompt without its last token, and so on.
    pub targets: Vec<u32>,
    /// Further tokens that might follow the whole prompt; they come after the targets.
    pub alternatives: Vec<u32>,
    /// How many of the most likely tokens are named beside each.
    pub top: usize,
}

impl LogprobsParams {
    /// The log-probabilities of `targets`.
    pub fn new(targets: impl Into<Vec<u32>>) -> Self {
        LogprobsParams { targets: targets.into(), ..Self::default() }
    }

    /// See [`LogprobsParams::alternatives`].
    pub fn alternatives(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.alternatives = ids.into();
        self
    }

    /// See [`LogprobsParams::top`].
    pub fn top(mut self, top: usize) -> Self {
        self.top = top;
        self
    }

    /// Check against the length of the prompt and the ids that tokens have.
    pub(super) fn check(&self, prompt: usize, num_token_ids: usize) -> Result<()> {
        let LogprobsParams { targets, alternatives, top } = self;
        if targets.is_empty() || targets.len() > prompt {
            let reason = format!("{} targets after the tokens of a prompt of {prompt}", targets.len());
            return Err(Error::argument("targets", reason));
        }
        if *top > num_token_ids {
            return Err(Error::argument("top", format!("{top} of {num_token_ids} tokens are asked for")));
        }
        let ids = targets.iter().chain(alternatives).zip(prompt + 1 - targets.len()..);
        match ids.into_iter().find(|(id, _)| **id as usize >= num_token_ids) {
            Some((&id, position)) => Err(Error::InvalidTokenId { id, position, vocab_size: num_token_ids }),
            None => Ok(()),
        }
    }

    /// The log-probabilities from the `index`-th of the last rows. The logits are finite.
    pub(super) fn of_row(&self, index: usize, logits: &[f32]) -> Vec<TokenLogprobs> {
        let Some(&target) = self.targets.get(index) else { return Vec::new() };
        let alternatives = if index + 1 == self.targets.len() { self.alternatives.as_slice() } else { &[] };
        let row = Row::new(logits);
        let mut found: Vec<_> = std::iter::once(&target).chain(alternatives).map(|id| row.token(*id)).collect();
        if self.top > 0 {
            let top = row.top(self.top);
            found.iter_mut().for_each(|token| token.top.clone_from(&top));
        }
        found
    }
}

/// A row of finite logits.
struct Row<'a> {
    logits: &'a [f32],
    softmax: LogSoftmax,
}

impl<'a> Row<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Row { logits, softmax: LogSoftmax::new(logits) }
    }

    fn token(&self, id: u32) -> TokenLogprobs {
        let index = id as usize;
        let logit = self.logits.get(index).copied().unwrap_or(f32::NEG_INFINITY);
        // The lower id is the more likely one among equals, as everywhere.
        let (before, after) = self.logits.split_at(index.min(self.logits.len()));
        let better = before.iter().filter(|other| **other >= logit).count()
            + after.iter().filter(|other| **other > logit).count();
        TokenLogprobs { id, logprob: self.softmax.logprob(logit), rank: 1 + better, top: Vec::new() }
    }

    /// The `n` most likely tokens, best first.
    fn top(&self, n: usize) -> Vec<(u32, f64)> {
        self.softmax.top(self.logits, n).into_iter().map(|TokenLogprob { id, logprob }| (id, logprob)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ties_rank_by_id_and_top_agrees_with_rank() {
        let row = Row::new(&[1.0, 3.0, 3.0, 2.0]);
        assert_eq!([0, 1, 2, 3].map(|id| row.token(id).rank), [4, 1, 2, 3]);
        assert_eq!(row.top(3).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(row.token(1).logprob, row.token(2).logprob);
    }

    #[test]
    fn one_sure_token_has_probability_one() {
        let row = Row::new(&[-300.0, 900.0, f32::MIN]);
        assert_eq!((row.token(1).logprob, row.token(0).logprob), (0.0, -1200.0));
        assert_eq!(row.token(2).logprob, f64::from(f32::MIN) - 900.0);
    }

    #[test]
    fn targets_are_checked_with_figures() {
        let check = |params: LogprobsParams| params.check(3, 10).unwrap_err().to_string();
        assert!(check(LogprobsParams::new([])).contains("0 targets"));
        assert!(check(LogprobsParams::new([1; 4])).contains("4 targets after the tokens of a prompt of 3"));
        assert!(check(LogprobsParams::new([1]).top(11)).contains("11 of 10"));
        let error = LogprobsParams::new([1, 12]).check(3, 10).unwrap_err();
        assert!(matches!(error, Error::InvalidTokenId { id: 12, position: 3, vocab_size: 10 }), "{error}");
        assert!(LogprobsParams::new([1]).alternatives([10]).check(3, 10).is_err());
        LogprobsParams::new([1, 2, 3]).alternatives([9]).top(10).check(3, 10).unwrap();
    }

    proptest! {
        #[test]
        fn probabilities_add_up_and_top_is_sorted(logits in prop::collection::vec(-60.0_f32..60.0, 1..300), n in 1usize..40) {
            let row = Row::new(&logits);
            let all: Vec<_> = (0..logits.len() as u32).map(|id| row.token(id)).collect();
            let sum: f64 = all.iter().map(|token| token.logprob.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-12, "{sum}");
            let mut ranked = all.clone();
            ranked.sort_by_key(|token| token.rank);
            prop_assert!(ranked.iter().map(|token| token.rank).eq(1..=logits.len()));
            let expected: Vec<_> = ranked.iter().take(n).map(|token| (token.id, token.logprob)).collect();
            prop_assert_eq!(row.top(n), expected);
        }
    }
}
