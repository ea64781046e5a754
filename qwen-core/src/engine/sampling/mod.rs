//! From logits to the next token.
//!
//! A model gives a number for each token, its logit; `exp(logit)`, divided by the sum over all tokens, is a probability.
//! Drawing by these alone gives rare nonsense, and always taking the likeliest gives repetitions. So a row of logits
//! passes a chain of stages first: some lower the logits of tokens that were used, others cut unlikely tokens off, and
//! the temperature says how much the rest differs. Their order and meaning are those of transformers' `generate` unless
//! the caller says otherwise ([`Preset`], [`Stage`]).
//!
//! A [`Sampler`] is a function of the parameters, the tokens so far and the logits; the random number for a token
//! depends only on the seed, on its position in the answer and on what it is for. So a request gives the same answer
//! whatever else is in its batch, after a preemption, and when tokens are verified ahead of time.
//!
//! The engine decides which sequences need a token, and when.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod constraint;
mod dry;
mod exp;
mod logprobs;
mod masks;
mod params;
mod penalties;
mod pool;
mod processor;
mod random;
mod sampler;
mod select;
mod stage;

pub use constraint::{Constraint, ConstraintError, ConstraintState, SharedConstraint, TokenMask};
pub use dry::{Dry, SequenceBreakers};
pub(in crate::engine) use logprobs::Row;
pub use logprobs::{Logprobs, TokenLogprob, logprobs};
pub use params::{Mirostat, SamplingParams};
pub use processor::{History, LogitsProcessor, Processors};
pub use random::fresh_seed;
pub use sampler::{SampleError, Sampler, SamplerState, Workspace};
pub use stage::{Preset, Stage};

#[cfg(test)]
mod tests;
