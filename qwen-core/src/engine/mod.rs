//! Requests by token ids: which sequences run, in which steps, and what is drawn from their logits.
//!
//! [`EngineCore`] is plain `&mut self` code over a [`Runner`]: no threads, no text, no device. The facade gives it a
//! thread of its own and turns ids into text.

mod scheduler;
mod sequence;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::Interrupt;
use crate::batch::{Batch, Limits, SequenceStep, StepOutput, WantLogits};
use crate::error::{Error, Result};
use crate::kv::BlockTable;
use crate::runner::Runner;
use scheduler::Scheduler;
pub use sequence::{FinishReason, Request, SeqId};

/// What happened to a sequence in a step.
#[derive(Debug)]
pub enum Event {
    /// The next token of the answer. A stop token is not reported.
    Token(u32),
    /// Tokens of the prompt that are computed so far.
    Prompt(usize),
    /// The answer is complete. The last event.
    Finished(FinishReason),
    /// The sequence could not be completed. The last event.
    Failed(Error),
}

/// A handle that stops one request from any thread, also in the middle of its prompt.
#[derive(Debug, Clone)]
pub struct Canceller {
    cancelled: Arc<AtomicBool>,
    interrupt: Interrupt,
}

impl Canceller {
    /// Stop the request.
    pub fn cancel(&self) {
        // The flag first: the engine looks at the flags after it has cleared the interrupt.
        self.cancelled.store(true, Ordering::SeqCst);
        self.interrupt.raise();
    }
}

/// Runs requests, several at a time.
pub struct EngineCore {
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    batch: Batch,
    output: StepOutput,
    interrupt: Interrupt,
}

impl std::fmt::Debug for EngineCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineCore").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl EngineCore {
    /// An engine over `runner`. Cancellations raise `interrupt`.
    pub fn new(runner: Box<dyn Runner>, interrupt: Interrupt) -> Self {
        let limits = runner.limits();
        let batch = Batch::new(limits.block_size);
        EngineCore { scheduler: Scheduler::new(limits), runner, batch, output: StepOutput::default(), interrupt }
    }

    /// What the runner was built for.
    pub fn limits(&self) -> &Limits {
        self.runner.limits()
    }

    /// A handle for a request that is about to be added.
    pub fn canceller(interrupt: &Interrupt) -> Canceller {
        Canceller { cancelled: Arc::default(), interrupt: interrupt.clone() }
    }

    /// Queue a request.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextLength`], [`Error::InvalidTokenId`], and
    /// [`Error::InvalidArgument`] for its sampling parameters.
    pub fn add(&mut self, request: Request, canceller: &Canceller) -> Result<SeqId> {
        self.scheduler.add(request, canceller.cancelled.clone(), self.runner.limits())
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Run one step and report what happened to which sequence.
    pub fn step(&mut self, mut report: impl FnMut(SeqId, Event)) {
        self.interrupt.clear();
        self.scheduler.remove_cancelled(&mut report);
        if let Err(error) = self.try_step(&mut report) {
            match error {
                // Some request was cancelled: the others run the step again.
                Error::Cancelled => self.scheduler.remove_cancelled(&mut report),
                // Any other failure is the device's: the sequences of the step cannot go on.
                error => self.scheduler.fail_scheduled(error, &mut report),
            }
        }
    }

    /// The logits after each token of `ids`, computed at once: `[ids.len(), vocab_size]`.
    ///
    /// # Errors
    /// As [`EngineCore::add`] and [`Runner::execute`], and [`Error::DoesNotFit`] while running requests hold the blocks.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let limits = self.runner.limits().clone();
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if ids.len() > limits.max_model_len {
            return Err(Error::ContextLength { prompt: ids.len(), context: limits.max_model_len });
        }
        let chunk_len = limits.max_num_logits.min(limits.max_num_batched_tokens);
        let pool = &mut self.scheduler.pool;
        let mut block_table = BlockTable::new(limits.block_size);
        block_table.reserve(0, ids.len(), pool)?;
        let mut logits = Vec::with_capacity(ids.len() * limits.vocab_size);
        let mut run = |block_table: &BlockTable| {
            for (index, chunk) in ids.chunks(chunk_len).enumerate() {
                self.interrupt.clear();
                self.batch.clear();
                self.batch.push(SequenceStep {
                    input_ids: chunk,
                    num_computed_tokens: index * chunk_len,
                    block_table: block_table.blocks(),
                    logits: WantLogits::All,
                })?;
                self.runner.execute(&self.batch, &mut self.output, &self.interrupt)?;
                logits.extend_from_slice(&self.output.logits);
            }
            Ok(())
        };
        let result = run(&block_table);
        block_table.free(&mut self.scheduler.pool);
        result.map(|()| logits)
    }

    fn try_step(&mut self, report: &mut impl FnMut(SeqId, Event)) -> Result<()> {
        let EngineCore { runner, scheduler, batch, output, interrupt } = self;
        scheduler.schedule();
        batch.clear();
        batch.read_logits = false;
        for (sequence, num_tokens) in scheduler.scheduled() {
            let last = sequence.num_computed_tokens + num_tokens == sequence.tokens.len();
            batch.push(SequenceStep {
                input_ids: &sequence.tokens[sequence.num_computed_tokens..][..num_tokens],
                num_computed_tokens: sequence.num_computed_tokens,
                block_table: sequence.block_table.blocks(),
                logits: if last { WantLogits::Last } else { WantLogits::None },
            })?;
            batch.read_logits |= last && !sequence.sampler.is_argmax();
        }
        if batch.num_seqs() == 0 {
            return Ok(());
        }
        runner.execute(batch, output, interrupt)?;
        scheduler.update(output, runner.limits(), report);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
