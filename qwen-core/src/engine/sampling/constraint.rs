//! What an answer may be, token by token: a grammar as the engine sees it.
//!
//! A [`Constraint`] is what a request asks for; each sequence starts a [`ConstraintState`] of its own. The state says
//! which tokens may follow an answer. It is always asked with the whole answer: tokens are also tried that are taken back
//! later (speculation, draft models), and the state goes back by itself. So there is no call that has to be balanced by
//! another one, and a sequence that is preempted or copied needs nothing.
//!
//! Masks take time, so they may be computed on another thread while the device runs the step: the engine says which ones it
//! will need ([`ConstraintState::prepare`]) before the step, and waits for them when the logits are there, but not for long:
//! a sequence whose mask is late sits the step out, and nobody else waits for it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the answer of a request may be. An answer that does not fit is never given: each of its tokens is chosen from
/// those that fit, before any other parameter acts.
///
/// ```
/// use std::sync::Arc;
/// use qwen_core::engine::GenerateParams;
/// use qwen_core::engine::sampling::{Constraint, ConstraintError, ConstraintState, TokenMask};
///
/// /// Only tokens below 4.
/// #[derive(Debug)]
/// struct Small;
///
/// impl Constraint for Small {
///     fn start(&self) -> Box<dyn ConstraintState> {
///         Box::new(Small)
///     }
/// }
///
/// impl ConstraintState for Small {
///     fn mask(&mut self, _: &[u32]) -> Result<Arc<TokenMask>, ConstraintError> {
///         Ok(Arc::new(TokenMask::of(&[0, 1, 2, 3])))
///     }
/// }
///
/// let params = GenerateParams::new().constraint(Arc::new(Small));
/// ```
pub trait Constraint: Send + Sync + fmt::Debug {
    /// The state of a new answer. Called on the engine's thread.
    fn start(&self) -> Box<dyn ConstraintState>;
}

/// How a [`Constraint`] goes on, for one answer. All of it must follow from the answer alone, not from what was asked
/// before.
pub trait ConstraintState: Send + fmt::Debug {
    /// The tokens that may follow `answer`, those that end it included. Computed now where [`ConstraintState::prepare`]
    /// was not asked for it.
    ///
    /// # Errors
    /// When it cannot say. The request fails; others go on.
    fn mask(&mut self, answer: &[u32]) -> Result<Arc<TokenMask>, ConstraintError>;

    /// Begin to compute, elsewhere, the masks that follow `answer`, and `answer` with each further one of `guesses`. By
    /// default nothing: [`ConstraintState::mask`] does it.
    fn prepare(&mut self, answer: &[u32], guesses: &[u32]) {
        let _ = (answer, guesses);
    }

    /// Wait until then for what [`ConstraintState::mask`] needs for `answer`, beginning with it where it was not
    /// prepared. False if it is not there.
    fn wait(&mut self, answer: &[u32], until: Instant) -> bool {
        let _ = (answer, until);
        true
    }

    /// The tokens that have to follow `answer`, at most `at_most` of them, as far as that is known without much work. They
    /// are computed in one step.
    fn forced(&mut self, answer: &[u32], at_most: usize) -> Vec<u32> {
        let _ = (answer, at_most);
        Vec::new()
    }

    /// How many of `guesses` may follow `answer`, in a row. Too many cost time, no more.
    fn num_allowed(&mut self, answer: &[u32], guesses: &[u32]) -> usize {
        let _ = answer;
        guesses.len()
    }
}

/// Why a constraint does not say what may follow. Its text goes to whoever asked for the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Which token ids may follow: a bit for each.
///
/// ```
/// use qwen_core::engine::sampling::TokenMask;
/// let mask = TokenMask::of(&[3, 40]);
/// assert!(mask.allows(40) && !mask.allows(4) && !mask.allows(1_000_000));
/// assert_eq!(mask.ids().collect::<Vec<_>>(), [3, 40]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl TokenMask {
    /// The mask whose words are these: id `i` is bit `i % 32` of word `i / 32`. Ids behind them are ruled out.
    pub fn from_words(words: Vec<u32>) -> Self {
        TokenMask { words }
    }

    /// These ids.
    pub fn of(ids: &[u32]) -> Self {
        let mut mask = TokenMask::default();
        ids.iter().for_each(|id| mask.set(*id, true));
        mask
    }

    /// Allow an id, or rule it out.
    pub fn set(&mut self, id: u32, allowed: bool) {
        let (word, bit) = (id as usize / 32, 1 << (id % 32));
        if allowed && word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word = if allowed { *word | bit } else { *word & !bit };
        }
    }

    /// Whether an id may follow.
    #[must_use]
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The ids that may follow, in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let bits = |(index, word): (usize, &u32)| {
            let (word, first) = (*word, index as u32 * 32);
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
        };
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }

    /// Set the logits of all other ids to negative infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let (known, rest) = logits.split_at_mut(logits.len().min(32 * self.words.len()));
        rest.fill(f32::NEG_INFINITY);
        for (word, logits) in self.words.iter().zip(known.chunks_mut(32)) {
            match *word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// A [`Constraint`] of a request. Two are equal if they are the same one.
#[derive(Debug, Clone)]
pub struct SharedConstraint(pub Arc<dyn Constraint>);

impl PartialEq for SharedConstraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The state of a sequence, which the copies of its sampler share: it goes to the answer that it is asked about.
#[derive(Debug, Clone)]
pub(super) struct State(Arc<Mutex<Box<dyn ConstraintState>>>);

impl State {
    pub(super) fn new(state: Box<dyn ConstraintState>) -> Self {
        State(Arc::new(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Box<dyn ConstraintState>> {
        // What a panic left half done is asked about the whole answer again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
