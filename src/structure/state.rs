//! A grammar as it goes on in one answer. Its masks are computed ahead, on the threads of `helpers.rs`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use qwen_core::engine::sampling::{ConstraintError, ConstraintState, TokenMask};

use super::cursor::{Cursor, Template};
use super::helpers::Helpers;

type Mask = Result<Arc<TokenMask>, ConstraintError>;

/// The state of an answer.
#[derive(Debug)]
pub(super) struct State {
    shared: Arc<Shared>,
    helpers: Arc<Helpers>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// A mask is there, or the cursor is back.
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// Not there while a helper computes with it.
    cursor: Option<Cursor>,
    /// The answer, and behind it guesses.
    tokens: Vec<u32>,
    /// Masks are wanted from this length of `tokens` on, each of which leads to the next one.
    wanted: usize,
    /// By the length of what they follow.
    masks: BTreeMap<usize, Mask>,
    /// A helper computes, or will do so.
    is_queued: bool,
}

impl State {
    pub(super) fn new(template: Arc<Template>, helpers: Arc<Helpers>, ends: Arc<[u32]>) -> Self {
        let cursor = Some(Cursor::new(template, ends));
        let (tokens, wanted, masks) = (Vec::new(), 0, BTreeMap::new());
        let inner = Mutex::new(Inner { cursor, tokens, wanted, masks, is_queued: false });
        let mut state = State { shared: Arc::new(Shared { inner, changed: Condvar::new() }), helpers };
        // The first one is known before the prompt is.
        state.prepare(&[], &[]);
        state
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }

    /// Compute what is wanted, also what is only then.
    fn work(&self) {
        let mut inner = self.lock();
        let Some(mut cursor) = inner.cursor.take() else { return };
        while let Some(len) = inner.next_wanted() {
            let tokens = inner.tokens.get(..len).unwrap_or_default().to_vec();
            drop(inner);
            // A fault must not leave the sequence waiting for ever.
            let mask = catch_unwind(AssertUnwindSafe(|| cursor.mask(&tokens).map(Arc::new)));
            let mask = mask.unwrap_or_else(|_| Err(ConstraintError("it cannot be followed any further".into())));
            inner = self.lock();
            if inner.tokens.starts_with(&tokens) {
                inner.masks.insert(len, mask);
            }
            self.changed.notify_all();
        }
        (inner.cursor, inner.is_queued) = (Some(cursor), false);
        self.changed.notify_all();
    }
}

impl Inner {
    /// Go on with `answer`, and behind it `guesses`.
    fn set(&mut self, answer: &[u32], guesses: &[u32]) {
        let new = answer.iter().chain(guesses);
        let common = self.tokens.iter().zip(new.clone()).take_while(|(a, b)| a == b).count();
        self.masks.retain(|len, _| (answer.len()..=common).contains(len));
        self.tokens.truncate(common);
        self.tokens.extend(new.skip(common));
        self.wanted = answer.len();
    }

    /// The length of the first tokens whose mask is to be computed.
    fn next_wanted(&self) -> Option<usize> {
        for len in self.wanted..=self.tokens.len() {
            let Some(mask) = self.masks.get(&len) else { return Some(len) };
            let next = self.tokens.get(len);
            // Behind a guess that does not fit nothing is drawn.
            if !matches!((mask, next), (Ok(mask), Some(next)) if mask.allows(*next)) {
                return None;
            }
        }
        None
    }

    /// The mask that follows `answer`, if it is there.
    fn found(&mut self, answer: &[u32]) -> Option<&Mask> {
        if !self.tokens.starts_with(answer) {
            self.set(answer, &[]);
        }
        self.masks.get(&answer.len())
    }
}

impl ConstraintState for State {
    fn mask(&mut self, answer: &[u32]) -> Mask {
        let mut inner = self.shared.lock();
        loop {
            if let Some(mask) = inner.found(answer) {
                return mask.clone();
            }
            let Some(mut cursor) = inner.cursor.take() else {
                inner = self.shared.wait(inner);
                continue;
            };
            let mask = cursor.mask(answer).map(Arc::new);
            inner.cursor = Some(cursor);
            inner.masks.insert(answer.len(), mask.clone());
            return mask;
        }
    }

    fn prepare(&mut self, answer: &[u32], guesses: &[u32]) {
        let mut inner = self.shared.lock();
        inner.set(answer, guesses);
        if self.helpers.is_empty() || inner.is_queued || inner.next_wanted().is_none() {
            return;
        }
        inner.is_queued = true;
        drop(inner);
        let shared = self.shared.clone();
        self.helpers.run(Box::new(move || shared.work()));
    }

    fn wait(&mut self, answer: &[u32], until: Instant) -> bool {
        let is_there = self.shared.lock().found(answer).is_some();
        if is_there || self.helpers.is_empty() {
            return true;
        }
        if !self.shared.lock().is_queued {
            self.prepare(answer, &[]);
        }
        let mut inner = self.shared.lock();
        while inner.found(answer).is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (inner, _) = self.shared.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn forced(&mut self, answer: &[u32], at_most: usize) -> Vec<u32> {
        // Where a helper is at work still, its time is worth more than what it knows.
        let mut inner = self.shared.lock();
        let mut forced = inner.cursor.as_mut().map(|cursor| cursor.forced(answer)).unwrap_or_default();
        forced.truncate(at_most);
        forced
    }

    fn num_allowed(&mut self, answer: &[u32], guesses: &[u32]) -> usize {
        let mut inner = self.shared.lock();
        inner.cursor.as_mut().map_or(guesses.len(), |cursor| cursor.num_allowed(answer, guesses))
    }
}
