//! The state of one request: its tokens, its blocks, and what its logits are used for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Event;
use super::intake::{Canceller, Place, RowWindow, Ticket};
use super::speculation::{Drafter, Speculation, StepTimes};
use crate::backend::Limits;
use crate::engine::kv::{BlockPool, BlockTable, Prefix};
use crate::engine::logprobs::LogprobsParams;
use crate::engine::pooling::{Pool, Pooling};
use crate::engine::sampling::{Sampler, SamplingParams};
use crate::error::{Error, Result};
use crate::model::batch::WantLogits;

/// Identifies a sequence in its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// Why a request ended. Displayed and serialised as `stop`, `stop_string`, `length`, `context_full` and `cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model gave a stop token.
    Stop,
    /// The text reached a stop string. An engine by token ids has no text: whoever decodes its ids ends the answer so.
    StopString,
    /// `max_new_tokens` is used up; for other goals than an answer, all ids are computed.
    Length,
    /// The context is used up before `max_new_tokens` is.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name, as OpenAI's API has it where it has one.
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::StopString => "stop_string",
            FinishReason::Length => "length",
            FinishReason::ContextFull => "context_full",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A request to an engine, in token ids.
///
/// ```
/// use qwen_core::engine::{GenerateParams, Request};
/// let request = Request::generate([1, 2, 3], GenerateParams::new().max_new_tokens(20));
/// assert_eq!(request.prompt, [1, 2, 3]);
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is added to an engine"]
#[non_exhaustive]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// What to compute from it.
    pub goal: Goal,
    /// Requests share K/V of common prompt prefixes only with those of the same salt. One for each tenant keeps them
    /// from noticing, by the time of the first token, what others asked.
    pub cache_salt: Arc<str>,
    /// Whose it is: waiting requests of several users are admitted in turns.
    pub user: Arc<str>,
    /// Requests of a higher priority are admitted first, and give their blocks up last. Default 0.
    pub priority: i32,
    /// When the request fails, looked at before each step. Default never.
    pub deadline: Option<Instant>,
    /// Room for the tokens of an answer: it pauses while its reader has not taken that many. Default any number.
    pub window: Option<RowWindow>,
}

/// What an engine computes from a prompt.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and it is soon taken apart")]
pub enum Goal {
    /// An answer: [`super::Event::Token`] by token, each after its [`super::Event::Logprobs`] if these are wanted.
    Generate(GenerateParams),
    /// The logits after each token of the prompt: [`super::Event::Logits`] by row, as far as the reader's window is
    /// open.
    Score(RowWindow),
    /// How likely tokens are: [`super::Event::Scored`] for each, in order.
    Logprobs(LogprobsParams),
    /// The hidden states after the final norm, made one vector: one [`super::Event::Embedding`].
    Embed(Pooling),
}

/// How an answer is generated. The default is greedy, to the end of the context.
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct GenerateParams {
    /// The maximum number of tokens in the answer; `None` for as many as fit in the context.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Report the log-probabilities of each token and of this many of the most likely ones, at most
    /// [`GenerateParams::MAX_LOGPROBS`]. `None` reports none.
    pub logprobs: Option<usize>,
    /// Whether the next tokens are guessed and checked several at a time.
    pub speculation: Speculation,
}

impl GenerateParams {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`GenerateParams::max_new_tokens`].
    pub fn max_new_tokens(mut self, tokens: impl Into<Option<usize>>) -> Self {
        self.max_new_tokens = tokens.into();
        self
    }

    /// See [`GenerateParams::stop_token_ids`].
    pub fn stop_token_ids(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop_token_ids = ids.into();
        self
    }

    /// The bound of [`GenerateParams::logprobs`].
    pub const MAX_LOGPROBS: usize = 100;

    /// See [`GenerateParams::logprobs`].
    pub fn logprobs(mut self, top: impl Into<Option<usize>>) -> Self {
        self.logprobs = top.into();
        self
    }

    /// See [`GenerateParams::speculation`].
    pub fn speculation(mut self, speculation: Speculation) -> Self {
        self.speculation = speculation;
        self
    }

    /// See [`GenerateParams::sampling`].
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }
}

impl Request {
    /// A request for an answer to `prompt`.
    pub fn generate(prompt: impl Into<Vec<u32>>, params: GenerateParams) -> Self {
        Self::new(prompt.into(), Goal::Generate(params))
    }

    /// A request for the logits after each token of `prompt`, which go through `window`.
    pub fn score(prompt: impl Into<Vec<u32>>, window: RowWindow) -> Self {
        Self::new(prompt.into(), Goal::Score(window))
    }

    fn new(prompt: Vec<u32>, goal: Goal) -> Self {
        Request { prompt, goal, cache_salt: "".into(), user: "".into(), priority: 0, deadline: None, window: None }
    }

    /// See [`Request::user`].
    pub fn user(mut self, user: impl Into<Arc<str>>) -> Self {
        self.user = user.into();
        self
    }

    /// See [`Request::priority`].
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// See [`Request::deadline`].
    pub fn deadline(mut self, deadline: impl Into<Option<Instant>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// See [`Request::window`].
    pub fn window(mut self, window: RowWindow) -> Self {
        self.window = Some(window);
        self
    }

    /// See [`Request::cache_salt`].
    pub fn cache_salt(mut self, salt: impl Into<Arc<str>>) -> Self {
        self.cache_salt = salt.into();
        self
    }

    /// A request for log-probabilities after the last tokens of `prompt`.
    pub fn logprobs(prompt: impl Into<Vec<u32>>, params: LogprobsParams) -> Self {
        Self::new(prompt.into(), Goal::Logprobs(params))
    }

    /// A request for the embedding of `prompt`.
    pub fn embed(prompt: impl Into<Vec<u32>>, pooling: Pooling) -> Self {
        Self::new(prompt.into(), Goal::Embed(pooling))
    }

    /// Check the request against the engine's limits. [`super::EngineCore::add`] does so too; callers on another thread
    /// can check earlier.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextLength`], [`Error::InvalidTokenId`], [`Error::OutOfBlocks`] for an
    /// answer that does not fit in an engine with these limits, and [`Error::InvalidArgument`] for the parameters.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let Request { prompt, goal, .. } = self;
        // An answer needs room for at least one token.
        let (context, room) = (limits.max_model_len, matches!(goal, Goal::Generate(_)) as usize);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let limit = context.saturating_sub(room);
        if prompt.len() > limit {
            return Err(Error::ContextLength { prompt: prompt.len(), limit, context });
        }
        if let Some((position, &id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= limits.vocab_size) {
            return Err(Error::InvalidTokenId { id, position, vocab_size: limits.vocab_size });
        }
        if let Goal::Generate(params) = goal {
            params.sampling.check()?;
            params.sampling.check_ids(limits.num_token_ids)?;
            if let Some(top) = params.logprobs.filter(|top| *top > GenerateParams::MAX_LOGPROBS) {
                let reason = format!("must be at most {}, is {top}", GenerateParams::MAX_LOGPROBS);
                return Err(Error::argument("logprobs", reason));
            }
            if params.max_new_tokens == Some(0) {
                return Err(Error::argument("max_new_tokens", "must be at least 1, is 0"));
            }
        }
        if let Goal::Logprobs(params) = goal {
            params.check(prompt.len(), limits.num_token_ids.min(limits.vocab_size))?;
        }
        let (positions, available) = (self.max_len(limits), limits.num_blocks);
        let needed = positions.div_ceil(limits.block_size.max(1));
        if needed > available {
            let advice =
                format!("{positions} positions are asked for; lower max_new_tokens or load with a larger context");
            return Err(Error::OutOfBlocks { needed, available, advice });
        }
        Ok(())
    }

    /// Tokens of prompt and answer at most.
    fn max_len(&self, limits: &Limits) -> usize {
        match &self.goal {
            Goal::Generate(GenerateParams { max_new_tokens: Some(new), .. }) => {
                limits.max_model_len.min(self.prompt.len().saturating_add(*new))
            }
            Goal::Generate(_) => limits.max_model_len,
            Goal::Score(_) | Goal::Logprobs(_) | Goal::Embed(_) => self.prompt.len(),
        }
    }

    /// Why an answer of `max_len` tokens ends.
    fn full(&self, limits: &Limits) -> FinishReason {
        let asked = match &self.goal {
            Goal::Generate(params) => params.max_new_tokens.map(|new| self.prompt.len().saturating_add(new)),
            Goal::Score(_) | Goal::Logprobs(_) | Goal::Embed(_) => Some(self.prompt.len()),
        };
        match asked {
            Some(tokens) if tokens <= limits.max_model_len => FinishReason::Length,
            _ => FinishReason::ContextFull,
        }
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Positions whose K/V is computed.
    pub(super) num_computed_tokens: usize,
    /// Tokens of prompt and answer at most.
    pub(super) max_len: usize,
    /// What `max_len` comes from.
    pub(super) full: FinishReason,
    pub(super) task: Task,
    pub(super) block_table: BlockTable,
    /// The last step that computed it, or in which it was admitted.
    pub(super) last_step: u64,
    pub(super) canceller: Canceller,
    pub(super) user: Arc<str>,
    pub(super) priority: i32,
    pub(super) deadline: Option<Instant>,
    /// Until it is admitted.
    pub(super) place: Option<Place>,
    /// Where its K/V begins: what it shares with other sequences has the same root.
    root: Prefix,
    /// What comes before its first block that others cannot find.
    prefix: Prefix,
    num_published_blocks: usize,
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
        drafter: Option<Box<Drafter>>,
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
    /// Rows of logits, as far as the reader's window is open.
    Logits(RowWindow),
    Logprobs(LogprobsParams),
    /// Hidden states, which are pooled.
    Hidden(Pool),
}

impl Sequence {
    pub(super) fn new(id: SeqId, request: Request, ticket: Ticket, limits: &Limits) -> Result<Self> {
        request.check(limits)?;
        let max_len = request.max_len(limits);
        let full = request.full(limits);
        let Request { prompt, goal, cache_salt, user, priority, deadline, window } = request;
        let root = Prefix::Root(cache_salt);
        let task = match goal {
            Goal::Generate(GenerateParams { stop_token_ids, sampling, logprobs, speculation, .. }) => {
                let sampler = Sampler::new(sampling, &prompt)?.stop_token_ids(&stop_token_ids);
                let drafter = (speculation == Speculation::PromptLookup).then(Box::default);
                Task::Generate { stop_token_ids, sampler, logprobs, drafter, window }
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
            full,
            task,
            block_table: BlockTable::new(limits.block_size),
            last_step: 0,
            tokens: prompt,
            canceller,
            user,
            priority,
            deadline,
            place: Some(place),
            prefix: root.clone(),
            root,
            num_published_blocks: 0,
            num_cached_tokens: 0,
            num_reported_tokens: 0,
            draft: Vec::new(),
        })
    }

    /// Use blocks of others for the next positions, as far as they hold its tokens. At least one token is left to
    /// compute, and all those whose logits are wanted. Returns the number of positions that need not be computed.
    pub(super) fn catch_up(&mut self, pool: &mut BlockPool) -> usize {
        let before = self.num_computed_tokens;
        let known = match &self.task {
            Task::Generate { .. } => self.tokens.len().saturating_sub(1),
            Task::Score { num_scored, .. } => *num_scored,
        };
        while let Some((first, end)) = self.next_block().filter(|(_, end)| *end <= known) {
            let Some((block, next)) = pool.find(&self.prefix, &self.tokens[first..end]) else { break };
            pool.retain(block);
            self.block_table.adopt(self.num_published_blocks, block, pool);
            self.num_computed_tokens = end;
            self.go_on_after(next);
        }
        self.num_computed_tokens - before
    }

    /// Let others find the blocks that are full by now. Where another block holds the same, it is used from now on.
    pub(super) fn publish(&mut self, pool: &mut BlockPool) {
        while let Some((first, end)) = self.next_block().filter(|(_, end)| *end <= self.num_computed_tokens) {
            let Some(&own) = self.block_table.blocks().get(self.num_published_blocks) else { break };
            let (block, next) = pool.publish(&self.prefix, &self.tokens[first..end], own);
            if block != own {
                pool.retain(block);
                self.block_table.adopt(self.num_published_blocks, block, pool);
            }
            self.go_on_after(next);
        }
    }

    /// The positions of the first block that others cannot find.
    fn next_block(&self) -> Option<(usize, usize)> {
        let size = self.block_table.block_size();
        let first = self.num_published_blocks.checked_mul(size)?;
        Some((first, first.checked_add(size)?))
    }

    fn go_on_after(&mut self, next: Prefix) {
        self.prefix = next;
        self.num_published_blocks += 1;
    }

    /// Give all blocks back. Its tokens stay, and their K/V is computed again where others cannot provide it.
    pub(super) fn give_up(&mut self, pool: &mut BlockPool) {
        let size = self.block_table.block_size();
        std::mem::replace(&mut self.block_table, BlockTable::new(size)).free(pool);
        self.num_computed_tokens = 0;
        self.num_published_blocks = 0;
        self.prefix = self.root.clone();
    }

    /// Forget what its blocks hold, since it may be damaged.
    pub(super) fn withdraw(&self, pool: &mut BlockPool) {
        self.block_table.blocks().iter().for_each(|block| pool.forget(*block));
    }

    /// The blocks that are missing for its first `positions` positions.
    pub(super) fn num_missing_blocks(&self, positions: usize) -> usize {
        let needed = positions.div_ceil(self.block_table.block_size());
        needed.saturating_sub(self.block_table.blocks().len())
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

    /// Guess the tokens after the known ones, if its last token is all that is to be computed.
    pub(super) fn guess(&mut self, num_seqs: usize, times: &StepTimes) {
        self.draft.clear();
        let at_most = self.max_len.saturating_sub(self.tokens.len() + 1);
        if let Task::Generate { drafter: Some(drafter), window, .. } = &mut self.task
            && self.tokens.len() == self.num_computed_tokens + 1
        {
            let room = window.as_ref().map_or(usize::MAX, |window| window.free().saturating_sub(1));
            self.draft.extend_from_slice(drafter.draft(&self.tokens, at_most.min(room), num_seqs, times));
        }
    }

    /// Learn from the tokens that came, how many of the guesses were right.
    pub(super) fn learn(&mut self, came: &[u32]) {
        if let Task::Generate { drafter: Some(drafter), .. } = &mut self.task {
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
