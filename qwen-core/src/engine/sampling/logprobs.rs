//! Log-probabilities of tokens, as the model gives them: before penalties, cuts and the temperature.

use serde::{Deserialize, Serialize};

use super::exp::exp_neg;
use super::pool::{by_likelihood, top_k};
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

/// The log-probabilities at one position: a log-softmax in f64 over the ids that may be chosen, which leaves out the
/// padding of the vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Logprobs {
    /// Of the token that was chosen.
    pub chosen: TokenLogprob,
    /// Of the most likely tokens, the likeliest first and of equals the lower id. The chosen one may be among them.
    pub top: Vec<TokenLogprob>,
}

/// The log-probabilities of `id` and of the `n` most likely tokens of a row. `None` if the row has a NaN or positive
/// infinity or nothing finite, or has no such id.
///
/// ```
/// use qwen_core::engine::sampling::logprobs;
/// let found = logprobs(&[0.0, 3f32.ln()], 0, 1).expect("finite logits");
/// assert!((found.chosen.logprob - 0.25f64.ln()).abs() < 1e-7);
/// assert_eq!((found.top.len(), found.top[0].id), (1, 1));
/// assert!((found.top[0].logprob - 0.75f64.ln()).abs() < 1e-7);
/// ```
pub fn logprobs(logits: &[f32], id: u32, n: usize) -> Option<Logprobs> {
    let _float_env = FloatEnv::enter();
    let chosen = *logits.get(id as usize)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let softmax = LogSoftmax::new(logits);
    Some(Logprobs { chosen: softmax.token(id, chosen), top: softmax.top(logits, n) })
}

/// The log-softmax of a row with a finite logit and no NaN.
pub(in crate::engine) struct LogSoftmax {
    /// The logarithm of the sum of the exponentials.
    log_sum: f64,
}

impl LogSoftmax {
    pub(in crate::engine) fn new(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // A fixed number of sums, as vectors have them: the order does not depend on the machine.
        let mut sums = [0.0; 8];
        for chunk in logits.chunks(sums.len()) {
            for (logit, sum) in chunk.iter().zip(&mut sums) {
                *sum += exp_neg(f64::from(max) - f64::from(*logit));
            }
        }
        LogSoftmax { log_sum: f64::from(max) + sums.iter().sum::<f64>().ln() }
    }

    /// Never above 0, also where a sum of 1 and little else rounds.
    pub(in crate::engine) fn logprob(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.log_sum).min(0.0)
    }

    /// The `n` most likely tokens of the row, the likeliest first and of equals the lower id.
    pub(in crate::engine) fn top(&self, logits: &[f32], n: usize) -> Vec<TokenLogprob> {
        let mut top = Vec::new();
        if n > 0 {
            top_k(logits, n, &mut top);
            top.sort_unstable_by(by_likelihood);
        }
        top.iter().map(|candidate| self.token(candidate.id, candidate.logit)).collect()
    }

    fn token(&self, id: u32, logit: f32) -> TokenLogprob {
        TokenLogprob { id, logprob: self.logprob(logit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(found: &Logprobs) -> Vec<u32> {
        found.top.iter().map(|token| token.id).collect()
    }

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_lower_id() {
        let found = logprobs(&[1.0, 3.0, -0.0, 3.0, 0.0, f32::NEG_INFINITY], 2, 4).unwrap();
        assert_eq!(ids(&found), [1, 3, 0, 2]);
        assert_eq!(found.chosen.logprob, found.top[3].logprob);
        let all = logprobs(&[1.0, 3.0, f32::NEG_INFINITY], 2, 9).unwrap();
        assert_eq!(ids(&all), [1, 0], "what is ruled out is not among them");
        assert_eq!(all.chosen.logprob, f64::NEG_INFINITY);
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
        assert_eq!(logprobs(&[5.0], 0, 1).unwrap().chosen.logprob, 0.0);
    }

    #[test]
    fn damaged_rows_have_none() {
        for row in [&[][..], &[f32::NAN, 0.0], &[0.0, f32::NAN], &[0.0, f32::INFINITY], &[f32::NEG_INFINITY; 2]] {
            assert_eq!(logprobs(row, 0, 1), None, "{row:?}");
        }
        assert_eq!(logprobs(&[0.0], 1, 1), None);
    }
}
