//! From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p, seeded sampling.
//!
//! The order and the meaning of each step are those of transformers' `generate`. The random number for a token depends
//! only on the seed and the token's position in the answer, so that a request gives the same answer whatever else is in
//! its batch. The engine decides which sequences need a token, and when.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::numerics::float_env::FloatEnv;

/// How the next token is chosen. [`SamplingParams::default`] is greedy.
///
/// ```
/// use qwen_core::engine::sampling::SamplingParams;
/// let params = SamplingParams::new().temperature(0.7).top_p(0.8).top_k(20).seed(1);
/// assert!(params.check().is_ok());
/// assert!(params.top_p(1.5).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token. Finite and at least 0. Default 0.
    pub temperature: f32,
    /// How many of the most likely tokens to keep; 0 keeps all. Default 0.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities sum to this; 1 keeps all, 0 only the most likely one.
    /// Default 1.
    pub top_p: f32,
    /// Keep tokens that are at least this fraction as probable as the most likely one; 0 keeps all. 0 to 1. Default 0.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of every token of the prompt and the answer (Keskar et
    /// al. 2019); 1 does nothing. Within [`SamplingParams::REPETITION_PENALTY`]. Default 1.
    pub repetition_penalty: f32,
    /// The seed for sampling. Default 0.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingParams {
    /// The bounds of [`SamplingParams::repetition_penalty`]. Published models use 1 to 1.3.
    pub const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;

    /// The default: greedy.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`SamplingParams::temperature`].
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// See [`SamplingParams::top_k`].
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// See [`SamplingParams::top_p`].
    pub fn top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// See [`SamplingParams::min_p`].
    pub fn min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// See [`SamplingParams::repetition_penalty`].
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// See [`SamplingParams::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether the most likely token is taken, without sampling.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Check the bounds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the bound and the value.
    pub fn check(&self) -> Result<()> {
        let _float_env = FloatEnv::enter();
        let within = |name: &'static str, value: f32, ok: bool, bound: &str| {
            if ok { Ok(()) } else { Err(Error::argument(name, format!("must be {bound}, is {value:?}"))) }
        };
        let SamplingParams { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        within("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "finite and at least 0")?;
        within("top_p", top_p, (0.0..=1.0).contains(&top_p), "0 to 1")?;
        within("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        let bounds = Self::REPETITION_PENALTY;
        let bound = format!("{} to {}", bounds.start(), bounds.end());
        within("repetition_penalty", repetition_penalty, bounds.contains(&repetition_penalty), &bound)
    }
}

/// The sampling state of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    /// Ids of the prompt and the answer, if a penalty needs them.
    seen: HashSet<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    ///
    /// # Errors
    /// As [`SamplingParams::check`].
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Result<Self> {
        params.check()?;
        let mut sampler = Sampler { params, seen: HashSet::new(), candidates: Vec::new() };
        prompt.iter().for_each(|id| sampler.accept(*id));
        Ok(sampler)
    }

    /// Whether the choice is the plain argmax of the logits, which a device can compute itself.
    pub fn is_argmax(&self) -> bool {
        self.params.is_greedy() && self.params.repetition_penalty == 1.0
    }

    /// Choose the token at `position` of the answer, counted from 0. `logits` has one value for each id that may be
    /// chosen, negative infinity for those that are ruled out; the penalty changes it in place.
    ///
    /// `None` when there is nothing to choose from: a logit is a NaN or positive infinity, or none is finite.
    ///
    /// ```
    /// use qwen_core::engine::sampling::{Sampler, SamplingParams};
    /// let sampler = &mut Sampler::new(SamplingParams::default(), &[])?;
    /// assert_eq!(sampler.sample(0, &mut [0.0, 2.0, 1.0]), Some(1));
    /// assert_eq!(sampler.sample(1, &mut [0.0, f32::NAN, 1.0]), None);
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    pub fn sample(&mut self, position: usize, logits: &mut [f32]) -> Option<u32> {
        let _float_env = FloatEnv::enter();
        let penalty = self.params.repetition_penalty;
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) {
                let penalised = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                // Finite logits stay finite, however large.
                *logit = penalised.clamp(f32::MIN, f32::MAX);
            }
        }
        let (best, max) = largest(logits)?;
        let id = if self.params.is_greedy() { best } else { self.draw(position, logits, max)? };
        self.accept(id);
        Some(id)
    }

    /// Record a token that was chosen elsewhere.
    pub fn accept(&mut self, id: u32) {
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
    }

    fn draw(&mut self, position: usize, logits: &[f32], max: f32) -> Option<u32> {
        let SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = self.params;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit, id }));
        // Most likely first; the lower id first among equals, so that the order never depends on the algorithm.
        let by_likelihood = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_likelihood);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(by_likelihood);
        // The probability in units of the largest one, which is 1: never a NaN, and never a sum of 0.
        let weight = |logit: f32| (f64::from(logit - max) / f64::from(temperature)).exp();
        let total: f64 = candidates.iter().map(|c| weight(c.logit)).sum();
        let mut kept = 0.0;
        let mut len = 0;
        for candidate in candidates.iter() {
            let weight = weight(candidate.logit);
            if weight < f64::from(min_p) {
                break;
            }
            kept += weight;
            len += 1;
            if kept >= f64::from(top_p) * total {
                break;
            }
        }
        candidates.truncate(len);
        let mut left = uniform(seed, position as u64) * kept;
        let drawn = candidates.iter().find(|candidate| {
            left -= weight(candidate.logit);
            left < 0.0
        });
        // Rounding may leave a remainder after the last one. Candidates with zero weight are never chosen.
        drawn.or_else(|| candidates.iter().rfind(|c| weight(c.logit) > 0.0)).map(|candidate| candidate.id)
    }
}

/// The id and the value of the largest logit, the lowest id among equals. `None` with a NaN or positive infinity among
/// them, and when none is finite.
fn largest(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (&logit, id) in logits.iter().zip(0..) {
        if logit.is_nan() || logit == f32::INFINITY {
            return None;
        }
        if logit > max {
            max = logit;
            best = Some(id);
        }
    }
    best.map(|id| (id, max))
}

/// A number in 0..1 from a seed and a counter: the finaliser of SplitMix64 (Steele et al. 2014) applied to both.
fn uniform(seed: u64, counter: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let bits = mix(mix(seed.wrapping_add(golden)).wrapping_add(counter.wrapping_add(1).wrapping_mul(golden)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
