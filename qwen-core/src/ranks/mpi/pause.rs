//! How to wait for messages that only polling can find: closely at first, since within a step they come in microseconds,
//! then without taking a core from others.

use std::time::{Duration, Instant};

/// Attempts that follow each other at once.
const SPINS: u32 = 64;

/// The pauses of one wait.
#[derive(Debug)]
pub(super) struct Pause {
    /// How long to give way to other threads between attempts, before sleeping.
    yields: Duration,
    longest_sleep: Duration,
    attempts: u32,
    yields_since: Option<Instant>,
    sleep: Duration,
}

impl Pause {
    /// For a message that the peer may begin at any time, or in an hour. Yielding covers what passes between two steps.
    pub(super) fn for_the_next() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(1))
    }

    /// For messages that are under way. The library moves a long one in many parts, each while it is called, so sleeping
    /// would slow it down.
    pub(super) fn for_the_rest() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_micros(50))
    }

    fn new(yields: Duration, longest_sleep: Duration) -> Self {
        Pause { yields, longest_sleep, attempts: 0, yields_since: None, sleep: Duration::from_micros(50) }
    }

    /// Pause before the next attempt. True if it has slept, and there is time to look for other things.
    pub(super) fn wait(&mut self) -> bool {
        if self.attempts < SPINS {
            self.attempts += 1;
            std::hint::spin_loop();
            return false;
        }
        if self.yields_since.get_or_insert_with(Instant::now).elapsed() < self.yields {
            std::thread::yield_now();
            return false;
        }
        std::thread::sleep(self.sleep);
        self.sleep = (self.sleep * 2).min(self.longest_sleep);
        true
    }
}
