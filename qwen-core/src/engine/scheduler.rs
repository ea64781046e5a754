//! Which sequences have how many tokens in the next step.
//!
//! There is no prefill or decode phase: `num_computed_tokens` catches up with the known tokens. Sequences that need one
//! token go first, so that a long prompt delays running answers by one chunk at most; what is left of the step's tokens
//! goes to prompts in order of arrival. A sequence is admitted once the blocks of its longest possible answer are
//! free, so that none has to be put out again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::sequence::Sequence;
use super::{Event, FinishReason, Request, SeqId};
use crate::batch::{Limits, StepOutput};
use crate::error::{Error, Result};
use crate::kv::BlockPool;

#[derive(Debug)]
pub(super) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    pub(super) pool: BlockPool,
    next_id: u64,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
}

impl Scheduler {
    pub(super) fn new(limits: &Limits) -> Self {
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: BlockPool::new(limits.num_blocks),
            next_id: 0,
            max_num_seqs: limits.max_num_seqs.min(limits.max_num_logits),
            max_num_batched_tokens: limits.max_num_batched_tokens,
        }
    }

    pub(super) fn add(&mut self, request: Request, cancelled: Arc<AtomicBool>, limits: &Limits) -> Result<SeqId> {
        let id = SeqId(self.next_id);
        let sequence = Sequence::new(id, request, cancelled, limits)?;
        let needed = sequence.max_len.div_ceil(limits.block_size);
        if needed > self.pool.num_blocks() {
            let advice = format!(": K/V blocks for {} positions; lower max_new_tokens", sequence.max_len);
            let available = self.pool.num_blocks() as u64;
            return Err(Error::DoesNotFit { needed: needed as u64, available, advice });
        }
        self.next_id += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Admit what fits and share out the tokens of the next step.
    pub(super) fn schedule(&mut self) {
        while self.running.len() < self.max_num_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if sequence.block_table.reserve(0, sequence.max_len, &mut self.pool).is_err() {
                self.waiting.push_front(sequence);
                break;
            }
            self.running.push(sequence);
        }
        let mut budget = self.max_num_batched_tokens;
        for single in [true, false] {
            for sequence in &mut self.running {
                let pending = sequence.num_pending_tokens();
                if (pending == 1) == single {
                    sequence.num_scheduled_tokens = pending.min(budget);
                    budget -= sequence.num_scheduled_tokens;
                }
            }
        }
    }

    /// The sequences of the step and their numbers of tokens.
    pub(super) fn scheduled(&self) -> impl Iterator<Item = (&Sequence, usize)> {
        self.running.iter().map(|s| (s, s.num_scheduled_tokens)).filter(|(_, tokens)| *tokens > 0)
    }

    /// Take over the results of the step.
    pub(super) fn update(&mut self, output: &mut StepOutput, limits: &Limits, report: &mut impl FnMut(SeqId, Event)) {
        let mut row = 0;
        for sequence in self.running.iter_mut().filter(|s| s.num_scheduled_tokens > 0) {
            sequence.num_computed_tokens += sequence.num_scheduled_tokens;
            if sequence.num_computed_tokens <= sequence.prompt_len {
                report(sequence.id, Event::Prompt(sequence.num_computed_tokens));
            }
            if sequence.num_pending_tokens() > 0 {
                continue;
            }
            let start = row * limits.vocab_size;
            let id = match (output.logits.get_mut(start..start + limits.num_token_ids), output.greedy_ids.get(row)) {
                (None, Some(&id)) => {
                    sequence.sampler.accept(id);
                    id
                }
                (logits, _) => sequence.sampler.sample(logits.unwrap_or_default()),
            };
            row += 1;
            sequence.tokens.push(id);
            if !sequence.stop_token_ids.contains(&id) {
                report(sequence.id, Event::Token(id));
            }
        }
        self.finish(report, |sequence| {
            let stopped = sequence.tokens.len() > sequence.prompt_len
                && sequence.tokens.last().is_some_and(|last| sequence.stop_token_ids.contains(last));
            let full = sequence.tokens.len() >= sequence.max_len;
            let reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
            (sequence.num_scheduled_tokens > 0 && (stopped || full)).then_some(Event::Finished(reason))
        });
    }

    pub(super) fn remove_cancelled(&mut self, report: &mut impl FnMut(SeqId, Event)) {
        self.waiting.retain(|sequence| {
            let cancelled = sequence.is_cancelled();
            if cancelled {
                report(sequence.id, Event::Finished(FinishReason::Cancelled));
            }
            !cancelled
        });
        self.finish(report, |sequence| sequence.is_cancelled().then_some(Event::Finished(FinishReason::Cancelled)));
    }

    /// End the sequences of a step that failed. The first is told the error itself, the others its text.
    pub(super) fn fail_scheduled(&mut self, error: Error, report: &mut impl FnMut(SeqId, Event)) {
        let reason = error.to_string();
        let mut error = Some(error);
        self.finish(report, |sequence| {
            (sequence.num_scheduled_tokens > 0)
                .then(|| Event::Failed(error.take().unwrap_or_else(|| Error::EngineStopped { reason: reason.clone() })))
        });
    }

    /// Report and remove the running sequences that `end` gives a last event for.
    fn finish(&mut self, report: &mut impl FnMut(SeqId, Event), mut end: impl FnMut(&Sequence) -> Option<Event>) {
        for index in (0..self.running.len()).rev() {
            if let Some(event) = end(&self.running[index]) {
                let sequence = self.running.remove(index);
                report(sequence.id, event);
                sequence.block_table.free(&mut self.pool);
            }
        }
    }
}
