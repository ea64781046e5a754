//! How likely tokens are, as the model gives them: before penalties, cuts and the temperature.
//!
//! A log-probability is a logit minus the logarithm of the sum of the exponentials of all logits of its row. The sum is
//! taken in f64 and in a fixed order, with an exponential of our own, so that the same logits give the same bits on
//! every machine. Padding rows of the output head, which no token has, take no part in it.

use serde::{Deserialize, Serialize};

use super::exp::exp_neg;
use super::select::{by_likelihood, top_k};
use crate::numerics::float_env::FloatEnv;

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability: at most 0.
    pub logprob: f64,
}

/// How likely a token is in its place, and what is likelier: a log-softmax in f64 over the ids that may be chosen, which
/// leaves out the padding of the vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Logprobs {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability: at most 0.
    pub logprob: f64,
    /// Its place among all tokens: 1 for the one that greedy decoding takes.
    pub rank: usize,
    /// The most likely tokens, as many as were asked for, the likeliest first and of equals the lower id. It may be among
    /// them.
    pub top: Vec<TokenLogprob>,
}

/// The log-probabilities of `id` and of the `n` most likely tokens of a row. `None` if the row has a NaN or positive
/// infinity or nothing finite, or has no such id.
///
/// ```
/// use qwen_core::engine::sampling::logprobs;
/// let found = logprobs(&[0.0, 3f32.ln()], 0, 1).expect("finite logits");
/// assert!((found.logprob - 0.25f64.ln()).abs() < 1e-7);
/// assert_eq!((found.top.len(), found.top[0].id), (1, 1));
/// assert!((found.top[0].logprob - 0.75f64.ln()).abs() < 1e-7);
/// ```
pub fn logprobs(logits: &[f32], id: u32, n: usize) -> Option<Logprobs> {
    let _float_env = FloatEnv::enter();
    logits.get(id as usize)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let row = Row::new(logits);
    Some(Logprobs { top: row.top(n), ..row.token(id) })
}

/// A row with a finite logit and no NaN.
pub(in crate::engine) struct Row<'a> {
    logits: &'a [f32],
    /// The logarithm of the sum of the exponentials.
    log_sum: f64,
}

impl<'a> Row<'a> {
    pub(in crate::engine) fn new(logits: &'a [f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // A fixed number of sums, as vectors have them: the order does not depend on the machine.
        let mut sums = [0.0; 8];
        for chunk in logits.chunks(sums.len()) {
            for (logit, sum) in chunk.iter().zip(&mut sums) {
                *sum += exp_neg(f64::from(max) - f64::from(*logit));
            }
        }
        Row { logits, log_sum: f64::from(max) + sums.iter().sum::<f64>().ln() }
    }

    /// Never above 0, also where a sum of 1 and little else rounds.
    fn logprob(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.log_sum).min(0.0)
    }

    /// How likely a token is, without others beside it.
    pub(in crate::engine) fn token(&self, id: u32) -> Logprobs {
        let index = id as usize;
        let logit = self.logits.get(index).copied().unwrap_or(f32::NEG_INFINITY);
        // The lower id is the more likely one among equals, as everywhere.
        let (before, after) = self.logits.split_at(index.min(self.logits.len()));
        let better = before.iter().filter(|other| **other >= logit).count()
            + after.iter().filter(|other| **other > logit).count();
        Logprobs { id, logprob: self.logprob(logit), rank: 1 + better, top: Vec::new() }
    }

    /// The `n` most likely tokens, the likeliest first and of equals the lower id.
    pub(in crate::engine) fn top(&self, n: usize) -> Vec<TokenLogprob> {
        let mut top = Vec::new();
        if n > 0 {
            top_k(self.logits, n, &mut top);
            top.sort_unstable_by(by_likelihood);
        }
        top.iter().map(|token| TokenLogprob { id: token.id, logprob: self.logprob(token.logit) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(found: &Logprobs) -> Vec<u32> {
        found.top.iter().map(|token| token.id).collect()
    }

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_lower_id() {
        let found = logprobs(&[1.0, 3.0, -0.0, 3.0, 0.0, f32::NEG_INFINITY], 2, 4).unwrap();
        assert_eq!(ids(&found), [1, 3, 0, 2]);
        assert_eq!(found.logprob, found.top[3].logprob);
        let all = logprobs(&[1.0, 3.0, f32::NEG_INFINITY], 2, 9).unwrap();
        assert_eq!(ids(&all), [1, 0], "what is ruled out is not among them");
        assert_eq!(all.logprob, f64::NEG_INFINITY);
        assert!(logprobs(&[0.0; 4], 3, 0).unwrap().top.is_empty());
    }

    #[test]
    fn they_are_a_distribution_however_large_the_logits() {
        for scale in [1.0, 1e4, 1e38] {
            let row: Vec<f32> = (0..1000).map(|id| scale * (id as f32 * 0.37).sin()).collect();
            let found = logprobs(&row, 0, row.len()).unwrap();
            assert_eq!(found.top.len(), 1000);
            let sum: f64 = found.top.iter().map(|token| token.logprob.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{scale}: {sum}");
            assert!(found.top.iter().all(|token| token.logprob <= 0.0));
        }
        assert_eq!(logprobs(&[5.0], 0, 1).unwrap().logprob, 0.0);
    }

    #[test]
    fn damaged_rows_have_none() {
        for row in [&[][..], &[f32::NAN, 0.0], &[0.0, f32::NAN], &[0.0, f32::INFINITY], &[f32::NEG_INFINITY; 2]] {
            assert_eq!(logprobs(row, 0, 1), None, "{row:?}");
        }
        assert_eq!(logprobs(&[0.0], 1, 1), None);
    }

    #[test]
    fn ties_rank_by_id_and_top_agrees_with_rank() {
        let row = Row::new(&[1.0, 3.0, 3.0, 2.0]);
        assert_eq!([0, 1, 2, 3].map(|id| row.token(id).rank), [4, 1, 2, 3]);
        assert_eq!(row.top(3).iter().map(|token| token.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(row.token(1).logprob, row.token(2).logprob);
    }

    #[test]
    fn one_sure_token_has_probability_one() {
        let row = Row::new(&[-300.0, 900.0, f32::MIN]);
        assert_eq!((row.token(1).logprob, row.token(0).logprob), (0.0, -1200.0));
        assert_eq!(row.token(2).logprob, f64::from(f32::MIN) - 900.0);
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
            let expected: Vec<_> = ranked.iter().take(n).map(|token| TokenLogprob { id: token.id, logprob: token.logprob }).collect();
            prop_assert_eq!(row.top(n), expected);
        }
    }
}
