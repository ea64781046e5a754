//! The blocks of one sequence, of which others find those that hold its first tokens.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::{BlockPool, BlockTable, Prefix};
use crate::model::batch::CopyBlock;

/// A [`BlockTable`] whose first blocks are found by their tokens. Which tokens these are, its owner says in each call: the
/// same from the first on, as long as nothing is given up.
///
/// ```
/// use qwen_core::engine::kv::{BlockPool, Prefix, SharedBlocks};
/// let (mut pool, tokens) = (BlockPool::new(8), [1, 2, 3, 4, 5]);
/// let mut a = SharedBlocks::new(Prefix::default(), 2);
/// a.table.reserve(0, 5, &mut pool)?;
/// a.publish(&tokens, 5, &mut pool);
/// let mut b = SharedBlocks::new(Prefix::default(), 2);
/// assert_eq!(b.catch_up(&tokens, &mut pool), Some(4));
/// assert_eq!(b.table.blocks(), &a.table.blocks()[..2]);
/// a.give_up(&mut pool);
/// b.give_up(&mut pool);
/// assert_eq!((pool.num_free(), pool.num_cached()), (8, 2));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct SharedBlocks {
    /// The blocks.
    pub table: BlockTable,
    root: Prefix,
    /// What comes before the first block that others cannot find.
    before: Prefix,
    num_published: usize,
}

impl SharedBlocks {
    /// No blocks yet. Only blocks of the same root are shared.
    pub fn new(root: Prefix, block_size: usize) -> Self {
        SharedBlocks { table: BlockTable::new(block_size), before: root.clone(), root, num_published: 0 }
    }

    /// Where it begins.
    pub fn root(&self) -> &Prefix {
        &self.root
    }

    /// The first position of the first block that others cannot find.
    pub fn num_published_tokens(&self) -> usize {
        self.num_published.saturating_mul(self.table.block_size())
    }

    /// Use full blocks of others, as far as they hold `tokens`. Returns where the last one of them ends, if there are any.
    pub fn catch_up(&mut self, tokens: &[u32], pool: &mut BlockPool) -> Option<usize> {
        let mut found = None;
        while let Some(next) = self.next_tokens(tokens) {
            let Some((block, after)) = pool.find(&self.before, next) else { break };
            pool.retain(block);
            self.table.adopt(self.num_published, block, pool);
            self.go_on_after(after);
            found = Some(self.num_published_tokens());
        }
        found
    }

    /// Whether the next position belongs into a block that is not there yet.
    pub fn is_between_blocks(&self) -> bool {
        self.table.blocks().len() == self.num_published
    }

    /// Append a block that is to begin as one of others does which begins with the next of `tokens`. The copy is the
    /// caller's to make (see [`BlockTable::append_copy`]); so many tokens are in it.
    pub fn copy_beginning(&mut self, tokens: &[u32], pool: &mut BlockPool) -> Option<(CopyBlock, usize)> {
        let rest = tokens.get(self.num_published_tokens()..).filter(|_| self.is_between_blocks())?;
        let next = rest.get(..self.table.block_size()).unwrap_or(rest);
        let (from, len) = pool.find_beginning(&self.before, next)?;
        Some((self.table.append_copy(from, pool)?, len))
    }

    /// Let others find the blocks that are full of the first `computed` of `tokens`. Where another block holds the same, it
    /// is used from now on.
    pub fn publish(&mut self, tokens: &[u32], computed: usize, pool: &mut BlockPool) {
        let tokens = tokens.get(..computed).unwrap_or(tokens);
        while let Some((next, &own)) = self.next_tokens(tokens).zip(self.table.blocks().get(self.num_published)) {
            let (block, after) = pool.publish(&self.before, next, own);
            if block != own {
                pool.retain(block);
                self.table.adopt(self.num_published, block, pool);
            }
            self.go_on_after(after);
        }
    }

    /// Let others find the last block too, which is not full of the first `computed` of `tokens`.
    pub fn publish_last(&self, tokens: &[u32], computed: usize, pool: &mut BlockPool) {
        let rest = tokens.get(self.num_published_tokens()..computed).filter(|rest| !rest.is_empty());
        if let Some((rest, &own)) = rest.zip(self.table.blocks().get(self.num_published)) {
            pool.publish(&self.before, rest, own);
        }
    }

    /// Give all blocks back.
    pub fn give_up(&mut self, pool: &mut BlockPool) {
        let size = self.table.block_size();
        std::mem::replace(&mut self.table, BlockTable::new(size)).free(pool);
        (self.before, self.num_published) = (self.root.clone(), 0);
    }

    /// Forget what the blocks hold, since it may be damaged.
    pub fn withdraw(&self, pool: &mut BlockPool) {
        self.table.blocks().iter().for_each(|block| pool.forget(*block));
    }

    /// The tokens of the first block that others cannot find, if there are enough for a full one.
    fn next_tokens<'a>(&self, tokens: &'a [u32]) -> Option<&'a [u32]> {
        let first = self.num_published_tokens();
        tokens.get(first..first.checked_add(self.table.block_size())?)
    }

    fn go_on_after(&mut self, after: Prefix) {
        self.before = after;
        self.num_published += 1;
    }
}
