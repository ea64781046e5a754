//! Steps: what a body issues is recorded on the host, and then queued as a whole.
//!
//! A step of single tokens is the same from token to token but for what lies in its inputs. It becomes a CUDA graph,
//! which the next step with its key launches again in one call. The graph is made of what was recorded, not of the body
//! itself, so that whatever a first run brings along (kernels to load, workspace to allocate) is over before the
//! capture begins. Prompts are queued kernel by kernel.

use std::collections::HashMap;

use qwen_core::backend::{Interrupt, StepInputs, StepKey};
use qwen_core::{Error, Result};

use super::CudaBackend;
use crate::driver::Graph;
use crate::gpu::Work;
use crate::nccl::{Exchange, LOST};

/// Recorded steps that are kept.
const KEPT: usize = 64;

/// Tokens of prompts that are run at load: each is multiplied by another kernel.
const PROMPTS: [usize; 3] = [8, 64, 256];

/// Single tokens whose steps are recorded at load.
const SINGLES: [usize; 4] = [1, 2, 4, 8];

/// Recorded steps, and the one that is being recorded.
#[derive(Debug)]
pub(super) struct Steps {
    replays: bool,
    recorded: HashMap<StepKey, Recorded>,
    pub(super) recording: Option<Recording>,
    /// The sizes of the step inputs, once one has been seen: how far a step can be padded.
    room: Option<Room>,
}

/// A step that can run again.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// A sum over ranks that it has: where one of the ranks is gone, the graph would wait for it for ever.
    sum: Option<Exchange>,
    /// Keeps the arrays alive that the graph reads and writes.
    _work: Vec<Work>,
}

/// What the body of a step has issued so far.
#[derive(Debug, Default)]
pub(super) struct Recording {
    pub(super) work: Vec<Work>,
    pub(super) replayable: bool,
}

/// The largest step that the inputs have room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    tokens: usize,
    seqs: usize,
    logits: usize,
}

impl Steps {
    pub(super) fn new(replays: bool) -> Self {
        Steps { replays, recorded: HashMap::new(), recording: None, room: None }
    }

    /// Take note of the sizes of `inputs`.
    pub(super) fn learn(&mut self, inputs: &StepInputs<CudaBackend>) {
        let tokens = inputs.input_ids.0.len.min(inputs.slot_mapping.0.len);
        let (seqs, logits) = (inputs.context_lens.0.len, inputs.logits_indices.0.len);
        let Room { tokens: t, seqs: s, logits: l } = self.room.unwrap_or(Room { tokens, seqs, logits });
        self.room = Some(Room { tokens: tokens.min(t), seqs: seqs.min(s), logits: logits.min(l) });
    }

    /// The shape that a step is padded to: few shapes of steps of single tokens, so that few are recorded.
    pub(super) fn padded(&self, key: StepKey) -> StepKey {
        let Some(room) = self.room.filter(|_| key.max_seqlen_q == 1 && key.num_tokens == key.num_seqs) else {
            return key;
        };
        let seqs = padded_count(key.num_seqs).min(room.seqs).min(room.tokens).max(key.num_seqs);
        let num_logits = padded_count(key.num_logits).min(room.logits).max(key.num_logits);
        StepKey { num_tokens: seqs, num_seqs: seqs, num_logits, ..key }
    }
}

/// So many sequences, or rows of logits, as a step is padded to: what a kernel takes at once.
fn padded_count(count: usize) -> usize {
    match count {
        0..=4 => count.next_power_of_two().min(count * 2),
        5..=64 => count.next_multiple_of(8),
        _ => count.next_multiple_of(32),
    }
}

impl CudaBackend {
    pub(super) fn steps_to_warm(&self) -> Vec<StepKey> {
        let prompt = |num_tokens| StepKey { num_tokens, num_seqs: 1, num_logits: 1, max_seqlen_q: num_tokens };
        let single = |count| StepKey { num_tokens: count, num_seqs: count, num_logits: count, max_seqlen_q: 1 };
        PROMPTS.map(prompt).into_iter().chain(SINGLES.map(single)).collect()
    }

    pub(super) fn run_step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.gpu.check("step")?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        if self.steps.recorded.values().any(|recorded| recorded.sum.as_ref().is_some_and(Exchange::is_lost)) {
            // NCCL waits for this before it gives up what it has.
            self.steps.recorded.clear();
            return Err(self.gpu.error("step", LOST));
        }
        if let Some(recorded) = self.steps.recorded.get(&key) {
            return self.gpu.replay(&recorded.graph);
        }
        self.steps.recording = Some(Recording { work: Vec::new(), replayable: true });
        let result = body(self);
        let Some(Recording { work, replayable }) = self.steps.recording.take() else { return result };
        result?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        let single = key.max_seqlen_q <= 1 && self.steps.recorded.len() < KEPT;
        if self.steps.replays && replayable && single && !work.is_empty() {
            match self.gpu.capture(&work)? {
                Some(graph) => {
                    self.gpu.replay(&graph)?;
                    let sum = work.iter().find_map(Work::exchange).cloned();
                    self.steps.recorded.insert(key, Recorded { graph, sum, _work: work });
                    return Ok(());
                }
                // A driver that does not record these kernels runs them all the same.
                None => self.steps.replays = false,
            }
        }
        work.iter().try_for_each(|work| self.gpu.issue(work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_padded_to_few_sizes() {
        let sizes: Vec<usize> = (0..=8).map(padded_count).collect();
        assert_eq!(sizes, [0, 1, 2, 4, 4, 8, 8, 8, 8]);
        assert_eq!([9, 33, 64, 65, 100].map(padded_count), [16, 40, 64, 96, 128]);
    }
}
