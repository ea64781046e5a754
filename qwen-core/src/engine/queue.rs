//! The requests that wait: who is next.
//!
//! Higher priorities first; among equals users take turns, so that one with many requests holds nobody else up; a user's
//! own requests in order of arrival.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::sequence::Sequence;

/// Waiting sequences in order of arrival, and when each user's was admitted last.
#[derive(Debug, Default)]
pub(super) struct Queue {
    sequences: VecDeque<Sequence>,
    turns: HashMap<Arc<str>, u64>,
    clock: u64,
}

impl Queue {
    /// Users that are remembered although none of their requests waits.
    const MOST_USERS: usize = 1024;

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Sequence) -> bool) {
        self.sequences.retain(keep);
    }

    /// Add one that has arrived.
    pub(super) fn push(&mut self, sequence: Sequence) {
        self.sequences.push_back(sequence);
    }

    /// Put one back that was admitted, before those that arrived later.
    pub(super) fn put_back(&mut self, sequence: Sequence) {
        let later = self.sequences.iter().position(|waiting| waiting.id > sequence.id);
        self.sequences.insert(later.unwrap_or(self.sequences.len()), sequence);
    }

    /// The one that is next.
    pub(super) fn next_mut(&mut self) -> Option<&mut Sequence> {
        let next = self.next_index()?;
        self.sequences.get_mut(next)
    }

    /// Take the one that is next.
    pub(super) fn take_next(&mut self) -> Option<Sequence> {
        let sequence = self.sequences.remove(self.next_index()?)?;
        self.clock += 1;
        self.turns.insert(sequence.user.clone(), self.clock);
        if self.turns.len() > Self::MOST_USERS {
            let waiting: Vec<Arc<str>> = self.sequences.iter().map(|sequence| sequence.user.clone()).collect();
            self.turns.retain(|user, _| waiting.contains(user));
        }
        Some(sequence)
    }

    fn next_index(&self) -> Option<usize> {
        let rank = |(_, sequence): &(usize, &Sequence)| {
            (Reverse(sequence.priority), self.turns.get(&sequence.user).copied().unwrap_or(0))
        };
        // The first among equals is the one that arrived first.
        self.sequences.iter().enumerate().min_by_key(rank).map(|(index, _)| index)
    }
}
