//! Which log-probabilities a request wants from the rows of its prompt.

use super::sampling::{Logprobs, Row};
use crate::error::{Error, Result};

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
    pub(super) fn of_row(&self, index: usize, logits: &[f32]) -> Vec<Logprobs> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
