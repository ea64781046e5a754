//! The reference counts of all blocks, and which block is taken next.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::prefix_cache::{Prefix, PrefixCache};
use crate::error::{Error, Result};
use crate::model::batch::BlockId;

/// Counts the references to each block and allocates those without any: first those that hold nothing, then the
/// contents that were not used for the longest time.
///
/// ```
/// use qwen_core::engine::kv::{BlockPool, Prefix};
/// let mut pool = BlockPool::new(2);
/// let block = pool.allocate()?;
/// pool.retain(block);
/// pool.release(block);
/// assert_eq!(pool.num_free(), 1);
/// // A full block is found by its tokens, also when nobody uses it any more.
/// pool.publish(&Prefix::default(), &[1, 2], block);
/// pool.release(block);
/// assert_eq!((pool.num_free(), pool.num_cached()), (2, 1));
/// assert_eq!(pool.find(&Prefix::default(), &[1, 2]).map(|(block, _)| block), Some(block));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    /// Blocks without a reference and without contents.
    empty: Vec<BlockId>,
    cache: PrefixCache,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks, at most as many as a [`BlockId`] can number.
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        // Reversed, so that the lowest numbers are allocated first.
        let empty = (0..num_blocks).rev().map(BlockId).collect();
        BlockPool { ref_counts: vec![0; num_blocks as usize], empty, cache: PrefixCache::default() }
    }

    /// Blocks without a reference, with contents or without.
    pub fn num_free(&self) -> usize {
        self.empty.len() + self.num_cached()
    }

    /// Blocks without a reference that still hold contents.
    pub fn num_cached(&self) -> usize {
        self.cache.num_idle()
    }

    /// The total number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// References to `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts.get(block.0 as usize).copied().unwrap_or(0)
    }

    /// Take a free block, with one reference. What it held is forgotten.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] when there is none.
    pub fn allocate(&mut self) -> Result<BlockId> {
        let block = self.empty.pop().or_else(|| self.cache.evict()).ok_or_else(|| self.exhausted(1))?;
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize) {
            *count = 1;
        }
        Ok(block)
    }

    /// The error that `needed` blocks are needed and fewer are free.
    pub(super) fn exhausted(&self, needed: usize) -> Error {
        let advice = "end a sequence, or load with a larger context or for more sequences".into();
        Error::OutOfBlocks { needed, available: self.num_free(), advice }
    }

    /// Add a reference to a block that has one, or that holds contents.
    pub fn retain(&mut self, block: BlockId) {
        let was_idle = self.cache.reuse(block);
        debug_assert!(was_idle || self.ref_count(block) > 0, "retained a free block");
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize) {
            *count += 1;
        }
    }

    /// Drop a reference; the last one frees the block, which keeps its contents until it is allocated again.
    pub fn release(&mut self, block: BlockId) {
        debug_assert!(self.ref_count(block) > 0, "released a free block");
        if let Some(count) = self.ref_counts.get_mut(block.0 as usize).filter(|count| **count > 0) {
            *count -= 1;
            if *count == 0 && !self.cache.keep(block) {
                self.empty.push(block);
            }
        }
    }

    /// The block that holds `tokens` after `before`, and what comes before the next block. It gets no reference.
    pub fn find(&self, before: &Prefix, tokens: &[u32]) -> Option<(BlockId, Prefix)> {
        self.cache.find(before, tokens)
    }

    /// The block after `before` that begins with the most of `tokens`, at least one, and how many these are: for
    /// sequences that can copy it. It gets no reference.
    pub fn find_beginning(&self, before: &Prefix, tokens: &[u32]) -> Option<(BlockId, usize)> {
        self.cache.find_beginning(before, tokens)
    }

    /// The roots with this salt that something begins with.
    pub(super) fn roots(&self, salt: &str) -> impl Iterator<Item = &Prefix> {
        self.cache.roots(salt)
    }

    /// Let others find `block`, which holds `tokens` after `before`, until it is allocated for something else. Its owner
    /// may go on to fill it and publish it again. Returns the block that is found from now on, which may be an earlier
    /// one with the same contents, and what comes before the next block. References do not change.
    pub fn publish(&mut self, before: &Prefix, tokens: &[u32], block: BlockId) -> (BlockId, Prefix) {
        self.find(before, tokens).unwrap_or_else(|| {
            self.cache.outdone(before, tokens).into_iter().for_each(|other| self.forget(other));
            (block, self.cache.insert(before, tokens, block))
        })
    }

    /// Forget what `block` holds, so that nobody finds it.
    pub fn forget(&mut self, block: BlockId) {
        if self.cache.forget(block) {
            self.empty.push(block);
        }
    }
}
