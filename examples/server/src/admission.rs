//! Who is let in: a request whose first token would come too late is refused at once, so that its client may ask
//! another server instead of waiting for a time-out.
//!
//! What is known in advance is how many tokens of prompts wait before it, and how long earlier requests waited for each
//! such token. Nothing is refused while nobody waits, whatever its own length.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{ApiError, Result};

/// What an older measurement counts beside a newer one.
const DECAY: f64 = 0.9;

#[derive(Debug)]
pub(crate) struct Admission {
    max_wait: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Tokens of prompts that have no first token yet.
    queued_tokens: usize,
    /// Seconds that first tokens took, and tokens of prompts that came before them; both fade.
    seconds: f64,
    tokens: f64,
}

impl State {
    /// How long the tokens that wait now will take, if that is known.
    fn wait(&self) -> Option<Duration> {
        let seconds = self.queued_tokens as f64 * self.seconds / self.tokens;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

impl Admission {
    pub(crate) fn new(max_wait: Duration) -> Arc<Self> {
        Arc::new(Admission { max_wait, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// If its first token would come too late.
    pub(crate) fn enter(self: &Arc<Self>, tokens: usize) -> Result<Place> {
        let mut state = self.state();
        let wait = state.wait().unwrap_or_default();
        if state.queued_tokens > 0 && wait > self.max_wait {
            let message = format!(
                "the prompts that wait would take {:.1} s, and at most {:.1} s are allowed: ask again later",
                wait.as_secs_f64(),
                self.max_wait.as_secs_f64()
            );
            return Err(ApiError::busy(message, (wait - self.max_wait).as_secs() + 1));
        }
        let ahead = state.queued_tokens;
        state.queued_tokens += tokens;
        Ok(Place { admission: self.clone(), tokens, ahead, entered: Instant::now() })
    }
}

/// A request that has no token yet.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    tokens: usize,
    ahead: usize,
    entered: Instant,
}

impl Place {
    /// Its first token is there.
    pub(crate) fn first_token(self) {
        let elapsed = self.entered.elapsed().as_secs_f64();
        let mut state = self.admission.state();
        state.seconds = DECAY * state.seconds + elapsed;
        state.tokens = DECAY * state.tokens + (self.ahead + self.tokens).max(1) as f64;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.state().queued_tokens -= self.tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_takes_too_long_is_closed_until_it_is_shorter() {
        let admission = Admission::new(Duration::from_secs(10));
        *admission.state() = State { queued_tokens: 0, seconds: 1.0, tokens: 100.0 };
        // Alone it may take as long as it takes.
        let first = admission.enter(5000).unwrap();
        let error = admission.enter(1).unwrap_err();
        assert_eq!(error.status, 429);
        drop(first);
        assert!(admission.enter(1).is_ok());
        assert_eq!(admission.state().queued_tokens, 0);
    }

    #[test]
    fn nothing_is_refused_before_anything_was_measured() {
        let admission = Admission::new(Duration::ZERO);
        let places: Vec<_> = (0..10).map(|_| admission.enter(1000).unwrap()).collect();
        for place in places {
            place.first_token();
        }
        let state = admission.state();
        assert_eq!((state.queued_tokens, state.wait()), (0, Some(Duration::ZERO)));
    }
}
