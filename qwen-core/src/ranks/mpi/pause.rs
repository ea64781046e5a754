//! How to wait for messages that only polling can find: closely at first, since within a step they come in microseconds,
//! then without taking a core from others.

use std::time::{Duration, Instant};

/// Attempts that follow each other at once.
const SPINS: u32 = 64;

/// How long to give way to other threads between attempts, before sleeping. It covers what passes between two steps.
const YIELDS: Duration = Duration::from_millis(2);

/// The shortest and the longest sleep between two attempts.
const SLEEPS: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];

/// The pauses of one wait.
#[derive(Debug, Default)]
pub(super) struct Pause {
    attempts: u32,
    yields_since: Option<Instant>,
    slept: Option<Duration>,
}

impl Pause {
    /// Pause before the next attempt. True if it has slept, and there is time to look for other things.
    pub(super) fn wait(&mut self) -> bool {
        if self.attempts < SPINS {
            self.attempts += 1;
            std::hint::spin_loop();
            return false;
        }
        if self.yields_since.get_or_insert_with(Instant::now).elapsed() < YIELDS {
            std::thread::yield_now();
            return false;
        }
        let [shortest, longest] = SLEEPS;
        let sleep = self.slept.map_or(shortest, |slept| (slept * 2).min(longest));
        self.slept = Some(sleep);
        std::thread::sleep(sleep);
        true
    }
}
