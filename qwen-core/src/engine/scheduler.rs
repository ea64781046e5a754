//! Which sequences take part in the next step, and with how many tokens.
//!
//! There is no separate prefill or decode phase: `num_computed_tokens` catches up with the known tokens. Every running
//! sequence gets one token per step, the least recently served first if the step has fewer tokens than sequences. Half
//! of the remaining tokens are shared out evenly among prompts, so that a short one is not held up by a long one; the
//! rest goes to prompts in order of arrival, unless a prompt is completed by its share: such a step is kept short. So a
//! long prompt delays running answers by one chunk at most, and each of `n` running sequences is served at least once in
//! `n / max_num_batched_tokens` steps, rounded up.
//!
//! A sequence begins behind its longest prefix whose K/V is there. It is admitted once there are blocks for what is
//! known of it and for its next token. Answers grow, so blocks may run out: then the sequence with the fewest computed
//! tokens is preempted. It gives up its blocks, whose contents stay as long as nobody else needs the memory, and goes
//! on later with the same tokens: logits do not depend on the steps that compute them. A sequence whose reader has no
//! room for its rows is the first to give up its blocks. The one with the most computed tokens always goes on, and each
//! sequence fits alone, so that all of them end.
//!
//! Which of the waiting requests is next is decided in `queue.rs`, how long steps may be in `pace.rs`.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::intake::{RowWindow, Ticket};
use super::interruption::Member;
use super::pace::Pace;
use super::queue::Queue;
use super::sampling::Logprobs;
use super::sequence::{Rows, Sequence, Task};
use super::speculation::StepTimes;
use super::{EngineStats, Event, FinishReason, Request, SeqId};
use crate::backend::Limits;
use crate::engine::kv::BlockPool;
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{Batch, CopyBlock, SequenceStep, WantLogits};

/// A running sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheduled {
    /// Its index among the running sequences.
    index: usize,
    pub(super) num_tokens: usize,
    pub(super) logits: WantLogits,
}

/// The result of a step for a scheduled sequence.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A part of its prompt is computed.
    Prompt,
    /// These are its next tokens, each with its log-probabilities if they are wanted: one, and those that were guessed.
    Tokens(Vec<(u32, Option<Logprobs>)>),
    /// This many of its rows are used; they gave these events.
    Rows(usize, Vec<Event>),
    /// Its constraint does not know yet what may follow: its last token is computed again.
    Late,
    /// It cannot go on.
    Failed(Error),
}

/// What a draft model guesses for, and what its guesses have to be worth.
pub(super) struct Drafting<'a> {
    pub(super) running: &'a mut [Sequence],
    /// Times of the large model's steps.
    pub(super) times: &'a StepTimes,
    /// The most guesses of the next step.
    pub(super) num_rows: usize,
    pub(super) max_step_time: Option<Duration>,
    pub(super) prefix_cache: bool,
}

#[derive(Debug)]
pub(super) struct Scheduler {
    waiting: Queue,
    running: Vec<Sequence>,
    /// Sequences that gave up their blocks, since their readers have no room for rows.
    stalled: Vec<Sequence>,
    pub(super) pool: BlockPool,
    /// Whether K/V is shared between sequences with the same prefix.
    pub(super) prefix_cache: bool,
    /// The waiting sequence that did not fit, and the blocks that there were.
    refused: Option<(SeqId, usize)>,
    num_preemptions: u64,
    computed_tokens: u64,
    cached_tokens: u64,
    drafted_tokens: u64,
    accepted_tokens: u64,
    /// What a draft model took.
    pub(super) draft_time: Duration,
    pub(super) times: StepTimes,
    pub(super) pace: Pace,
    next_id: u64,
    /// Completed steps.
    step: u64,
    rope_contexts: Vec<usize>,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    max_num_logits: usize,
    /// The parts of the next step; those that need values of logits come first. Reused.
    scheduled: Vec<Scheduled>,
    /// Indices of the running sequences in the order of service. Reused.
    order: Vec<usize>,
}

impl Scheduler {
    pub(super) fn new(limits: &Limits, rope_contexts: &[usize]) -> Self {
        Scheduler {
            rope_contexts: rope_contexts.to_vec(),
            waiting: Queue::default(),
            running: Vec::new(),
            stalled: Vec::new(),
            pool: BlockPool::new(limits.num_blocks),
            prefix_cache: true,
            refused: None,
            num_preemptions: 0,
            computed_tokens: 0,
            cached_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            draft_time: Duration::ZERO,
            times: StepTimes::default(),
            pace: Pace::default(),
            next_id: 0,
            step: 0,
            // Each running sequence may want a row of logits.
            max_num_seqs: limits.max_num_seqs.min(limits.max_num_logits),
            max_num_batched_tokens: limits.max_num_batched_tokens,
            max_num_logits: limits.max_num_logits,
            scheduled: Vec::new(),
            order: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, request: Request, ticket: Ticket, limits: &Limits) -> Result<SeqId> {
        let id = SeqId(self.next_id);
        self.waiting.push(Sequence::new(id, request, ticket, limits, &self.rope_contexts)?);
        self.next_id += 1;
        Ok(id)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.stalled.is_empty()
    }

    /// Admit waiting sequences in order of arrival, while there are blocks, and distribute the tokens of the next step.
    /// Preempts sequences until there are blocks for it.
    pub(super) fn schedule(&mut self) {
        self.admit();
        if self.prefix_cache {
            let needed: usize = self.running.iter().map(Sequence::num_needed_blocks).sum();
            for sequence in self.running.iter_mut().filter(|sequence| sequence.num_pending_tokens() > 1) {
                self.cached_tokens += sequence.catch_up(&mut self.pool) as u64;
                // The copy and its source; nobody gives way to it.
                if sequence.blocks.is_between_blocks() && needed + 2 <= self.pool.num_free() {
                    self.cached_tokens += sequence.copy_beginning(&mut self.pool) as u64;
                }
            }
        }
        let num_seqs = self.running.len();
        self.running.iter_mut().for_each(|sequence| sequence.guess(num_seqs, &self.times));
        self.distribute();
        if self.num_missing_blocks() > self.pool.num_free() {
            // Nobody gives way to guesses.
            self.running.iter_mut().for_each(|sequence| sequence.draft.clear());
            self.distribute();
        }
        while self.num_missing_blocks() > self.pool.num_free() && self.running.len() > 1 {
            self.preempt();
            self.distribute();
        }
    }

    /// What a draft model needs to guess before the next step.
    pub(super) fn drafting(&mut self) -> Drafting<'_> {
        let num_rows = self.max_num_logits.min(self.max_num_batched_tokens).saturating_sub(self.running.len());
        let Scheduler { running, times, pace, prefix_cache, .. } = self;
        Drafting { running, times, num_rows, max_step_time: pace.at_most, prefix_cache: *prefix_cache }
    }

    /// Write down how long the step took, which is about to be updated.
    pub(super) fn record(&mut self, elapsed: Duration) {
        let is_decode = |part: &Scheduled| self.running[part.index].num_pending_tokens() == 1;
        let num_tokens = self.scheduled.iter().map(|part| part.num_tokens).sum();
        match self.scheduled.iter().all(is_decode) {
            true => self.times.record(num_tokens, elapsed.as_secs_f64()),
            false => self.pace.record(num_tokens, elapsed.as_secs_f64()),
        }
    }

    /// The blocks that have to be allocated for the step.
    fn num_missing_blocks(&self) -> usize {
        let missing = |part: &Scheduled| {
            let sequence = &self.running[part.index];
            sequence.num_missing_blocks(sequence.num_computed_tokens + part.num_tokens)
        };
        self.scheduled.iter().map(missing).sum()
    }

    /// Distribute the tokens of the next step.
    fn distribute(&mut self) {
        let Scheduler { running, scheduled, order, .. } = self;
        order.clear();
        order.extend((0..running.len()).filter(|&index| running[index].num_ready_tokens() > 0));
        let mut budget = self.max_num_batched_tokens;
        if order.len() > budget {
            order.sort_by_key(|&index| running[index].last_step);
            order.truncate(budget);
        }
        order.sort_unstable_by_key(|&index| running[index].id);
        budget -= order.len();
        if order.iter().any(|&index| running[index].is_answering()) {
            budget = budget.min(self.pace.num_tokens().saturating_sub(order.len()));
        }
        let mut rows = self.max_num_logits.saturating_sub(order.len());
        scheduled.clear();
        scheduled.extend(order.iter().map(|&index| Scheduled { index, num_tokens: 1, logits: WantLogits::None }));
        let num_prompts = order.iter().filter(|&&index| running[index].num_ready_tokens() > 1).count();
        let share = if num_prompts > 1 { budget / (2 * num_prompts) } else { 0 };
        // A prompt that its share completes has its answer begin sooner if the others wait with what they want beyond
        // theirs.
        let completes = |&index: &usize| (2..=share + 1).contains(&running[index].num_pending_tokens());
        let rounds = if order.iter().any(completes) { &[share][..] } else { &[share, usize::MAX] };
        for &at_most in rounds {
            for part in scheduled.iter_mut() {
                let sequence = &running[part.index];
                let own = sequence.num_rows(part.num_tokens).max(1);
                let ready = sequence.num_ready_tokens().min(sequence.num_tokens_within(own + rows));
                let more = ready.saturating_sub(part.num_tokens).min(budget).min(at_most);
                budget -= more;
                part.num_tokens += more;
                rows -= sequence.num_rows(part.num_tokens).max(1) - own;
            }
        }
        for part in scheduled.iter_mut() {
            let sequence = &running[part.index];
            let guesses = sequence.draft.len().min(budget).min(rows);
            (budget, rows) = (budget - guesses, rows - guesses);
            part.num_tokens += guesses;
        }
        for part in scheduled.iter_mut() {
            part.logits = running[part.index].wanted(part.num_tokens);
        }
        // A runner reads the values of the leading rows only.
        scheduled.sort_by_key(|part| match part.logits {
            WantLogits::All | WantLogits::Tail(_) | WantLogits::Last => 0,
            WantLogits::Argmax | WantLogits::ArgmaxAll => 1,
            WantLogits::None | WantLogits::Hidden(_) => 2,
        });
    }

    fn admit(&mut self) {
        // If a reader waits for rows again, its sequence queues up again.
        let stalled = std::mem::take(&mut self.stalled);
        let (awaited, stalled): (Vec<_>, Vec<_>) = stalled.into_iter().partition(Sequence::is_awaited);
        self.stalled = stalled;
        awaited.into_iter().for_each(|sequence| self.waiting.push(sequence));
        while !self.waiting.is_empty() {
            if self.running.len() < self.max_num_seqs && self.admit_first() {
                continue;
            }
            let Some(index) = self.running.iter().position(Sequence::is_stalled) else { break };
            let mut sequence = self.running.remove(index);
            sequence.give_up(&mut self.pool, self.prefix_cache);
            self.stalled.push(sequence);
        }
    }

    /// Admit the first of the waiting sequences. False if there is no room for it.
    fn admit_first(&mut self) -> bool {
        let needed: usize = self.running.iter().map(Sequence::num_needed_blocks).sum();
        let room = self.pool.num_free().saturating_sub(needed);
        let Some(sequence) = self.waiting.next_mut() else { return false };
        if self.refused.is_some_and(|(id, before)| id == sequence.id && room <= before) {
            return false;
        }
        let mut found = if self.prefix_cache { sequence.catch_up(&mut self.pool) } else { 0 };
        // Blocks that it shares with nobody are not free any more.
        if sequence.num_needed_blocks() + needed > self.pool.num_free() {
            sequence.give_up(&mut self.pool, false);
            self.refused = Some((sequence.id, room));
            return false;
        }
        // One block more, since the source of the copy stays until it is made.
        if self.prefix_cache && sequence.num_needed_blocks() + needed < self.pool.num_free() {
            found += sequence.copy_beginning(&mut self.pool);
        }
        self.cached_tokens += found as u64;
        if sequence.place.take().is_some() {
            sequence.num_cached_tokens = found;
        }
        sequence.last_step = self.step;
        self.running.extend(self.waiting.take_next());
        true
    }

    /// Take the blocks of a running sequence: of one whose reader has no room, or among those of the lowest priority of
    /// the one with the fewest computed tokens, the latest among equals. It goes on before those that arrived later.
    fn preempt(&mut self) {
        let worth = |sequence: &Sequence| {
            (!sequence.is_stalled(), sequence.priority, sequence.num_computed_tokens, Reverse(sequence.id))
        };
        let victim = (0..self.running.len()).min_by_key(|&index| worth(&self.running[index]));
        let Some(mut sequence) = victim.map(|index| self.running.remove(index)) else { return };
        sequence.give_up(&mut self.pool, self.prefix_cache);
        self.num_preemptions += 1;
        if sequence.is_stalled() {
            return self.stalled.push(sequence);
        }
        self.waiting.put_back(sequence);
    }

    /// What the scheduler knows of an engine's figures.
    pub(super) fn stats(&self) -> EngineStats {
        let (free, cached) = (self.pool.num_free(), self.pool.num_cached());
        EngineStats {
            running: self.running.len(),
            preempted: self.stalled.len() + self.waiting.iter().filter(|sequence| sequence.place.is_none()).count(),
            num_preemptions: self.num_preemptions,
            num_blocks: self.pool.num_blocks(),
            used_blocks: self.pool.num_blocks() - free,
            cached_blocks: cached,
            free_blocks: free - cached,
            computed_tokens: self.computed_tokens,
            cached_tokens: self.cached_tokens,
            drafted_tokens: self.drafted_tokens,
            accepted_tokens: self.accepted_tokens,
            draft_time: self.draft_time,
            ..EngineStats::default()
        }
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter()
    }

    /// The parts of the step.
    pub(super) fn scheduled(&self) -> &[Scheduled] {
        &self.scheduled
    }

    /// The parts of the step, each with its sequence.
    pub(super) fn scheduled_sequences(&mut self) -> Vec<(Scheduled, &mut Sequence)> {
        let mut running: Vec<_> = self.running.iter_mut().map(Some).collect();
        let sequence = |part: &Scheduled| Some((*part, running.get_mut(part.index)?.take()?));
        self.scheduled.iter().filter_map(sequence).collect()
    }

    /// The requests of the step.
    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.scheduled
            .iter()
            .map(|part| Member { cancelled: self.running[part.index].canceller.flag(), num_tokens: part.num_tokens })
    }

    /// Make the copies that sequences begin their blocks with.
    pub(super) fn copy_blocks(&mut self, copy: impl FnOnce(&[CopyBlock]) -> Result<()>) -> Result<()> {
        let copies: Vec<CopyBlock> = self.running.iter().filter_map(|sequence| sequence.copy).collect();
        if copies.is_empty() {
            return Ok(());
        }
        copy(&copies)?;
        let made = self.running.iter_mut().filter_map(|sequence| sequence.copy.take());
        made.for_each(|copy| self.pool.release(copy.from));
        Ok(())
    }

    /// Begin to compute what the constraints of the step's sequences need.
    pub(super) fn prepare_masks(&self) {
        self.scheduled.iter().for_each(|part| self.running[part.index].prepare(part.num_tokens));
    }

    /// Allocate the blocks of the step, and fill `batch` for it.
    pub(super) fn fill(&mut self, batch: &mut Batch) -> Result<()> {
        batch.clear();
        self.scheduled.iter().try_for_each(|part| {
            let Sequence { tokens, draft, num_computed_tokens, blocks, rope_stage, adapter, .. } =
                &mut self.running[part.index];
            let (first, end) = (*num_computed_tokens, *num_computed_tokens + part.num_tokens);
            let guessed = end.checked_sub(tokens.len()).and_then(|guesses| draft.get(..guesses)).unwrap_or_default();
            let known = &tokens[first..end - guessed.len()];
            let with_guesses: Vec<u32>;
            let input_ids = match guessed {
                [] => known,
                _ => {
                    with_guesses = [known, guessed].concat();
                    &with_guesses
                }
            };
            // Only full blocks are shared, and these are not written.
            let copy = blocks.table.reserve(first, end, &mut self.pool)?;
            debug_assert!(copy.is_none(), "wrote a shared block");
            batch.push(SequenceStep {
                input_ids,
                num_computed_tokens: first,
                block_table: blocks.table.blocks(),
                logits: part.logits,
                rope_stage: *rope_stage,
                adapter: adapter.as_ref().map(|adapter| adapter.id()),
            })
        })
    }

    /// Apply the results of the step, one for each of [`Scheduler::scheduled`].
    pub(super) fn update(&mut self, verdicts: Vec<Verdict>, report: &mut impl FnMut(SeqId, Event)) {
        self.step += 1;
        let mut ends: Vec<(usize, Event)> = Vec::new();
        for (part, verdict) in self.scheduled.iter().zip(verdicts) {
            let sequence = &mut self.running[part.index];
            sequence.num_computed_tokens += match &verdict {
                // K/V of guesses that were wrong does not count.
                Verdict::Tokens(tokens) if part.num_tokens > sequence.num_pending_tokens() => tokens.len(),
                Verdict::Late => sequence.num_pending_tokens() - 1,
                _ => part.num_tokens,
            };
            sequence.last_step = self.step;
            self.computed_tokens += part.num_tokens as u64;
            if !matches!(verdict, Verdict::Failed(_)) {
                let (done, cached) = (sequence.num_computed_tokens, sequence.num_cached_tokens);
                // What is computed again after a preemption was reported before.
                if done <= sequence.prompt_len && done > sequence.num_reported_tokens {
                    sequence.num_reported_tokens = done;
                    report(sequence.id, Event::Prompt { done, cached });
                }
            }
            match verdict {
                Verdict::Prompt => {}
                Verdict::Late => sequence.draft.clear(),
                Verdict::Failed(error) => {
                    ends.push((part.index, Event::Failed(error)));
                    continue;
                }
                Verdict::Tokens(tokens) => {
                    sequence.learn(&tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>());
                    let drafted = std::mem::take(&mut sequence.draft).len();
                    if part.num_tokens > 1 && drafted > 0 {
                        self.drafted_tokens += part.num_tokens as u64 - 1;
                        self.accepted_tokens += tokens.len() as u64 - 1;
                    }
                    for (id, logprobs) in tokens {
                        sequence.tokens.push(id);
                        let stops = sequence.finish_reason() == Some(FinishReason::Stop);
                        if !stops {
                            sequence.reader().into_iter().for_each(RowWindow::take);
                            logprobs.into_iter().for_each(|logprobs| report(sequence.id, Event::Logprobs(logprobs)));
                        }
                        report(sequence.id, if stops { Event::StopToken(id) } else { Event::Token(id) });
                    }
                }
                Verdict::Rows(used, events) => {
                    if let Task::Score { rows, num_scored } = &mut sequence.task {
                        *num_scored += used;
                        if let Rows::Logits(window) = rows {
                            (0..used).for_each(|_| window.take());
                        }
                    }
                    events.into_iter().for_each(|event| report(sequence.id, event));
                }
            }
            if self.prefix_cache {
                sequence.publish(&mut self.pool);
                // Others with the same prompt need not wait for its end.
                if sequence.num_computed_tokens == sequence.prompt_len {
                    sequence.publish_last(&mut self.pool);
                }
            }
            ends.extend(sequence.finish_reason().map(|reason| (part.index, Event::Finished(reason))));
        }
        self.end(ends, report);
    }

    /// When the next request ends whose time is over then.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sequences = self.running.iter().chain(&self.stalled).chain(self.waiting.iter());
        sequences.filter_map(|sequence| sequence.deadline).min()
    }

    /// End requests that were cancelled or whose time is over.
    pub(super) fn remove_ended(&mut self, now: Instant, report: &mut impl FnMut(SeqId, Event)) {
        let mut keep = |sequence: &Sequence| {
            let end = sequence.early_end(now);
            let goes_on = end.is_none();
            end.into_iter().for_each(|event| report(sequence.id, event));
            goes_on
        };
        self.waiting.retain(&mut keep);
        self.stalled.retain(&mut keep);
        let running = self.running.iter().enumerate();
        let ends = running.filter_map(|(index, sequence)| Some((index, sequence.early_end(now)?))).collect();
        self.end(ends, report);
    }

    /// End the sequences of a step that failed. The first gets the error itself, the others its text.
    pub(super) fn fail_scheduled(&mut self, error: Error, report: &mut impl FnMut(SeqId, Event)) {
        let (reason, kind) = (error.to_string(), error.kind());
        let others = std::iter::repeat_with(|| Error::StepFailed { reason: reason.clone(), kind });
        let errors = std::iter::once(error).chain(others);
        let ends = self.scheduled.iter().zip(errors).map(|(part, error)| (part.index, Event::Failed(error))).collect();
        self.end(ends, report);
    }

    /// Remove running sequences by their indices, each with its last event.
    fn end(&mut self, mut ends: Vec<(usize, Event)>, report: &mut impl FnMut(SeqId, Event)) {
        // The indices in the schedule are valid until a sequence is removed.
        self.scheduled.clear();
        ends.sort_by_key(|(index, _)| Reverse(*index));
        for (index, event) in ends {
            let mut sequence = self.running.remove(index);
            let is_damaged = matches!(&event, Event::Failed(error) if error.kind() != ErrorKind::DeadlineExceeded);
            if is_damaged {
                sequence.withdraw(&mut self.pool);
            }
            sequence.give_up(&mut self.pool, self.prefix_cache && !is_damaged);
            report(sequence.id, event);
        }
    }
}
