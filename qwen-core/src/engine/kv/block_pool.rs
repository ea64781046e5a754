//! The free list and the reference counts of all blocks.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use crate::error::{Error, Result};
use crate::model::batch::BlockId;

/// Counts the references to each block and allocates those without any.
///
/// ```
/// use qwen_core::engine::kv::BlockPool;
/// let mut pool = BlockPool::new(2);
/// let block = pool.allocate()?;
/// pool.retain(block);
/// pool.release(block);
/// assert_eq!(pool.num_free(), 1);
/// pool.release(block);
/// assert_eq!(pool.num_free(), 2);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks, at most as many as a [`BlockId`] can number.
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        // Reversed, so that the lowest numbers are allocated first.
        let free = (0..num_blocks).rev().map(BlockId).collect();
        BlockPool { ref_counts: vec![0; num_blocks as usize], free }
    }

    /// Blocks without a reference.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// The total number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// References to `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts.get(block.0 as usize).copied().unwrap_or(0)
    }

    /// Take a free block, with one reference.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] when there is none.
    pub fn allocate(&mut self) -> Result<BlockId> {
        let block = self.free.pop().ok_or_else(|| self.exhausted(1))?;
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize) {
            *count = 1;
        }
        Ok(block)
    }

    /// The error that `needed` blocks are needed and fewer are free.
    pub(super) fn exhausted(&self, needed: usize) -> Error {
        let advice = "end a sequence, or load with a larger context or for more sequences".into();
        Error::OutOfBlocks { needed, available: self.free.len(), advice }
    }

    /// Add a reference to a block that has one.
    pub fn retain(&mut self, block: BlockId) {
        debug_assert!(self.ref_count(block) > 0, "retained a free block");
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize) {
            *count += 1;
        }
    }

    /// Drop a reference; the last one frees the block.
    pub fn release(&mut self, block: BlockId) {
        debug_assert!(self.ref_count(block) > 0, "released a free block");
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize).filter(|count| **count > 0) {
            *count -= 1;
            if *count == 0 {
                self.free.push(block);
            }
        }
    }
}
