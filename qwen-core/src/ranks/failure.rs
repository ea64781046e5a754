//! Which rank failed first. All later errors of a transport are consequences of that failure, and report it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::wire::{Reader, Writer, printable};
use crate::error::Error;

/// The most characters of a reason that another rank gave.
const MAX_REASON: usize = 2000;

/// Which rank failed, and why.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) rank: usize,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn error(&self) -> Error {
        Error::RankFailed { rank: self.rank, reason: self.reason.clone() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(self.rank as u64);
        writer.text(&self.reason);
        writer.0
    }

    /// The failure reported by rank `sender`.
    pub(super) fn from_bytes(sender: usize, bytes: &[u8]) -> Self {
        let mut reader = Reader(bytes);
        match reader.number().and_then(|rank| Ok((rank, reader.text()?))) {
            Ok((rank, reason)) => {
                let rank = usize::try_from(rank).unwrap_or(usize::MAX);
                Failure { rank, reason: printable(&reason, MAX_REASON) }
            }
            Err(_) => Failure { rank: sender, reason: "it reported a failure that cannot be read".into() },
        }
    }
}

/// A failure, and the peer whose connection showed it.
#[derive(Debug, Clone)]
pub(super) struct Reported {
    pub(super) by: usize,
    pub(super) failure: Failure,
}

/// The failures that the connections of a transport have seen.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<State>);

#[derive(Default)]
struct State {
    // Set on shutdown; later disconnects are not failures.
    closing: bool,
    first: Option<Reported>,
    hook: Option<Hook>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("closing", &self.closing).field("first", &self.first).finish_non_exhaustive()
    }
}

impl Failures {
    /// Record a failure. Returns whether it is the first one.
    pub(super) fn note(&self, reported: &Reported) -> bool {
        let mut state = lock(&self.0);
        let is_first = !state.closing && state.first.is_none();
        if is_first {
            state.first = Some(reported.clone());
        }
        is_first
    }

    /// Call the hook for the first failure.
    pub(super) fn call_hook(&self) {
        // Take the hook out first, so that it runs without the lock.
        let hook = lock(&self.0).hook.take();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// The first failure, if there was one.
    pub(super) fn first(&self) -> Option<Failure> {
        lock(&self.0).first.as_ref().map(|reported| reported.failure.clone())
    }

    /// Call `hook` at the first failure, or immediately if there was one already. It replaces an earlier hook.
    pub(super) fn on_first(&self, hook: Hook) {
        let mut state = lock(&self.0);
        if state.first.is_none() {
            state.hook = Some(hook);
            return;
        }
        drop(state);
        hook();
    }

    /// The transport shuts down: disconnects are not failures from now on.
    pub(super) fn close(&self) {
        lock(&self.0).closing = true;
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave locked data half-changed here, so poisoning is ignored.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_another_rank_is_bounded_and_one_that_is_damaged_is_replaced() {
        let long = Failure { rank: 3, reason: format!("\x1b{}", "x".repeat(100_000)) };
        let read = Failure::from_bytes(1, &long.to_bytes());
        assert_eq!((read.rank, read.reason.chars().count()), (3, MAX_REASON + 1));
        assert!(!read.reason.contains('\x1b'));
        let damaged = Failure::from_bytes(1, &[3, 200]);
        assert_eq!((damaged.rank, damaged.reason.as_str()), (1, "it reported a failure that cannot be read"));
    }
}
