//! The sizes that a runner and its backend are built for. Plain data.

use super::layout::PAD_SLOT;
use crate::error::{Error, Result};

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
    /// Rows of the embedding table: ids are less than this, and a row of logits is this long.
    pub vocab_size: usize,
    /// Ids from this one on are padding of the table and never chosen.
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
