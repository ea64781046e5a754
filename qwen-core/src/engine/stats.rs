//! Figures of an engine: what it does now, and what it has done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::interruption::Work;

/// What an engine does and has done. Cheap to read: the engine writes it down after each step.
///
/// ```
/// use qwen_core::engine::Intake;
/// let stats = Intake::default().stats();
/// assert_eq!((stats.running, stats.hit_rate()), (0, None));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests that have K/V blocks.
    pub running: usize,
    /// Requests that were not admitted yet.
    pub waiting: usize,
    /// Requests that gave up their blocks and go on later.
    pub preempted: usize,
    /// How often a request gave up its blocks.
    pub num_preemptions: u64,
    /// K/V blocks.
    pub num_blocks: usize,
    /// Blocks that running requests use.
    pub used_blocks: usize,
    /// Blocks that nobody uses, whose contents the next request may use.
    pub cached_blocks: usize,
    /// Blocks that hold nothing. The engine can allocate these and the cached ones.
    pub free_blocks: usize,
    /// Tokens that were computed, also for requests that were cancelled.
    pub computed_tokens: u64,
    /// Tokens of prompts that were not computed, since their K/V was there.
    pub cached_tokens: u64,
    /// Tokens that were guessed, see [`Speculation`](super::Speculation).
    pub drafted_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
    /// How long a draft model took to guess, which is part of the times of steps.
    #[serde(rename = "draft_seconds", with = "crate::seconds")]
    pub draft_time: Duration,
    /// How long the latest step took.
    #[serde(rename = "last_step_seconds", with = "crate::seconds")]
    pub last_step: Duration,
    /// How long all steps took.
    #[serde(rename = "step_seconds", with = "crate::seconds")]
    pub step_time: Duration,
    /// Completed steps and what cancels cost.
    pub work: Work,
}

impl EngineStats {
    /// The share of tokens whose K/V was there, among these and the computed ones. `None` before the first.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.cached_tokens + self.computed_tokens;
        (all > 0).then(|| self.cached_tokens as f64 / all as f64)
    }
}
