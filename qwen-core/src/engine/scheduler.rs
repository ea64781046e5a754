//! Which sequences take part in the next step, and with how many tokens.
//!
//! There is no separate prefill or decode phase: `num_computed_tokens` catches up with the known tokens. Every running
//! sequence gets one token per step, the least recently served first if the step has fewer tokens than sequences; the
//! remaining tokens go to prompts in order of arrival. So a long prompt delays running answers by one chunk at most,
//! and each of `n` running sequences is served at least once in `n / max_num_batched_tokens` steps, rounded up. A
//! sequence is admitted once the blocks of its longest possible answer are free, so no running sequence is ever
//! preempted. The exception is a sequence whose reader has no room for its rows: it gives up its blocks to waiting
//! sequences, and is recomputed later.

use std::collections::VecDeque;

use super::intake::Ticket;
use super::interruption::Member;
use super::sequence::{Sequence, Task};
use super::{Event, FinishReason, Request, SeqId};
use crate::backend::Limits;
use crate::engine::kv::{BlockPool, BlockTable};
use crate::error::{Error, Result};
use crate::model::batch::{Batch, SequenceStep, WantLogits};

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
    /// This is its next token.
    Token(u32),
    /// The logits after its next tokens, a row each.
    Logits(Vec<Vec<f32>>),
    /// It cannot go on.
    Failed(Error),
}

#[derive(Debug)]
pub(super) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Sequences that gave up their blocks, since their readers have no room for rows.
    stalled: Vec<Sequence>,
    pub(super) pool: BlockPool,
    next_id: u64,
    /// Completed steps.
    step: u64,
    block_size: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    max_num_logits: usize,
    /// The parts of the next step; those that need values of logits come first. Reused.
    scheduled: Vec<Scheduled>,
    /// Indices of the running sequences in the order of service. Reused.
    order: Vec<usize>,
}

impl Scheduler {
    pub(super) fn new(limits: &Limits) -> Self {
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            stalled: Vec::new(),
            pool: BlockPool::new(limits.num_blocks),
            next_id: 0,
            step: 0,
            block_size: limits.block_size,
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
        self.waiting.push_back(Sequence::new(id, request, ticket, limits)?);
        self.next_id += 1;
        Ok(id)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.stalled.is_empty()
    }

    /// Admit waiting sequences in order of arrival, while there are blocks, and distribute the tokens of the next step.
    pub(super) fn schedule(&mut self) {
        self.admit();
        let Scheduler { running, scheduled, order, .. } = self;
        order.clear();
        order.extend((0..running.len()).filter(|&index| running[index].num_ready_tokens() > 0));
        let mut budget = self.max_num_batched_tokens;
        if order.len() > budget {
            order.sort_by_key(|&index| running[index].last_step);
            order.truncate(budget);
            order.sort_unstable();
        }
        budget -= order.len();
        let mut rows = self.max_num_logits.saturating_sub(order.len());
        scheduled.clear();
        for &index in order.iter() {
            let sequence = &running[index];
            let mut more = budget.min(sequence.num_ready_tokens() - 1);
            if sequence.wanted(1) == WantLogits::All {
                more = more.min(rows);
                rows -= more;
            }
            budget -= more;
            scheduled.push(Scheduled { index, num_tokens: 1 + more, logits: sequence.wanted(1 + more) });
        }
        // A runner reads the values of the leading rows only.
        scheduled.sort_by_key(|part| match part.logits {
            WantLogits::All | WantLogits::Last => 0,
            WantLogits::Argmax => 1,
            WantLogits::None => 2,
        });
    }

    fn admit(&mut self) {
        // If a reader waits for rows again, its sequence queues up again.
        let stalled = std::mem::take(&mut self.stalled);
        let (awaited, stalled): (Vec<_>, Vec<_>) = stalled.into_iter().partition(Sequence::is_awaited);
        self.stalled = stalled;
        self.waiting.extend(awaited);
        while let Some(sequence) = self.waiting.front_mut() {
            let has_room = self.running.len() < self.max_num_seqs;
            let table = has_room.then(|| BlockTable::for_positions(sequence.max_len, self.block_size, &mut self.pool));
            if let Some(Ok(table)) = table {
                sequence.block_table = table;
                sequence.last_step = self.step;
                sequence.place = None;
                self.running.extend(self.waiting.pop_front());
            } else if let Some(index) = self.running.iter().position(Sequence::is_stalled) {
                let mut sequence = self.running.remove(index);
                std::mem::replace(&mut sequence.block_table, BlockTable::new(self.block_size)).free(&mut self.pool);
                sequence.num_computed_tokens = 0;
                self.stalled.push(sequence);
            } else {
                break;
            }
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

    /// The sequence of a part of the step.
    pub(super) fn sequence(&mut self, part: Scheduled) -> &mut Sequence {
        &mut self.running[part.index]
    }

    /// The requests of the step.
    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.scheduled
            .iter()
            .map(|part| Member { cancelled: self.running[part.index].canceller.flag(), num_tokens: part.num_tokens })
    }

    /// Fill `batch` for the step.
    pub(super) fn fill(&self, batch: &mut Batch) -> Result<()> {
        batch.clear();
        self.scheduled.iter().try_for_each(|part| {
            let Sequence { tokens, num_computed_tokens, block_table, .. } = &self.running[part.index];
            batch.push(SequenceStep {
                input_ids: &tokens[*num_computed_tokens..][..part.num_tokens],
                num_computed_tokens: *num_computed_tokens,
                block_table: block_table.blocks(),
                logits: part.logits,
            })
        })
    }

    /// Apply the results of the step, one for each of [`Scheduler::scheduled`].
    pub(super) fn update(&mut self, verdicts: Vec<Verdict>, report: &mut impl FnMut(SeqId, Event)) {
        self.step += 1;
        let mut ends: Vec<(usize, Event)> = Vec::new();
        for (part, verdict) in self.scheduled.iter().zip(verdicts) {
            let sequence = &mut self.running[part.index];
            sequence.num_computed_tokens += part.num_tokens;
            sequence.last_step = self.step;
            if sequence.num_computed_tokens <= sequence.prompt_len && !matches!(verdict, Verdict::Failed(_)) {
                report(sequence.id, Event::Prompt(sequence.num_computed_tokens));
            }
            match verdict {
                Verdict::Prompt => continue,
                Verdict::Failed(error) => {
                    ends.push((part.index, Event::Failed(error)));
                    continue;
                }
                Verdict::Token(id) => {
                    sequence.tokens.push(id);
                    let stops = sequence.finish_reason() == Some(FinishReason::Stop);
                    report(sequence.id, if stops { Event::StopToken(id) } else { Event::Token(id) });
                }
                Verdict::Logits(rows) => {
                    for row in rows {
                        if let Task::Score { window, num_scored } = &mut sequence.task {
                            window.take();
                            *num_scored += 1;
                        }
                        report(sequence.id, Event::Logits(row));
                    }
                }
            }
            ends.extend(sequence.finish_reason().map(|reason| (part.index, Event::Finished(reason))));
        }
        self.end(ends, report);
    }

    pub(super) fn remove_cancelled(&mut self, report: &mut impl FnMut(SeqId, Event)) {
        let mut keep = |sequence: &Sequence| {
            let cancelled = sequence.canceller.is_cancelled();
            if cancelled {
                report(sequence.id, Event::Finished(FinishReason::Cancelled));
            }
            !cancelled
        };
        self.waiting.retain(&mut keep);
        self.stalled.retain(&mut keep);
        let cancelled = self.running.iter().enumerate().filter(|(_, sequence)| sequence.canceller.is_cancelled());
        let ends = cancelled.map(|(index, _)| (index, Event::Finished(FinishReason::Cancelled))).collect();
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
        ends.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, event) in ends {
            let sequence = self.running.remove(index);
            sequence.block_table.free(&mut self.pool);
            report(sequence.id, event);
        }
    }
}
