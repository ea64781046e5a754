//! The blocks of one sequence, in order of position.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::BlockPool;
use crate::error::Result;
use crate::model::batch::{BlockId, CopyBlock};

/// The blocks of one sequence. Give it back to its pool with [`BlockTable::free`].
///
/// ```
/// use qwen_core::engine::kv::{BlockPool, BlockTable};
/// let mut pool = BlockPool::new(8);
/// let mut a = BlockTable::new(16);
/// assert!(a.reserve(0, 20, &mut pool)?.is_none());
/// let mut b = a.fork(20, &mut pool);
/// // Both hold 20 positions; writing the 21st copies the block that they share.
/// let copy = b.reserve(20, 21, &mut pool)?.expect("the second block is shared");
/// assert_eq!(copy.from, a.blocks()[1]);
/// assert_eq!(copy.to, b.blocks()[1]);
/// a.free(&mut pool);
/// b.free(&mut pool);
/// assert_eq!(pool.num_free(), 8);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct BlockTable {
    block_size: usize,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// No blocks yet.
    pub fn new(block_size: usize) -> Self {
        BlockTable { block_size: block_size.max(1), blocks: Vec::new() }
    }

    /// Positions of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The blocks in order of position.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Make the positions `computed..end` writable: allocate blocks for them, and replace the block that holds position
    /// `computed` by a copy if it is shared. The caller makes the returned copy before it runs the step.
    ///
    /// # Errors
    /// [`crate::Error::OutOfBlocks`] when the pool is exhausted; the table is then unchanged.
    pub fn reserve(&mut self, computed: usize, end: usize, pool: &mut BlockPool) -> Result<Option<CopyBlock>> {
        let needed = end.div_ceil(self.block_size);
        let held = self.blocks.len();
        let first = computed / self.block_size;
        let shared = self.blocks.get(first).copied().filter(|block| end > computed && pool.ref_count(*block) > 1);
        let own = shared.map(|_| pool.allocate()).transpose()?;
        while self.blocks.len() < needed {
            match pool.allocate() {
                Ok(block) => self.blocks.push(block),
                Err(error) => {
                    self.blocks.drain(held..).for_each(|block| pool.release(block));
                    own.into_iter().for_each(|block| pool.release(block));
                    return Err(error);
                }
            }
        }
        // Later blocks are still empty, and a fork shares only blocks with contents.
        Ok(shared.zip(own).map(|(from, to)| {
            pool.release(from);
            if let Some(block) = self.blocks.get_mut(first) {
                *block = to;
            }
            CopyBlock { from, to }
        }))
    }

    /// Put `block`, to which the table now has a reference, at `index`: in place of what is there, or at the end.
    pub fn adopt(&mut self, index: usize, block: BlockId, pool: &mut BlockPool) {
        match self.blocks.get_mut(index) {
            Some(held) => pool.release(std::mem::replace(held, block)),
            None => self.blocks.push(block),
        }
    }

    /// Append a block that is to begin as `from` does. The caller makes the returned copy before the block is used, and
    /// releases `from` afterwards, which has one reference more until then. `None` without a free block.
    pub fn append_copy(&mut self, from: BlockId, pool: &mut BlockPool) -> Option<CopyBlock> {
        // First, so that it is not taken for the copy.
        pool.retain(from);
        match pool.allocate() {
            Ok(to) => {
                self.blocks.push(to);
                Some(CopyBlock { from, to })
            }
            Err(_) => {
                pool.release(from);
                None
            }
        }
    }

    /// A second sequence that shares the blocks of the first `computed` positions.
    pub fn fork(&self, computed: usize, pool: &mut BlockPool) -> BlockTable {
        let blocks: Vec<BlockId> = self.blocks.iter().take(computed.div_ceil(self.block_size)).copied().collect();
        blocks.iter().for_each(|block| pool.retain(*block));
        BlockTable { block_size: self.block_size, blocks }
    }

    /// Return the blocks to the pool, the last one first: of contents that stay, it is the first to go.
    pub fn free(self, pool: &mut BlockPool) {
        self.blocks.into_iter().rev().for_each(|block| pool.release(block));
    }
}
