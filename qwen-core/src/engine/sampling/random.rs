//! Random numbers that depend on nothing but the seed, the position in the answer and what they are for. So no stage
//! shifts another's numbers, and a token that is sampled again, after a preemption or ahead of time, is the same token.

use std::hash::{BuildHasher, RandomState};

/// What a number is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The token itself.
    Draw,
    /// Whether XTC acts.
    Xtc,
}

/// A number in 0..1: the finaliser of SplitMix64 (Steele et al. 2014) applied to all three.
pub(super) fn uniform(seed: u64, position: usize, purpose: Purpose) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let counter = (position as u64).wrapping_add(1).wrapping_mul(golden);
    let mut bits = mix(mix(seed.wrapping_add(golden)).wrapping_add(counter));
    if let Purpose::Xtc = purpose {
        bits = mix(bits.wrapping_add(golden.rotate_left(32)));
    }
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A seed that nobody chose, from the random state of the standard library. It is below 2^53, so that every reader of
/// JSON gets it exactly.
///
/// ```
/// use qwen_core::engine::sampling::fresh_seed;
/// assert_ne!(fresh_seed(), fresh_seed());
/// ```
pub fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0x5eed_u64) >> 11
}
