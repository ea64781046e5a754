//! How many tokens of prompts a step may have beside running answers.
//!
//! An answer gets its next token when a step ends, so a step with a large part of somebody's prompt holds it up. Steps
//! are therefore kept short while answers run: to as many tokens as were computed in the allowed time lately.

use std::time::Duration;

/// The time that a step may take, and what a token of a prompt takes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// `None` for any time.
    pub(super) at_most: Option<Duration>,
    /// Of the latest steps with parts of prompts.
    seconds_per_token: Option<f64>,
}

impl Pace {
    /// Tokens that are always allowed, so that prompts go on however slow the machine is.
    const LEAST: usize = 16;

    /// A step of `tokens`, with a part of a prompt, took `seconds`.
    pub(super) fn record(&mut self, tokens: usize, seconds: f64) {
        // Short steps are dominated by what every step takes.
        if tokens >= Self::LEAST {
            let measured = seconds / tokens as f64;
            self.seconds_per_token = Some(self.seconds_per_token.map_or(measured, |known| (known + measured) / 2.0));
        }
    }

    /// What a token of a prompt took lately.
    pub(super) fn seconds_per_token(&self) -> Option<f64> {
        self.seconds_per_token
    }

    /// Tokens of a step beside running answers.
    pub(super) fn num_tokens(&self) -> usize {
        match (self.at_most, self.seconds_per_token) {
            (Some(at_most), Some(seconds)) if seconds > 0.0 => {
                ((at_most.as_secs_f64() / seconds) as usize).max(Self::LEAST)
            }
            _ => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_what_fits_in_its_time() {
        let mut pace = Pace { at_most: Some(Duration::from_millis(200)), ..Pace::default() };
        assert_eq!(pace.num_tokens(), usize::MAX, "nothing is known yet");
        pace.record(512, 5.12);
        assert_eq!(pace.num_tokens(), 20);
        // A machine that became faster, and one that is very slow.
        (0..20).for_each(|_| pace.record(100, 0.1));
        assert!((195..=200).contains(&pace.num_tokens()), "{}", pace.num_tokens());
        (0..20).for_each(|_| pace.record(100, 1000.0));
        assert_eq!(pace.num_tokens(), Pace::LEAST);
        pace.record(1, 0.0);
        assert_eq!(pace.num_tokens(), Pace::LEAST);
        pace.at_most = None;
        assert_eq!(pace.num_tokens(), usize::MAX);
    }
}
