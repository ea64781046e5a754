//! What a draft model has of a sequence: K/V of its tokens and of guesses.

use std::sync::Arc;

use super::worth::{Record, Worth};
use crate::engine::kv::{BlockPool, Prefix, SharedBlocks};

#[derive(Debug)]
pub(super) struct State {
    pub(super) blocks: SharedBlocks,
    /// Positions whose K/V is computed: of known tokens, and behind them of guesses.
    pub(super) num_computed_tokens: usize,
    /// The sequence's tokens when it was last looked at.
    num_known: usize,
    /// What was guessed to follow them.
    pub(super) guesses: Vec<u32>,
    pub(super) record: Record,
    /// It has tokens that the draft model lacks, or its K/V was damaged.
    pub(super) is_unfit: bool,
    /// The round in which it was last of use.
    pub(super) last_round: u64,
}

impl State {
    pub(super) fn new(cache_salt: &Arc<str>, rope_stage: u32, block_size: usize) -> Self {
        let root = Prefix::Root { cache_salt: cache_salt.clone(), rope_stage, adapter: None };
        State {
            blocks: SharedBlocks::new(root, block_size),
            num_computed_tokens: 0,
            num_known: 0,
            guesses: Vec::new(),
            record: Record::default(),
            is_unfit: false,
            last_round: 0,
        }
    }

    /// Look at the tokens that came: how many of the guesses were right, and whether the draft model knows all of them.
    pub(super) fn look(&mut self, tokens: &[u32], num_token_ids: usize, worth: &mut Worth) {
        let came = tokens.get(self.num_known..).unwrap_or_default();
        self.is_unfit |= came.iter().any(|id| *id as usize >= num_token_ids);
        let right = came.iter().zip(&self.guesses).take_while(|(a, b)| a == b).count();
        let compared = came.len().min(self.guesses.len());
        match compared {
            // What it was like some time ago says little.
            0 => self.record.fade(0.98f64.powi(came.len() as i32)),
            _ => worth.learn(&mut self.record, right, right < compared),
        }
        // K/V of wrong guesses is overwritten. The last token is computed again, if it was, for its logits.
        let valid = (self.num_known + right).min(tokens.len().saturating_sub(1));
        self.num_computed_tokens = self.num_computed_tokens.min(valid);
        self.num_known = tokens.len();
        self.guesses.clear();
    }

    /// Use blocks of others for the next positions, as far as they hold its tokens. The last token is left to compute.
    pub(super) fn catch_up(&mut self, tokens: &[u32], pool: &mut BlockPool) {
        let known = tokens.get(..tokens.len().saturating_sub(1)).unwrap_or_default();
        if self.blocks.num_published_tokens() >= self.num_computed_tokens
            && let Some(end) = self.blocks.catch_up(known, pool)
        {
            self.num_computed_tokens = end;
        }
    }

    /// Let others find the blocks that are full of known tokens by now, of which the last one does not count: it may be
    /// computed again.
    pub(super) fn publish(&mut self, tokens: &[u32], pool: &mut BlockPool) {
        let settled = self.num_computed_tokens.min(tokens.len().saturating_sub(1));
        self.blocks.publish(tokens, settled, pool);
    }

    /// Give all blocks back.
    pub(super) fn give_up(&mut self, pool: &mut BlockPool) {
        self.blocks.give_up(pool);
        self.num_computed_tokens = 0;
        self.guesses.clear();
    }

    /// The same, and forget what the blocks hold, since it may be damaged.
    pub(super) fn withdraw(&mut self, pool: &mut BlockPool) {
        self.blocks.withdraw(pool);
        self.give_up(pool);
    }
}
