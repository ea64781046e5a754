//! One request on its way: its tokens, its blocks, its sampler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::Limits;
use crate::error::{Error, Result};
use crate::kv::BlockTable;
use crate::sampling::{Sampler, SamplingParams};

/// Names a sequence within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model gave a stop token.
    Stop,
    /// `max_new_tokens` or the context is used up.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// What to generate, by ids.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens of the answer at most; `None` for as many as the context holds.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Positions whose K/V is computed.
    pub(super) num_computed_tokens: usize,
    /// Tokens of prompt and answer at most.
    pub(super) max_len: usize,
    pub(super) stop_token_ids: Vec<u32>,
    pub(super) sampler: Sampler,
    pub(super) block_table: BlockTable,
    pub(super) num_scheduled_tokens: usize,
    cancelled: Arc<AtomicBool>,
}

impl Sequence {
    pub(super) fn new(id: SeqId, request: Request, cancelled: Arc<AtomicBool>, limits: &Limits) -> Result<Self> {
        let Request { prompt, max_new_tokens, stop_token_ids, sampling } = request;
        let context = limits.max_model_len;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        // The prompt needs room for one token of the answer.
        if prompt.len() >= context {
            return Err(Error::ContextLength { prompt: prompt.len(), context });
        }
        if let Some((position, &id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= limits.vocab_size) {
            return Err(Error::InvalidTokenId { id, position, vocab_size: limits.vocab_size });
        }
        if max_new_tokens == Some(0) {
            return Err(Error::argument("max_new_tokens", "must be at least 1, is 0"));
        }
        Ok(Sequence {
            id,
            prompt_len: prompt.len(),
            num_computed_tokens: 0,
            max_len: max_new_tokens.map_or(context, |new| context.min(prompt.len().saturating_add(new))),
            stop_token_ids,
            sampler: Sampler::new(sampling, &prompt)?,
            block_table: BlockTable::new(limits.block_size),
            num_scheduled_tokens: 0,
            tokens: prompt,
            cancelled,
        })
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Tokens that are known and not computed.
    pub(super) fn num_pending_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }
}
