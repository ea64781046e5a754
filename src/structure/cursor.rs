//! A place in the text of a grammar, found by the tokens that lead to it.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::StopReason;
use qwen_core::engine::sampling::{ConstraintError, TokenMask};

/// A compiled grammar at its beginning.
pub(super) struct Template {
    matcher: std::sync::Mutex<Matcher>,
    end: u32,
    num_ids: u32,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").finish_non_exhaustive()
    }
}

impl Template {
    /// `end` is the id that the matcher allows where a text may end.
    pub(super) fn new(matcher: Matcher, end: u32, num_ids: u32) -> Self {
        Template { matcher: std::sync::Mutex::new(matcher), end, num_ids }
    }

    /// A copy that shares nothing with others, so that no answer depends on what another one made the parser remember.
    fn matcher(&self) -> Matcher {
        self.matcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).deep_clone()
    }
}

/// Goes to any text of a grammar.
pub(super) struct Cursor {
    template: Arc<Template>,
    matcher: Matcher,
    /// The tokens that lead to where it is.
    tokens: Vec<u32>,
    ends: Arc<[u32]>,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Cursor {
    /// At the beginning of a text that ends with one of `ends`.
    pub(super) fn new(template: Arc<Template>, ends: Arc<[u32]>) -> Self {
        Cursor { matcher: template.matcher(), template, tokens: Vec::new(), ends }
    }

    /// What may follow `answer`.
    pub(super) fn mask(&mut self, answer: &[u32]) -> Result<TokenMask, ConstraintError> {
        self.seek(answer)?;
        let mask = self.matcher.compute_mask_or_eos().map_err(|_| self.error())?;
        let mut mask = TokenMask::from_words(mask.as_slice().to_vec());
        if mask.allows(self.template.end) {
            mask.set(self.template.end, false);
            self.ends.iter().for_each(|id| mask.set(*id, true));
        }
        Ok(mask)
    }

    /// The tokens that have to follow `answer`.
    pub(super) fn forced(&mut self, answer: &[u32]) -> Vec<u32> {
        match self.seek(answer) {
            Ok(()) if !self.matcher.is_stopped() => self.matcher.compute_ff_tokens(),
            _ => Vec::new(),
        }
    }

    /// How many of `guesses` may follow `answer`.
    pub(super) fn num_allowed(&mut self, answer: &[u32], guesses: &[u32]) -> usize {
        let known = guesses.iter().take_while(|id| **id < self.template.num_ids).count();
        let guesses = guesses.get(..known).unwrap_or_default();
        match self.seek(answer) {
            // The end of the text is the last guess of use.
            Ok(()) => self.matcher.validate_tokens(guesses).map_or(0, |allowed| (allowed + 1).min(known)),
            Err(_) => 0,
        }
    }

    /// Go to where `answer` leads.
    fn seek(&mut self, answer: &[u32]) -> Result<(), ConstraintError> {
        let common = self.tokens.iter().zip(answer).take_while(|(a, b)| a == b).count();
        if self.matcher.is_error() || self.go(answer, common).is_err() {
            // What a guess broke, or a part of the text that is no longer there, must not count.
            (self.matcher, self.tokens) = (self.template.matcher(), Vec::new());
            self.go(answer, 0).map_err(|()| self.error())?;
        }
        Ok(())
    }

    fn go(&mut self, answer: &[u32], common: usize) -> Result<(), ()> {
        let back = self.tokens.len() - common;
        if back > 0 {
            self.matcher.rollback(back).map_err(drop)?;
            self.tokens.truncate(common);
        }
        let new = answer.get(common..).unwrap_or_default();
        if !new.is_empty() {
            self.matcher.consume_tokens(new).map_err(drop)?;
            self.tokens.extend_from_slice(new);
        }
        Ok(())
    }

    /// Why there is no mask. The matcher's own text may have parts of the answer.
    fn error(&self) -> ConstraintError {
        let reason = match self.matcher.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                "it is too complex to go on with: simplify it"
            }
            StopReason::NoExtensionBias => "no token of the vocabulary can follow: it asks for what cannot be written",
            _ => "it cannot be followed any further",
        };
        ConstraintError(format!("after {} tokens of the answer {reason}", self.tokens.len()))
    }
}
