//! A ragged batch: what the engine asks a runner to compute in one step. Plain data, no device.
//!
//! Prompts, chunks of prompts and single tokens stand side by side, without a prefill or decode flag: each sequence
//! contributes the tokens that it has beyond those computed before, and names the blocks that hold its K/V.

use crate::backend::layout::{ModelShape, PAD_SLOT};
use crate::error::{Error, Result};
use crate::kv::BlockId;
use crate::size;

/// The sizes that a runner is built for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Positions of a sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Tokens of a step, over all sequences.
    pub max_num_batched_tokens: usize,
    /// Sequences of a step.
    pub max_num_seqs: usize,
    /// Rows of logits of a step.
    pub max_num_logits: usize,
    /// Positions of a K/V block.
    pub block_size: usize,
    /// K/V blocks.
    pub num_blocks: usize,
    /// Rows of the embedding table: ids are below it, and a row of logits is this long.
    pub vocab_size: usize,
    /// Ids at or above it are padding of the table and never chosen.
    pub num_token_ids: usize,
}

impl Limits {
    /// Check that a runner can be built for these sizes, whatever its device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field, its bound and its value.
    pub fn check(&self) -> Result<()> {
        // Positions, slots and rows are u32 on devices; the largest u32 marks padding.
        let most = PAD_SLOT as usize - 1;
        let bounds = [
            ("max_model_len", self.max_model_len, most),
            ("max_num_batched_tokens", self.max_num_batched_tokens, most),
            ("max_num_seqs", self.max_num_seqs, most - 1),
            ("max_num_logits", self.max_num_logits, most),
            ("block_size", self.block_size, most),
            ("num_blocks", self.num_blocks, most / self.block_size.max(1)),
            ("vocab_size", self.vocab_size, most),
            ("num_token_ids", self.num_token_ids, self.vocab_size),
        ];
        for (name, value, most) in bounds {
            if value == 0 || value > most {
                return Err(Error::argument(name, format!("must be in 1..={most}, is {value}")));
            }
        }
        Ok(())
    }

    /// Blocks of the longest sequence.
    pub fn max_blocks_per_seq(&self) -> usize {
        self.max_model_len.div_ceil(self.block_size.max(1))
    }
}

/// Which rows of logits a sequence wants of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WantLogits {
    /// None: a chunk of a prompt that is not its last.
    None,
    /// Of its last token.
    #[default]
    Last,
    /// Of each token.
    All,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct SequenceStep<'a> {
    /// The tokens to compute.
    pub input_ids: &'a [u32],
    /// Positions that were computed in earlier steps: the first token's position.
    pub num_computed_tokens: usize,
    /// Blocks for all positions up to the last of `input_ids`.
    pub block_table: &'a [BlockId],
    /// The rows of logits to return.
    pub logits: WantLogits,
}

/// The sequences of a step, flattened. Reused from step to step.
///
/// ```
/// use qwen_core::batch::{Batch, SequenceStep, WantLogits};
/// use qwen_core::kv::BlockId;
/// let mut batch = Batch::new(16);
/// let block_table = [BlockId(3), BlockId(0)];
/// let ids = [7, 8, 9];
/// let logits = WantLogits::Last;
/// batch.push(SequenceStep { input_ids: &ids, num_computed_tokens: 14, block_table: &block_table, logits })?;
/// assert_eq!(batch.slot_mapping, [3 * 16 + 14, 3 * 16 + 15, 0]);
/// assert_eq!(batch.logits_indices, [2]);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Batch {
    block_size: usize,
    /// `[num_tokens]` token ids.
    pub input_ids: Vec<u32>,
    /// `[num_tokens]` positions within their sequences.
    pub positions: Vec<u32>,
    /// `[num_seqs + 1]` prefix sums of the tokens of each sequence.
    pub cu_seqlens_q: Vec<u32>,
    /// `[num_seqs]` positions of each sequence after this step.
    pub context_lens: Vec<u32>,
    /// `[num_tokens]` where each token's K/V goes.
    pub slot_mapping: Vec<u32>,
    /// The block tables one after the other.
    pub block_tables: Vec<u32>,
    /// `[num_seqs + 1]` prefix sums of the lengths of the block tables.
    pub cu_blocks: Vec<u32>,
    /// `[num_logits]` rows whose logits are wanted.
    pub logits_indices: Vec<u32>,
    /// Whether the logits are read back, beside the index of each row's largest one.
    pub read_logits: bool,
}

impl Batch {
    /// An empty batch over K/V blocks of `block_size` positions.
    pub fn new(block_size: usize) -> Self {
        let mut batch = Batch { block_size: block_size.max(1), ..Batch::default() };
        batch.clear();
        batch
    }

    /// Forget all sequences.
    pub fn clear(&mut self) {
        for list in [
            &mut self.input_ids,
            &mut self.positions,
            &mut self.cu_seqlens_q,
            &mut self.context_lens,
            &mut self.slot_mapping,
            &mut self.block_tables,
            &mut self.cu_blocks,
            &mut self.logits_indices,
        ] {
            list.clear();
        }
        self.cu_seqlens_q.push(0);
        self.cu_blocks.push(0);
        self.read_logits = true;
    }

    /// Tokens of all sequences.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Sequences.
    pub fn num_seqs(&self) -> usize {
        self.context_lens.len()
    }

    /// The most tokens that one sequence has.
    pub fn max_seqlen_q(&self) -> usize {
        self.cu_seqlens_q.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    /// Add a sequence.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] without tokens, [`Error::InvalidArgument`] when the block table is too short.
    pub fn push(&mut self, sequence: SequenceStep<'_>) -> Result<()> {
        let SequenceStep { input_ids, num_computed_tokens, block_table, logits } = sequence;
        if input_ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let end = num_computed_tokens + input_ids.len();
        if block_table.len() * self.block_size < end {
            return Err(Error::argument(
                "block_table",
                format!("{} blocks of {} positions do not hold {end} positions", block_table.len(), self.block_size),
            ));
        }
        let first = self.num_tokens() as u32;
        self.input_ids.extend_from_slice(input_ids);
        for position in num_computed_tokens..end {
            self.positions.push(position as u32);
            let block = block_table[position / self.block_size];
            self.slot_mapping.push(block.0 * self.block_size as u32 + (position % self.block_size) as u32);
        }
        let last = self.num_tokens() as u32;
        self.cu_seqlens_q.push(last);
        self.context_lens.push(end as u32);
        self.block_tables.extend(block_table.iter().map(|block| block.0));
        self.cu_blocks.push(self.block_tables.len() as u32);
        match logits {
            WantLogits::None => {}
            WantLogits::Last => self.logits_indices.push(last - 1),
            WantLogits::All => self.logits_indices.extend(first..last),
        }
        Ok(())
    }

    /// Check the batch against what a runner was built for.
    ///
    /// # Errors
    /// [`Error::InvalidTokenId`], [`Error::ContextLength`] or [`Error::InvalidArgument`] with the figures.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let bounds = [
            ("num_batched_tokens", self.num_tokens(), limits.max_num_batched_tokens),
            ("num_seqs", self.num_seqs(), limits.max_num_seqs),
            ("num_logits", self.logits_indices.len(), limits.max_num_logits),
            ("block_table", self.block_tables.iter().max().map_or(0, |block| *block as usize + 1), limits.num_blocks),
        ];
        for (name, found, limit) in bounds {
            if found > limit {
                return Err(Error::argument(name, format!("{found} exceeds the runner's {limit}")));
            }
        }
        if self.block_size != limits.block_size {
            let reason = format!("{} differs from the runner's {}", self.block_size, limits.block_size);
            return Err(Error::argument("block_size", reason));
        }
        if let Some(&len) = self.context_lens.iter().find(|len| **len as usize > limits.max_model_len) {
            return Err(Error::ContextLength { prompt: len as usize, context: limits.max_model_len });
        }
        for (&id, &position) in self.input_ids.iter().zip(&self.positions) {
            if id as usize >= limits.vocab_size {
                let position = position as usize;
                return Err(Error::InvalidTokenId { id, position, vocab_size: limits.vocab_size });
            }
        }
        Ok(())
    }
}

/// What a step computed.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// `[num_logits, vocab_size]`, empty unless [`Batch::read_logits`].
    pub logits: Vec<f32>,
    /// `[num_logits]` the index of the largest logit of an id that may be chosen.
    pub greedy_ids: Vec<u32>,
}

/// Bytes of the f32 and u32 buffers that [`crate::model::Model`] makes for these limits; `u64::MAX` where a u64 does not
/// hold them.
pub fn activation_bytes(limits: &Limits, shape: &ModelShape, gate_up_scratch: bool) -> u64 {
    let ModelShape { hidden_size, intermediate_size, heads, .. } = *shape;
    let per_token = 3 * hidden_size
        + heads.qkv_size()
        + heads.q_size()
        + intermediate_size * if gate_up_scratch { 3 } else { 1 }
        + heads.head_dim
        + 2;
    let per_seq = limits.max_blocks_per_seq().saturating_add(2);
    let per_row = limits.vocab_size.saturating_add(hidden_size).saturating_add(2);
    [
        size::bytes(4, &[limits.max_num_batched_tokens, per_token]),
        size::bytes(4, &[limits.max_num_seqs, per_seq]),
        size::bytes(4, &[limits.max_num_logits, per_row]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}
