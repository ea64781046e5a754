//! A ragged batch: what the engine asks a runner to compute in one step. Plain data, no device.
//!
//! Prompts, chunks of prompts and single tokens are mixed, without a prefill or decode flag: each sequence contributes
//! its tokens that are not computed yet, and names the blocks that hold its K/V.

use crate::backend::Limits;
use crate::backend::layout::PAD_SLOT;
use crate::error::{Error, Result};

/// The number of a K/V block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A block whose content has to be copied before the next step (see [`crate::Backend::copy_blocks`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyBlock {
    /// The shared block.
    pub from: BlockId,
    /// The sequence's own copy of it.
    pub to: BlockId,
}

/// A low-rank adapter that a runner has loaded: a number that is never used twice for two adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u64);

/// Which rows of logits, or of hidden states, a sequence wants from a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WantLogits {
    /// None: a chunk of a prompt that is not its last.
    None,
    /// Only the index of the largest logit in the row of its last token.
    Argmax,
    /// Only the index of the largest logit in the row of each token.
    ArgmaxAll,
    /// The row of its last token.
    #[default]
    Last,
    /// The row of each token.
    All,
    /// The rows of this many of its last tokens.
    Tail(usize),
    /// No logits, but the hidden states after the final norm of this many of its last tokens.
    Hidden(usize),
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
    /// The rows to return.
    pub logits: WantLogits,
    /// The stage of RoPE that all its positions are computed in (see [`RopeStages`](crate::model::rope::RopeStages)): 0
    /// where it does not depend on the length of a sequence.
    pub rope_stage: u32,
    /// The low-rank adapter that its tokens are computed with (see [`Runner::load_adapter`](super::runner::Runner)).
    pub adapter: Option<AdapterId>,
}

/// The sequences of a step, flattened. Reused from step to step.
///
/// ```
/// use qwen_core::model::batch::{Batch, SequenceStep, WantLogits};
/// use qwen_core::model::batch::BlockId;
/// let mut batch = Batch::new(16);
/// let block_table = [BlockId(3), BlockId(0)];
/// let ids = [7, 8, 9];
/// let logits = WantLogits::Last;
/// batch.push(SequenceStep { input_ids: &ids, num_computed_tokens: 14, block_table: &block_table, logits, rope_stage: 0, adapter: None })?;
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
    /// `[num_seqs]` the stage of RoPE of each sequence.
    pub rope_stages: Vec<u32>,
    /// `[num_seqs]` the low-rank adapter of each sequence.
    pub adapters: Vec<Option<AdapterId>>,
    /// `[num_tokens]` where each token's K/V goes.
    pub slot_mapping: Vec<u32>,
    /// The concatenated block tables.
    pub block_tables: Vec<u32>,
    /// `[num_seqs + 1]` prefix sums of the lengths of the block tables.
    pub cu_blocks: Vec<u32>,
    /// `[num_logits]` tokens whose rows of logits are computed.
    pub logits_indices: Vec<u32>,
    /// How many of these rows, from the first on, the host reads; for the others it reads only the index of the largest
    /// logit. Sequences that want values of logits come first, so that no other rows are read.
    pub num_logits_read: usize,
    /// `[num_hidden]` tokens whose hidden states after the final norm the host reads, in ascending order.
    pub hidden_indices: Vec<u32>,
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
            &mut self.rope_stages,
            &mut self.slot_mapping,
            &mut self.block_tables,
            &mut self.cu_blocks,
            &mut self.logits_indices,
            &mut self.hidden_indices,
        ] {
            list.clear();
        }
        self.adapters.clear();
        self.cu_seqlens_q.push(0);
        self.cu_blocks.push(0);
        self.num_logits_read = 0;
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

    /// The index of the sequence that the token at `index` belongs to.
    pub fn seq_of_token(&self, index: u32) -> usize {
        // The first sum is 0: it is at most any index.
        self.cu_seqlens_q.partition_point(|sum| *sum <= index).saturating_sub(1)
    }

    /// Add a sequence.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] without tokens, [`Error::InvalidArgument`] when the block table is too short, a slot number
    /// overflows, or more rows than tokens are wanted. The batch is then unchanged.
    pub fn push(&mut self, sequence: SequenceStep<'_>) -> Result<()> {
        let SequenceStep { input_ids, num_computed_tokens, block_table, logits, rope_stage, adapter } = sequence;
        if input_ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let end = num_computed_tokens.saturating_add(input_ids.len());
        if block_table.len().saturating_mul(self.block_size) < end {
            return Err(Error::argument(
                "block_table",
                format!("{} blocks of {} positions do not hold {end} positions", block_table.len(), self.block_size),
            ));
        }
        // The largest slot of these blocks, and every position, are 32-bit numbers below the one that means padding.
        let slots =
            block_table.iter().map(|block| (u64::from(block.0) + 1).saturating_mul(self.block_size as u64)).max();
        if slots.unwrap_or(0).max(end as u64) > u64::from(PAD_SLOT) {
            let reason = format!("{slots:?} slots and {end} positions; both are at most {PAD_SLOT}");
            return Err(Error::argument("block_table", reason));
        }
        let tail = match logits {
            WantLogits::None => 0,
            WantLogits::Argmax | WantLogits::Last => 1,
            WantLogits::ArgmaxAll | WantLogits::All => input_ids.len(),
            WantLogits::Tail(rows) | WantLogits::Hidden(rows) => rows,
        };
        if tail > input_ids.len() {
            return Err(Error::argument("logits", format!("{tail} rows of {} tokens are wanted", input_ids.len())));
        }
        self.input_ids.extend_from_slice(input_ids);
        for position in num_computed_tokens..end {
            self.positions.push(position as u32);
            let block = block_table[position / self.block_size];
            self.slot_mapping.push(block.0 * self.block_size as u32 + (position % self.block_size) as u32);
        }
        let last = self.num_tokens() as u32;
        self.cu_seqlens_q.push(last);
        self.context_lens.push(end as u32);
        self.rope_stages.push(rope_stage);
        self.adapters.push(adapter);
        self.block_tables.extend(block_table.iter().map(|block| block.0));
        self.cu_blocks.push(self.block_tables.len() as u32);
        let wanted = match logits {
            WantLogits::Hidden(_) => &mut self.hidden_indices,
            _ => &mut self.logits_indices,
        };
        wanted.extend(last - tail as u32..last);
        if matches!(logits, WantLogits::Last | WantLogits::All | WantLogits::Tail(_)) {
            self.num_logits_read = self.logits_indices.len();
        }
        Ok(())
    }

    /// Check the batch against a runner's limits.
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
            let context = limits.max_model_len;
            return Err(Error::ContextLength { prompt: len as usize, limit: context, context });
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

/// The results of a step. Reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// `[num_logits]` the id of each row's largest logit among those that may be chosen, the lowest id among equals;
    /// `None` if one of them is a NaN or an infinity.
    pub argmax: Vec<Option<u32>>,
    /// `[num_logits_read, vocab_size]`, the leading rows.
    pub logits: Vec<f32>,
    /// `[num_hidden, hidden_size]` the hidden states after the final norm.
    pub hidden: Vec<f32>,
    /// The sequences with rows without an `argmax`, or with hidden states that are not finite, each once, with the place
    /// where damage first appears in them.
    pub damage: Vec<Damage>,
}

/// Where a sequence of a step first has a value that is a NaN or an infinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The sequence's index in the batch.
    pub seq: usize,
    /// The embedding, the layer by number, or the output head.
    pub place: String,
}

impl StepOutput {
    /// Forget everything.
    pub fn clear(&mut self) {
        self.argmax.clear();
        self.logits.clear();
        self.hidden.clear();
        self.damage.clear();
    }

    /// Whether every row has its largest logit, and all hidden states are finite.
    pub fn is_sound(&self) -> bool {
        self.argmax.iter().all(Option::is_some) && self.hidden.iter().all(|value| value.is_finite())
    }

    /// Record where the sequences of damaged rows were damaged, if it was `found`; otherwise it was the output head.
    pub(crate) fn set_damage(&mut self, batch: &Batch, found: &[Damage]) {
        self.damage.clear();
        let width = self.hidden.len().checked_div(batch.hidden_indices.len()).unwrap_or(0).max(1);
        let rows = self.argmax.iter().map(Option::is_some).zip(&batch.logits_indices);
        let hidden = self.hidden.chunks(width).map(|row| row.iter().all(|value| value.is_finite()));
        for (_, &token) in rows.chain(hidden.zip(&batch.hidden_indices)).filter(|(is_sound, _)| !is_sound) {
            let seq = batch.seq_of_token(token);
            // The rows of a sequence follow each other.
            if self.damage.last().is_none_or(|last| last.seq != seq) {
                let head = || Damage { seq, place: "the output head".into() };
                self.damage.push(found.iter().find(|damage| damage.seq == seq).cloned().unwrap_or_else(head));
            }
        }
    }
}
