//! A stage of the caller's own.

use std::fmt;
use std::sync::Arc;

/// The tokens before the one that is to be chosen.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct History<'a> {
    /// The prompt and the answer so far.
    pub tokens: &'a [u32],
    /// How many of them are the prompt.
    pub prompt_len: usize,
}

impl<'a> History<'a> {
    /// The first `prompt_len` of `tokens` are the prompt, the others the answer so far.
    pub fn new(tokens: &'a [u32], prompt_len: usize) -> Self {
        History { tokens, prompt_len }
    }

    /// The answer so far.
    pub fn answer(&self) -> &'a [u32] {
        self.tokens.get(self.prompt_len..).unwrap_or_default()
    }

    /// The position of the token in the answer, counted from 0.
    pub fn position(&self) -> usize {
        self.answer().len()
    }
}

/// A stage of the caller's own, which runs as [`Stage::Custom`](super::Stage::Custom).
///
/// It must be a function of the history and the logits alone: it is also called for histories that are only tried, and
/// called again after a preemption. What it remembers apart from them would make answers depend on both. It runs on an
/// engine's thread and holds up all requests there. If it panics, its own request fails.
///
/// ```
/// use std::sync::Arc;
/// use qwen_core::engine::sampling::{History, LogitsProcessor, Sampler, SamplingParams, Workspace};
///
/// #[derive(Debug)]
/// struct NeverTwice;
///
/// impl LogitsProcessor for NeverTwice {
///     fn process(&self, history: &History<'_>, logits: &mut [f32]) {
///         if let Some(last) = history.tokens.last() {
///             logits[*last as usize] = f32::NEG_INFINITY;
///         }
///     }
/// }
///
/// let params = SamplingParams::new().processor(Arc::new(NeverTwice));
/// let mut sampler = Sampler::new(params, &[1])?;
/// let mut workspace = Workspace::default();
/// assert_eq!(sampler.sample(&[1], &mut [0.0, 2.0, 1.0], &mut workspace), Ok(2));
/// # Ok::<(), qwen_core::Error>(())
/// ```
pub trait LogitsProcessor: Send + Sync + fmt::Debug {
    /// Change the logits from which the token after `history` is chosen, one for each token id. Negative infinity rules
    /// a token out. NaN and positive infinity fail the request.
    fn process(&self, history: &History<'_>, logits: &mut [f32]);
}

/// Stages of the caller's own, in order. Two lists are equal if they are the same processors.
#[derive(Debug, Clone, Default)]
pub struct Processors(Vec<Arc<dyn LogitsProcessor>>);

impl Processors {
    /// Add one, which runs after the others.
    pub fn push(&mut self, processor: Arc<dyn LogitsProcessor>) {
        self.0.push(processor);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn LogitsProcessor>> {
        self.0.iter()
    }
}

impl PartialEq for Processors {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}
