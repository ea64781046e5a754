//! The state of one request: its tokens, its blocks, and what its logits are used for.

use std::sync::Arc;
use std::time::Instant;

use super::Event;
use super::adapters::LoadedAdapter;
use super::intake::{Canceller, Place, RowWindow, Ticket};
use super::request::{FinishReason, GenerateParams, Goal, Request};
use super::speculation::{Guesser, StepTimes};
use crate::backend::Limits;
use crate::engine::kv::{BlockPool, Prefix, SharedBlocks};
use crate::engine::logprobs::LogprobsParams;
use crate::engine::pooling::Pool;
use crate::engine::sampling::Sampler;
use crate::error::{Error, Result};
use crate::model::batch::{CopyBlock, WantLogits};

/// Identifies a sequence in its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Positions whose K/V is computed.
    pub(super) num_computed_tokens: usize,
    /// Tokens of prompt and answer at most.
    pub(super) max_len: usize,
    pub(super) rope_stage: u32,
    /// The adapter that it is computed with: held, so that it stays loaded.
    pub(super) adapter: Option<Arc<LoadedAdapter>>,
    /// What `max_len` comes from.
    pub(super) full: FinishReason,
    pub(super) task: Task,
    pub(super) blocks: SharedBlocks,
    /// The last step that computed it, or in which it was admitted.
    pub(super) last_step: u64,
    pub(super) canceller: Canceller,
    pub(super) user: Arc<str>,
    pub(super) priority: i32,
    pub(super) deadline: Option<Instant>,
    /// Until it is admitted.
    pub(super) place: Option<Place>,
    /// The copy to be made before the next step: its last block begins as another one does.
    pub(super) copy: Option<CopyBlock>,
    /// Tokens of the prompt whose K/V was there before the first step.
    pub(super) num_cached_tokens: usize,
    /// Tokens of the prompt that were reported as computed.
    pub(super) num_reported_tokens: usize,
    /// Guesses of the tokens after the known ones, to be checked in the next step.
    pub(super) draft: Vec<u32>,
}

/// What its logits are used for.
#[derive(Debug)]
pub(super) enum Task {
    Generate {
        stop_token_ids: Vec<u32>,
        sampler: Sampler,
        logprobs: Option<usize>,
        guesser: Guesser,
        /// Room for tokens at the reader.
        window: Option<RowWindow>,
    },
    /// The rows from position `num_scored` on are still to be used; those before it were, or are not wanted. So K/V up
    /// to it is computed without rows.
    Score { rows: Rows, num_scored: usize },
}

/// What the rows of a prompt become.
#[derive(Debug)]
pub(super) enum Rows {
    /// There are none: what is wanted is the K/V.
    None,
    /// Rows of logits, as far as the reader's window is open.
    Logits(RowWindow),
    Logprobs(LogprobsParams),
    /// Hidden states, which are pooled.
    Hidden(Pool),
}

impl Sequence {
    /// The sequence of a request, in an engine where the stages of RoPE reach up to `rope_contexts`.
    pub(super) fn new(
        id: SeqId,
        request: Request,
        ticket: Ticket,
        limits: &Limits,
        rope_contexts: &[usize],
    ) -> Result<Self> {
        request.check(limits)?;
        let rope_stage = request.rope_stage(limits, rope_contexts);
        let context = rope_contexts.get(rope_stage).map_or(limits.max_model_len, |len| limits.max_model_len.min(*len));
        let limits = &Limits { max_model_len: context, ..limits.clone() };
        let (max_len, full) = (request.max_len(limits), request.full(limits));
        let rope_stage = rope_stage as u32;
        let Request { prompt, goal, cache_salt, adapter, user, priority, deadline, window } = request;
        let root = Prefix::Root { cache_salt, rope_stage, adapter: adapter.as_ref().map(|adapter| adapter.id()) };
        let task = match goal {
            Goal::Generate(GenerateParams { max_new_tokens: Some(0), .. }) => {
                Task::Score { rows: Rows::None, num_scored: prompt.len() }
            }
            Goal::Generate(GenerateParams { stop_token_ids, sampling, logprobs, speculation, constraint, .. }) => {
                let mut sampler = Sampler::new(sampling, &prompt)?.stop_token_ids(&stop_token_ids);
                if let Some(constraint) = constraint {
                    sampler = sampler.constrained(constraint.0.start());
                }
                let guesser = speculation.into();
                Task::Generate { stop_token_ids, sampler, logprobs, guesser, window }
            }
            Goal::Score(window) => Task::Score { rows: Rows::Logits(window), num_scored: 0 },
            Goal::Logprobs(params) => {
                let num_scored = prompt.len() - params.targets.len();
                Task::Score { rows: Rows::Logprobs(params), num_scored }
            }
            Goal::Embed(pooling) => {
                let num_scored = pooling.first(prompt.len());
                Task::Score { rows: Rows::Hidden(Pool::default()), num_scored }
            }
        };
        let Ticket { canceller, place } = ticket;
        Ok(Sequence {
            id,
            prompt_len: prompt.len(),
            num_computed_tokens: 0,
            max_len,
            rope_stage,
            adapter,
            full,
            task,
            blocks: SharedBlocks::new(root, limits.block_size),
            last_step: 0,
            tokens: prompt,
            canceller,
            user,
            priority,
            deadline,
            place: Some(place),
            copy: None,
            num_cached_tokens: 0,
            num_reported_tokens: 0,
            draft: Vec::new(),
        })
    }

    /// Use full blocks of others for the next positions, as far as they hold its tokens. Returns the number of positions
    /// that need not be computed.
    pub(super) fn catch_up(&mut self, pool: &mut BlockPool) -> usize {
        let (before, known) = (self.num_computed_tokens, self.num_sharable_tokens());
        self.num_computed_tokens = self.blocks.catch_up(&self.tokens[..known], pool).unwrap_or(before);
        self.num_computed_tokens - before
    }

    /// Begin the next block with a copy of one of others that begins with its tokens, if there is one. Returns the number
    /// of positions that need not be computed.
    pub(super) fn copy_beginning(&mut self, pool: &mut BlockPool) -> usize {
        let known = self.num_sharable_tokens();
        let Some((copy, len)) = self.blocks.copy_beginning(&self.tokens[..known], pool) else { return 0 };
        self.copy = Some(copy);
        self.num_computed_tokens += len;
        len
    }

    /// The tokens whose K/V may come from others. At least one is left to compute, and all those whose logits are wanted.
    fn num_sharable_tokens(&self) -> usize {
        match &self.task {
            Task::Generate { .. } => self.tokens.len().saturating_sub(1),
            Task::Score { num_scored, .. } => (*num_scored).min(self.tokens.len().saturating_sub(1)),
        }
    }

    /// Let others find the blocks that are full by now. Where another block holds the same, it is used from now on.
    pub(super) fn publish(&mut self, pool: &mut BlockPool) {
        self.blocks.publish(&self.tokens, self.num_computed_tokens, pool);
    }

    /// Let others find the last block, which is not full.
    pub(super) fn publish_last(&self, pool: &mut BlockPool) {
        if self.copy.is_none() {
            self.blocks.publish_last(&self.tokens, self.num_computed_tokens, pool);
        }
    }

    /// Give all blocks back; others find the last one too if they `share` it. Its tokens stay, and their K/V is computed
    /// again where others cannot provide it.
    pub(super) fn give_up(&mut self, pool: &mut BlockPool, share: bool) {
        if share {
            self.publish_last(pool);
        }
        self.copy.take().into_iter().for_each(|copy| pool.release(copy.from));
        self.blocks.give_up(pool);
        self.num_computed_tokens = 0;
    }

    /// Forget what its blocks hold, since it may be damaged.
    pub(super) fn withdraw(&self, pool: &mut BlockPool) {
        self.blocks.withdraw(pool);
    }

    /// The blocks that are missing for its first `positions` positions.
    pub(super) fn num_missing_blocks(&self, positions: usize) -> usize {
        let needed = positions.div_ceil(self.blocks.table.block_size());
        needed.saturating_sub(self.blocks.table.blocks().len())
    }

    /// The blocks that are missing for what is known of it and for its next token: what it needs to run for a while.
    pub(super) fn num_needed_blocks(&self) -> usize {
        self.num_missing_blocks(self.max_len.min(self.tokens.len() + 1))
    }

    /// Tokens that are known but not computed.
    pub(super) fn num_pending_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Whether somebody reads its answer token by token, so that a long step holds it up.
    pub(super) fn is_answering(&self) -> bool {
        matches!(self.task, Task::Generate { .. }) && self.tokens.len() > self.prompt_len
    }

    /// Pending tokens that may be in the next step.
    pub(super) fn num_ready_tokens(&self) -> usize {
        match &self.task {
            Task::Generate { window: Some(window), .. } if window.free() == 0 => 0,
            Task::Generate { .. } => self.num_pending_tokens(),
            Task::Score { rows: Rows::Logits(window), num_scored } => {
                let before = num_scored.saturating_sub(self.num_computed_tokens);
                self.num_pending_tokens().min(before.saturating_add(window.free()))
            }
            Task::Score { .. } => self.num_pending_tokens(),
        }
    }

    /// Rows of logits in a step with its next `num_tokens` tokens.
    pub(super) fn num_rows(&self, num_tokens: usize) -> usize {
        match self.wanted(num_tokens) {
            WantLogits::Tail(rows) => rows,
            WantLogits::All | WantLogits::ArgmaxAll => num_tokens,
            WantLogits::Argmax | WantLogits::Last => 1,
            WantLogits::None | WantLogits::Hidden(_) => 0,
        }
    }

    /// The most tokens in a step with at most `rows` rows of logits.
    pub(super) fn num_tokens_within(&self, rows: usize) -> usize {
        match &self.task {
            Task::Score { rows: Rows::Logits(_) | Rows::Logprobs(_), num_scored } => {
                num_scored.saturating_sub(self.num_computed_tokens).saturating_add(rows)
            }
            _ => usize::MAX,
        }
    }

    /// The most guesses that are of use in the next step: none unless its last token is all that is to be computed.
    pub(super) fn num_guesses(&self) -> usize {
        let Task::Generate { window, .. } = &self.task else { return 0 };
        if self.tokens.len() != self.num_computed_tokens + 1 {
            return 0;
        }
        let room = window.as_ref().map_or(usize::MAX, |window| window.free().saturating_sub(1));
        self.max_len.saturating_sub(self.tokens.len() + 1).min(room)
    }

    /// Guess the tokens after the known ones: those that a constraint forces, or what a guesser has. What a draft model
    /// guessed is there.
    pub(super) fn guess(&mut self, num_seqs: usize, times: &StepTimes) {
        let at_most = self.num_guesses();
        match &mut self.task {
            Task::Generate { guesser: Guesser::Model, .. } => self.draft.truncate(at_most),
            Task::Generate { guesser: Guesser::Lookup(drafter), .. } if at_most > 0 => {
                self.draft.clear();
                self.draft.extend_from_slice(drafter.draft(&self.tokens, at_most, num_seqs, times));
            }
            _ => self.draft.clear(),
        }
        if let Task::Generate { sampler, .. } = &self.task {
            sampler.guide(&self.tokens, &mut self.draft, at_most);
        }
    }

    /// Begin to compute what a constraint needs for the tokens that a step gives, whose next `num_tokens` tokens it has.
    pub(super) fn prepare(&self, num_tokens: usize) {
        if let Task::Generate { sampler, .. } = &self.task
            && let Some(guesses) = num_tokens.checked_sub(self.num_pending_tokens())
        {
            sampler.prepare(&self.tokens, self.draft.get(..guesses).unwrap_or_default());
        }
    }

    /// Whether a draft model guesses for it.
    pub(super) fn has_draft_model(&self) -> bool {
        matches!(self.task, Task::Generate { guesser: Guesser::Model, .. })
    }

    /// Which sequences it may share K/V with.
    pub(super) fn cache_salt(&self) -> Arc<str> {
        match self.blocks.root() {
            Prefix::Root { cache_salt, .. } => cache_salt.clone(),
            Prefix::Content(_) => Arc::default(),
        }
    }

    /// Learn from the tokens that came, how many of the guesses were right.
    pub(super) fn learn(&mut self, came: &[u32]) {
        if let Task::Generate { guesser: Guesser::Lookup(drafter), .. } = &mut self.task {
            drafter.learn(came);
        }
    }

    /// The rows of logits wanted from a step with its next `num_tokens` tokens.
    pub(super) fn wanted(&self, num_tokens: usize) -> WantLogits {
        match &self.task {
            Task::Score { rows, num_scored } => {
                let before = num_scored.saturating_sub(self.num_computed_tokens);
                match (num_tokens.saturating_sub(before), rows) {
                    (0, _) => WantLogits::None,
                    (wanted, Rows::Hidden(_)) => WantLogits::Hidden(wanted),
                    (wanted, _) => WantLogits::Tail(wanted),
                }
            }
            Task::Generate { .. } if num_tokens < self.num_pending_tokens() => WantLogits::None,
            Task::Generate { sampler, logprobs, .. } => {
                let is_guessed = num_tokens > self.num_pending_tokens();
                match (sampler.is_argmax() && logprobs.is_none(), is_guessed) {
                    (true, false) => WantLogits::Argmax,
                    (true, true) => WantLogits::ArgmaxAll,
                    (false, false) => WantLogits::Last,
                    (false, true) => WantLogits::All,
                }
            }
        }
    }

    /// The last event of a request that has to end before the next step: the caller cancelled it, or its time is over.
    pub(super) fn early_end(&self, now: Instant) -> Option<Event> {
        if self.canceller.is_cancelled() {
            return Some(Event::Finished(FinishReason::Cancelled));
        }
        let tokens = self.tokens.len() - self.prompt_len;
        let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
        is_late.then_some(Event::Failed(Error::DeadlineExceeded { tokens }))
    }

    /// The room at the reader of its rows or tokens, where it is bounded.
    pub(super) fn reader(&self) -> Option<&RowWindow> {
        match &self.task {
            Task::Generate { window, .. } => window.as_ref(),
            Task::Score { rows: Rows::Logits(window), .. } => Some(window),
            Task::Score { .. } => None,
        }
    }

    /// Whether it cannot continue because its reader has no room.
    pub(super) fn is_stalled(&self) -> bool {
        self.reader().is_some_and(|window| window.free() == 0)
    }

    /// Whether the reader has taken everything, so that continuing is worthwhile.
    pub(super) fn is_awaited(&self) -> bool {
        self.reader().is_some_and(RowWindow::is_open)
    }

    /// The reason why the request ends here, if it does.
    pub(super) fn finish_reason(&self) -> Option<FinishReason> {
        let answer = self.tokens.get(self.prompt_len..).unwrap_or_default();
        match &self.task {
            Task::Generate { stop_token_ids, .. } if answer.last().is_some_and(|id| stop_token_ids.contains(id)) => {
                Some(FinishReason::Stop)
            }
            Task::Generate { .. } => (self.tokens.len() >= self.max_len).then_some(self.full),
            Task::Score { .. } => (self.num_pending_tokens() == 0).then_some(FinishReason::Length),
        }
    }
}
