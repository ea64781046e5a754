//! Token ids to compute with, and other random numbers: the same in each run.

use qwen::{Engine, GenerateOptions, Stats};

/// Random numbers from a seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in 0..1.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number around `mean`, uniform within this share of it. At least 1.
    pub(crate) fn around(&mut self, mean: usize, share: f64) -> usize {
        let factor = 1.0 + share * (2.0 * self.uniform() - 1.0);
        ((mean as f64 * factor).round() as usize).max(1)
    }

    /// The time between two arrivals of a Poisson process with this many a second.
    pub(crate) fn pause(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.uniform()).ln() / per_second
    }

    /// Ids of one of the first thousand tokens each, which every model has.
    pub(crate) fn ids(&mut self, len: usize, engine: &Engine) -> Vec<u32> {
        let limit = engine.config().vocab_size.clamp(1, 1000) as u64;
        (0..len).map(|_| (self.next() % limit) as u32).collect()
    }
}

/// Greedy, and exactly `new` tokens long.
pub(crate) fn exactly(new: usize) -> GenerateOptions {
    GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(new)
}

/// The answer to `ids`. The engine timestamps each token, so a slow reader does not change figures.
pub(crate) fn answer(
    engine: &Engine,
    ids: impl Into<Vec<u32>>,
    options: &GenerateOptions,
) -> qwen::Result<(Vec<u32>, Stats)> {
    let mut stream = engine.generate_ids(ids, options)?;
    let answer = stream.by_ref().collect::<qwen::Result<_>>()?;
    Ok((answer, stream.stats()))
}

/// Seconds until the first token came.
pub(crate) fn first_token(stats: &Stats) -> f64 {
    stats.first_token.unwrap_or_default().as_secs_f64()
}
