//! From the hidden states of a text to one vector: its embedding.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Which hidden states, after the final norm, make the embedding of a text. Displayed, parsed and serialised as `last`
/// and `mean`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pooling {
    /// That of the last token, which has seen the whole text: what embedding models with causal attention are trained
    /// for.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

impl Pooling {
    /// The first position of `len` that takes part.
    pub(super) fn first(self, len: usize) -> usize {
        match self {
            Pooling::Last => len.saturating_sub(1),
            Pooling::Mean => 0,
        }
    }

    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Pooling::Last => "last",
            Pooling::Mean => "mean",
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Pooling {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidArgument`] for another name.
    fn from_str(name: &str) -> Result<Self, Error> {
        [Pooling::Last, Pooling::Mean]
            .into_iter()
            .find(|pooling| pooling.as_str() == name)
            .ok_or_else(|| Error::argument("pooling", format!("is last or mean, not {name:?}")))
    }
}

/// The hidden states so far, added in the order of their positions: the same bits however they were cut into steps.
#[derive(Debug, Default)]
pub(super) struct Pool {
    sum: Vec<f64>,
    count: usize,
}

impl Pool {
    pub(super) fn add(&mut self, row: &[f32]) {
        self.sum.resize(row.len(), 0.0);
        self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        self.count += 1;
    }

    pub(super) fn mean(&self) -> Vec<f32> {
        let count = self.count.max(1) as f64;
        self.sum.iter().map(|sum| (sum / count) as f32).collect()
    }
}
