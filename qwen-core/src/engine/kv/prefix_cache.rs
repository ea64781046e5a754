//! Which blocks hold which tokens: blocks of K/V, found by their tokens and all tokens before them.
//!
//! K/V at a position depends on the tokens up to it and on nothing else, so two sequences that begin with the same
//! tokens can share the blocks of what they have in common. An entry is found by the entry of the block before it and
//! by its own tokens, which are compared, not only hashed: a collision cannot give one sequence the K/V of another's
//! text. What else sets K/V apart is in the [`Root`](Prefix::Root).
//!
//! Full blocks are shared. The last block of a sequence is rarely full, and the first one in which two sequences differ
//! is theirs only in part: such blocks are copied, and count up to the first token that differs.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::batch::{AdapterId, BlockId};

/// What comes before a block: everything that its K/V depends on besides its own tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// Nothing: it is the first block of a sequence. Sequences with different roots share nothing.
    Root {
        /// Keeps those apart that may not share anything.
        cache_salt: Arc<str>,
        /// The stage of RoPE: in another one, K/V of the same tokens differs.
        rope_stage: u32,
        /// The low-rank adapter, with which K/V of the same tokens differs, too. One that is loaded again has another
        /// number, whatever its name.
        adapter: Option<AdapterId>,
    },
    /// The content of the block before it, by a number that is never used twice.
    Content(u64),
}

impl Default for Prefix {
    fn default() -> Self {
        Prefix::Root { cache_salt: "".into(), rope_stage: 0, adapter: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    before: Prefix,
    tokens: Box<[u32]>,
}

#[derive(Debug)]
struct Entry {
    block: BlockId,
    content: u64,
}

/// The contents of blocks, and the order in which blocks without a user are taken for other contents: least recently
/// used first.
///
/// A sequence releases its last block first, and whoever uses a block uses those before it: so a block is never taken
/// before those that follow it.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: HashMap<Key, Entry>,
    /// The entry of each block that has one.
    keys: HashMap<BlockId, Key>,
    /// The blocks that follow each content.
    next: HashMap<Prefix, Vec<BlockId>>,
    /// Blocks with contents and without a user, by the time of their release.
    idle: BTreeMap<u64, BlockId>,
    released: HashMap<BlockId, u64>,
    /// Counts contents and releases.
    clock: u64,
}

impl PrefixCache {
    pub(super) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// The block that holds `tokens` after `before`, and what comes before the next one.
    pub(super) fn find(&self, before: &Prefix, tokens: &[u32]) -> Option<(BlockId, Prefix)> {
        let key = Key { before: before.clone(), tokens: tokens.into() };
        self.entries.get(&key).map(|entry| (entry.block, Prefix::Content(entry.content)))
    }

    /// The block after `before` that begins with the most of `tokens`, at least one, and how many these are.
    pub(super) fn find_beginning(&self, before: &Prefix, tokens: &[u32]) -> Option<(BlockId, usize)> {
        let common = |block: &BlockId| {
            let held = &self.keys.get(block)?.tokens;
            Some((*block, held.iter().zip(tokens).take_while(|(a, b)| a == b).count()))
        };
        let found = self.next.get(before)?.iter().filter_map(common);
        found.max_by_key(|(_, len)| *len).filter(|(_, len)| *len > 0)
    }

    /// The roots with this salt and without an adapter that something begins with.
    pub(super) fn roots(&self, salt: &str) -> impl Iterator<Item = &Prefix> {
        let is_meant = move |root: &Prefix| match root {
            Prefix::Root { cache_salt, adapter: None, .. } => **cache_salt == *salt,
            _ => false,
        };
        self.next.keys().filter(move |root| is_meant(root))
    }

    /// The blocks after `before` without a user whose tokens `tokens` begins with.
    pub(super) fn outdone(&self, before: &Prefix, tokens: &[u32]) -> Vec<BlockId> {
        let is_outdone = |block: &BlockId| {
            self.released.contains_key(block) && self.keys.get(block).is_some_and(|key| tokens.starts_with(&key.tokens))
        };
        self.next.get(before).into_iter().flatten().copied().filter(is_outdone).collect()
    }

    /// Record that `block` holds `tokens` after `before`, which no block did so far.
    pub(super) fn insert(&mut self, before: &Prefix, tokens: &[u32], block: BlockId) -> Prefix {
        self.remove_key(block);
        self.clock += 1;
        let (key, content) = (Key { before: before.clone(), tokens: tokens.into() }, self.clock);
        self.keys.insert(block, key.clone());
        self.next.entry(before.clone()).or_default().push(block);
        self.entries.insert(key, Entry { block, content });
        Prefix::Content(content)
    }

    /// Forget what `block` holds. Returns whether it had contents and no user.
    pub(super) fn forget(&mut self, block: BlockId) -> bool {
        self.remove_key(block);
        self.reuse(block)
    }

    fn remove_key(&mut self, block: BlockId) {
        let Some(key) = self.keys.remove(&block) else { return };
        self.entries.remove(&key);
        if let Some(blocks) = self.next.get_mut(&key.before) {
            blocks.retain(|other| *other != block);
            if blocks.is_empty() {
                self.next.remove(&key.before);
            }
        }
    }

    /// Keep `block`, which has no user any more. False if it holds nothing worth keeping.
    pub(super) fn keep(&mut self, block: BlockId) -> bool {
        let has_content = self.keys.contains_key(&block);
        if has_content {
            self.clock += 1;
            self.idle.insert(self.clock, block);
            self.released.insert(block, self.clock);
        }
        has_content
    }

    /// Record that `block` has a user again. Returns whether it had none.
    pub(super) fn reuse(&mut self, block: BlockId) -> bool {
        self.released.remove(&block).is_some_and(|time| self.idle.remove(&time).is_some())
    }

    /// Take the block that was without a user for the longest time.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.idle.first_key_value()?;
        let block = *block;
        self.forget(block);
        Some(block)
    }
}
