//! K/V that leaves an engine and comes back: to another process, or later.
//!
//! What is saved of a text are the blocks that the prefix cache still has of it. What is restored is found by the next
//! sequence that begins with the same tokens, like any other block without a user: nothing here knows of sequences, and
//! no sequence knows of this. Both happen between steps, some blocks at a time, and hold nothing in between: blocks that
//! running sequences need meanwhile are theirs.
#![deny(clippy::indexing_slicing)]

use std::ops::Range;
use std::sync::Arc;

use super::EngineCore;
use super::kv::Prefix;
use crate::backend::KvSpec;
use crate::error::{Error, Result};
use crate::numerics::float_env::FloatEnv;

/// What saved K/V depends on besides its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRoot(Prefix);

impl SavedRoot {
    /// As text for a file. The salt is no part of it.
    #[must_use]
    pub fn encode(&self) -> String {
        match &self.0 {
            Prefix::Root { rope_stage, .. } => format!("rope stage {rope_stage}"),
            // Only roots are made.
            Prefix::Content(_) => String::new(),
        }
    }

    /// The contrary of [`SavedRoot::encode`], with a salt. `None` for a text that it does not write.
    #[must_use]
    pub fn decode(text: &str, cache_salt: impl Into<Arc<str>>) -> Option<Self> {
        let rope_stage = text.strip_prefix("rope stage ")?.parse().ok()?;
        Some(SavedRoot(Prefix::Root { cache_salt: cache_salt.into(), rope_stage, adapter: None }))
    }
}

impl EngineCore {
    /// The layout and the encodings of the blocks that are read and written.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a runner whose K/V stays where it is, and for an engine without a prefix cache.
    pub fn saved_kv(&self) -> Result<KvSpec> {
        if !self.scheduler.prefix_cache {
            let reason = "the engine was loaded without a prefix cache, which is what finds it";
            return Err(Error::unsupported("saved K/V", reason));
        }
        self.runner.stored_kv()
    }

    /// Where most of the K/V of `ids` without an adapter is found under this salt, and of how many tokens. K/V with an
    /// adapter is not saved: which one it was is known in this process alone.
    ///
    /// # Errors
    /// As [`EngineCore::saved_kv`].
    pub fn find_kv(&self, cache_salt: &str, ids: &[u32]) -> Result<Option<(SavedRoot, usize)>> {
        let found = self.scheduler.pool.longest(cache_salt, ids, self.saved_kv()?.block_size);
        Ok(found.map(|(root, len)| (SavedRoot(root), len)))
    }

    /// The bytes of the blocks `range` of `ids` behind `root`, as [`crate::Backend::read_blocks`] writes them. They end
    /// before the first block that is no longer there. The last block of `ids` need not be full.
    ///
    /// # Errors
    /// As [`EngineCore::saved_kv`], and what the device reports.
    pub fn read_kv(&mut self, root: &SavedRoot, ids: &[u32], range: Range<usize>) -> Result<Vec<u8>> {
        let _float_env = FloatEnv::enter();
        let stored = self.saved_kv()?;
        let (chain, _) = self.scheduler.pool.chain(&root.0, ids, stored.block_size);
        let blocks = chain.get(range.start..range.end.min(chain.len())).unwrap_or_default();
        let mut bytes = vec![0; blocks.len() * stored.block_bytes()];
        self.runner.read_blocks(blocks, &mut bytes)?;
        Ok(bytes)
    }

    /// Put whole blocks, which hold the positions of `ids` from block `first` on, behind `root` where they are found; the
    /// last one of `ids` need not be full. Those that are there are left as they are. Returns how many blocks of `ids` are
    /// found now: fewer than were given so far if there is no more room, or if earlier ones are no longer there.
    ///
    /// # Errors
    /// As [`EngineCore::saved_kv`], for bytes that are no whole blocks or more than those of `ids`, and what the device
    /// reports.
    pub fn write_kv(&mut self, root: &SavedRoot, ids: &[u32], first: usize, bytes: &[u8]) -> Result<usize> {
        let _float_env = FloatEnv::enter();
        let stored = self.saved_kv()?;
        let (size, block_bytes) = (stored.block_size.max(1), stored.block_bytes().max(1));
        let end = first.saturating_add(bytes.len() / block_bytes);
        if !bytes.len().is_multiple_of(block_bytes) || end > ids.len().div_ceil(size) {
            let reason = format!("{} bytes from block {first} on, for {} tokens", bytes.len(), ids.len());
            return Err(Error::argument("bytes", reason));
        }
        let ids = ids.get(..end.saturating_mul(size)).unwrap_or(ids);
        let pool = &mut self.scheduler.pool;
        // What is there gets a user, so that room for the rest is found elsewhere.
        let (mut blocks, mut before) = pool.chain(&root.0, ids, size);
        blocks.iter().for_each(|block| pool.retain(*block));
        let found = blocks.len();
        if found >= first {
            while blocks.len() < end && pool.num_free() > 0 {
                blocks.push(pool.allocate()?);
            }
        }
        let (new, skipped) = (blocks.get(found..).unwrap_or_default(), found.saturating_sub(first) * block_bytes);
        let written = match bytes.get(skipped..skipped + new.len() * block_bytes) {
            Some(bytes) if !new.is_empty() => self.runner.write_blocks(new, bytes),
            _ => Ok(()),
        };
        if written.is_ok() {
            for (tokens, block) in ids.chunks(size).skip(found).zip(new) {
                before = pool.publish(&before, tokens, *block).1;
            }
        }
        // The last one first, as sequences do: of contents that stay, it is the first to go.
        blocks.iter().rev().for_each(|block| pool.release(*block));
        self.intake.set_stats(self.scheduler.stats(), None);
        written.map(|()| blocks.len())
    }
}
