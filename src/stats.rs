//! What a stream tells of itself, as values: tokens and times of an answer, and how far its prompt is.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many tokens and how much time an answer took. Its `Display` form is one line; serde has the times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of these were not computed for this answer, since their K/V was there.
    pub cached_tokens: usize,
    /// Tokens of the answer so far, without the stop token.
    pub new_tokens: usize,
    /// The seed of its draws: the same request with this seed gives the same answer. `None` where nothing is drawn.
    pub seed: Option<u64>,
    /// From the request to the first token.
    #[serde(with = "qwen_core::seconds::optional", rename = "first_token_seconds")]
    pub first_token: Option<Duration>,
    /// From the first token to the latest.
    #[serde(with = "qwen_core::seconds", rename = "generation_seconds")]
    pub generation: Duration,
}

impl Stats {
    /// Tokens per second, after the first one. `None` until there are two.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.generation.as_secs_f64();
        (self.new_tokens > 1 && seconds > 0.0).then(|| (self.new_tokens - 1) as f64 / seconds)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} prompt tokens", self.prompt_tokens)?;
        if self.cached_tokens > 0 {
            write!(f, " ({} of them cached)", self.cached_tokens)?;
        }
        write!(f, ", {} new tokens", self.new_tokens)?;
        if let Some(first) = self.first_token {
            write!(f, ", the first after {:.2} s", first.as_secs_f64())?;
        }
        self.tokens_per_second().map_or(Ok(()), |speed| write!(f, ", then {speed:.1} tokens/s"))
    }
}

/// How much of a prompt is computed: see [`TokenStream::on_prompt_progress`](crate::TokenStream::on_prompt_progress).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PromptProgress {
    /// Tokens of the prompt that are computed.
    pub done: usize,
    /// Tokens of the prompt.
    pub total: usize,
}
