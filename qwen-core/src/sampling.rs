//! From logits to the next token: repetition penalty, temperature, top-k, top-p, a seeded draw.
//!
//! The order and the meaning of each step are those of transformers' `generate`. The random number of a draw depends on
//! the seed and on how many tokens were drawn before, and on nothing else, so that a request gives the same answer
//! whatever else is in its batch.

use std::collections::HashSet;

use crate::backend::composed::argmax_row;
use crate::error::{Error, Result};

/// How the next token is chosen. [`SamplingParams::default`] is greedy.
///
/// ```
/// use qwen_core::sampling::SamplingParams;
/// let params = SamplingParams { temperature: 0.7, top_p: 0.8, top_k: 20, seed: 1, ..SamplingParams::default() };
/// assert!(params.check().is_ok());
/// assert!(SamplingParams { top_p: 1.5, ..params }.check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token. Default 0.
    pub temperature: f32,
    /// How many of the most likely tokens stay; 0 keeps all. Default 0.
    pub top_k: usize,
    /// The most likely tokens stay until their probabilities sum to this; 1 keeps all. Default 1.
    pub top_p: f32,
    /// Divides the positive and multiplies the negative logits of every token of the prompt and the answer (Keskar et
    /// al. 2019); 1 does nothing. Default 1.
    pub repetition_penalty: f32,
    /// Seeds the draws. Default 0.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Whether the most likely token is taken, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Check the bounds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the bound and the value.
    pub fn check(&self) -> Result<()> {
        let within = |name: &'static str, value: f32, ok: bool, bound: &str| {
            if ok { Ok(()) } else { Err(Error::argument(name, format!("must be {bound}, is {value}"))) }
        };
        let t = self.temperature;
        within("temperature", t, t.is_finite() && t >= 0.0, "finite and at least 0")?;
        within("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        let penalty = self.repetition_penalty;
        within("repetition_penalty", penalty, penalty.is_finite() && penalty > 0.0, "finite and above 0")
    }
}

/// The sampling state of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    seen: HashSet<u32>,
    draws: u64,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    ///
    /// # Errors
    /// As [`SamplingParams::check`].
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Result<Self> {
        params.check()?;
        let seen = if params.repetition_penalty == 1.0 { HashSet::new() } else { prompt.iter().copied().collect() };
        Ok(Sampler { params, seen, draws: 0, candidates: Vec::new() })
    }

    /// Whether the choice is the plain argmax of the logits, which a device can make itself.
    pub fn is_argmax(&self) -> bool {
        self.params.is_greedy() && self.params.repetition_penalty == 1.0
    }

    /// Choose a token. `logits` has one value for each id that may be chosen and is used up.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        let penalty = self.params.repetition_penalty;
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
        let id = if self.params.is_greedy() { argmax_row(logits) } else { self.draw(logits) };
        self.accept(id);
        id
    }

    /// Note a token that was chosen elsewhere.
    pub fn accept(&mut self, id: u32) {
        self.draws += 1;
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let SamplingParams { temperature, top_k, top_p, seed, .. } = self.params;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(logit, id)| (*logit, id)));
        // Most likely first; the lower id first among equals, so that the order never depends on the algorithm.
        let by_likelihood = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_likelihood);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(by_likelihood);
        let max = candidates.first().map_or(0.0, |first| first.0);
        let weight = |logit: f32| (f64::from(logit - max) / f64::from(temperature)).exp();
        let total: f64 = candidates.iter().map(|c| weight(c.0)).sum();
        let mut kept = 0.0;
        let mut len = 0;
        for candidate in candidates.iter() {
            kept += weight(candidate.0);
            len += 1;
            if kept >= f64::from(top_p) * total {
                break;
            }
        }
        candidates.truncate(len);
        let mut left = uniform(seed, self.draws) * kept;
        for &(logit, id) in candidates.iter() {
            left -= weight(logit);
            if left < 0.0 {
                return id;
            }
        }
        candidates.last().map_or(0, |last| last.1)
    }
}

/// A number in 0..1 from a seed and a counter: the finaliser of SplitMix64 (Steele et al. 2014) over both.
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
mod tests {
    use super::*;

    fn frequencies(params: SamplingParams, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for seed in 0..draws {
            let mut sampler = Sampler::new(SamplingParams { seed, ..params }, &[]).unwrap();
            counts[sampler.sample(&mut logits.to_vec()) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let params = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
        let exp: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / 0.7).exp()).collect();
        let total: f64 = exp.iter().sum();
        for (found, exp) in frequencies(params, &logits, 20_000).iter().zip(exp) {
            assert!((found - exp / total).abs() < 0.015, "{found} against {}", exp / total);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0, 1.0, 2.0, 3.0];
        let top_k = SamplingParams { temperature: 1.0, top_k: 2, ..SamplingParams::default() };
        let found = frequencies(top_k, &logits, 500);
        assert!(found[0] == 0.0 && found[1] == 0.0 && found[2] > 0.0, "{found:?}");
        // The probabilities are 0.64, 0.24, 0.09, 0.03: 0.65 needs the first two.
        let top_p = SamplingParams { temperature: 1.0, top_p: 0.65, ..SamplingParams::default() };
        let found = frequencies(top_p, &logits, 500);
        assert!(found[1] == 0.0 && found[2] > 0.0, "{found:?}");
    }

    #[test]
    fn the_penalty_counts_prompt_and_answer() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, &[0]).unwrap();
        assert_eq!(sampler.sample(&mut [1.5, 1.0, -1.0]), 1);
        assert_eq!(sampler.sample(&mut [1.5, 1.4, 0.8]), 2);
        assert_eq!(sampler.sample(&mut [-1.0, -1.0, -1.5]), 0);
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() };
        let run = || {
            let mut sampler = Sampler::new(params, &[]).unwrap();
            (0..50).map(|_| sampler.sample(&mut [0.0; 100])).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
        assert!(run().windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn out_of_range_parameters_are_refused() {
        let ok = SamplingParams::default();
        for bad in [
            SamplingParams { temperature: -1.0, ..ok },
            SamplingParams { temperature: f32::NAN, ..ok },
            SamplingParams { top_p: 0.0, ..ok },
            SamplingParams { repetition_penalty: 0.0, ..ok },
        ] {
            assert!(matches!(bad.check(), Err(Error::InvalidArgument { .. })), "{bad:?}");
        }
    }
}
