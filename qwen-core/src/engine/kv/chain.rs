//! The blocks that hold a given text, one after another: for those who copy them elsewhere.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::{BlockPool, Prefix};
use crate::model::batch::BlockId;

impl BlockPool {
    /// The root with this salt behind which most of `ids` is found, and how many of these tokens; `None` if not even the
    /// first one is found anywhere.
    pub fn longest(&self, cache_salt: &str, ids: &[u32], block_size: usize) -> Option<(Prefix, usize)> {
        let found = self.roots(cache_salt).map(|root| (root.clone(), self.num_found(root, ids, block_size)));
        found.max_by_key(|(_, len)| *len).filter(|(_, len)| *len > 0)
    }

    fn num_found(&self, root: &Prefix, ids: &[u32], block_size: usize) -> usize {
        let (mut before, mut found) = (root.clone(), 0);
        for tokens in ids.chunks(block_size.max(1)) {
            match self.find(&before, tokens).filter(|_| tokens.len() == block_size) {
                Some((_, next)) => (before, found) = (next, found + tokens.len()),
                None => return found + self.find_beginning(&before, tokens).map_or(0, |(_, len)| len),
            }
        }
        found
    }

    /// The blocks that hold `ids` behind `root`, as far as they are found, and what comes before the next one. The last
    /// one need not be full.
    pub fn chain(&self, root: &Prefix, ids: &[u32], block_size: usize) -> (Vec<BlockId>, Prefix) {
        let (mut before, mut blocks) = (root.clone(), Vec::new());
        for tokens in ids.chunks(block_size.max(1)) {
            if tokens.len() < block_size {
                let found = self.find_beginning(&before, tokens).filter(|(_, len)| *len == tokens.len());
                blocks.extend(found.map(|(block, _)| block));
            } else if let Some((block, next)) = self.find(&before, tokens) {
                before = next;
                blocks.push(block);
            } else {
                break;
            }
        }
        (blocks, before)
    }
}
