//! Driving a runner by hand: which tokens of which sequence are computed in which step.

use super::weights::{RandomModel, TOKEN_IDS, VOCAB};
use crate::random::Rng;
use qwen_core::backend::Limits;
use qwen_core::backend::{Backend, Interrupt};
use qwen_core::engine::kv::{BlockPool, BlockTable};
use qwen_core::error::Result;
use qwen_core::model::Model;
use qwen_core::model::batch::{AdapterId, BlockId};
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;

/// One step: the tokens that each sequence gets.
pub(super) type Step = Vec<(usize, usize)>;

/// The sizes that the random models run with.
pub(super) fn limits() -> Limits {
    Limits {
        max_model_len: 256,
        max_num_batched_tokens: 256,
        max_num_seqs: 8,
        max_num_logits: 256,
        block_size: 16,
        num_blocks: 40,
        vocab_size: VOCAB,
        num_token_ids: TOKEN_IDS,
    }
}

/// Load the part of `model` that `spec` names on `b`.
///
/// # Errors
/// What the backend reports.
pub(super) fn load<B: Backend>(mut b: B, spec: ModelSpec, model: &RandomModel) -> Result<ModelRunner<B>> {
    let loaded = Model::load(&mut b, spec, &limits(), model, &mut |_, _| Ok(()))?;
    Ok(ModelRunner::new(b, loaded, RopeStages::new(&model.config), limits()))
}

/// Load all of `model` on `b`.
///
/// # Errors
/// What the backend reports.
pub(super) fn load_whole<B: Backend>(b: B, model: &RandomModel) -> Result<ModelRunner<B>> {
    load(b, ModelSpec::new(&model.config), model)
}

/// A prompt of `len` random tokens.
pub(super) fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = Rng::of(&[42, seed]);
    (0..len).map(|_| rng.below(TOKEN_IDS) as u32).collect()
}

/// Sequences over the blocks of one runner.
#[derive(Debug)]
pub(super) struct Sequences {
    pub(super) pool: BlockPool,
    pub(super) sequences: Vec<Sequence>,
}

/// A sequence and the logits of the positions that were computed.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) ids: Vec<u32>,
    pub(super) computed: usize,
    pub(super) table: BlockTable,
    pub(super) logits: Vec<f32>,
    pub(super) adapter: Option<AdapterId>,
}

impl Sequences {
    /// Sequences of these tokens. `shuffle` allocates blocks in another order.
    ///
    /// # Errors
    /// None that can occur with an unused pool.
    pub(super) fn new(prompts: &[Vec<u32>], shuffle: Option<u64>) -> Result<Self> {
        let limits = limits();
        let mut pool = BlockPool::new(limits.num_blocks);
        if let Some(seed) = shuffle {
            for _ in 0..limits.num_blocks {
                pool.allocate()?;
            }
            let order = Rng::of(&[43, seed]).permutation(limits.num_blocks);
            order.into_iter().for_each(|block| pool.release(BlockId(block)));
        }
        let sequence = |ids: &Vec<u32>| Sequence {
            ids: ids.clone(),
            computed: 0,
            table: BlockTable::new(limits.block_size),
            logits: Vec::new(),
            adapter: None,
        };
        Ok(Sequences { pool, sequences: prompts.iter().map(sequence).collect() })
    }

    /// The batch of a step, with rows for all its tokens: their logits, or only their argmax. Copies blocks as needed.
    ///
    /// # Errors
    /// What the runner reports.
    pub(super) fn batch(&mut self, runner: &mut dyn Runner, step: &[(usize, usize)], greedy: bool) -> Result<Batch> {
        let mut batch = Batch::new(limits().block_size);
        for &(index, tokens) in step {
            let Sequence { ids, computed, table, adapter, .. } = &mut self.sequences[index];
            let end = *computed + tokens;
            if let Some(copy) = table.reserve(*computed, end, &mut self.pool)? {
                runner.copy_blocks(&[copy])?;
            }
            batch.push(SequenceStep {
                input_ids: &ids[*computed..end],
                num_computed_tokens: *computed,
                block_table: table.blocks(),
                logits: WantLogits::All,
                rope_stage: 0,
                adapter: *adapter,
            })?;
        }
        if greedy {
            batch.num_logits_read = 0;
        }
        Ok(batch)
    }

    /// Run a step and keep its logits.
    ///
    /// # Errors
    /// What the runner reports.
    pub(super) fn step(&mut self, runner: &mut dyn Runner, step: &[(usize, usize)]) -> Result<()> {
        let batch = self.batch(runner, step, false)?;
        let mut output = StepOutput::default();
        runner.execute(&batch, &mut output, &Interrupt::default())?;
        let mut rows = output.logits.chunks_exact(VOCAB);
        for &(index, tokens) in step {
            let sequence = &mut self.sequences[index];
            sequence.computed += tokens;
            sequence.logits.extend(rows.by_ref().take(tokens).flatten());
        }
        Ok(())
    }
}

/// As [`run_steps`], each sequence with its adapter.
///
/// # Errors
/// What the runner reports.
pub(super) fn run_with(
    runner: &mut dyn Runner,
    prompts: &[Vec<u32>],
    adapters: &[Option<AdapterId>],
    steps: &[Step],
) -> Result<Vec<Vec<f32>>> {
    let mut sequences = Sequences::new(prompts, None)?;
    for (sequence, adapter) in sequences.sequences.iter_mut().zip(adapters) {
        sequence.adapter = *adapter;
    }
    steps.iter().try_for_each(|step| sequences.step(runner, step))?;
    Ok(sequences.sequences.into_iter().map(|sequence| sequence.logits).collect())
}

/// Run `steps` over sequences of these tokens: the logits of each.
///
/// # Errors
/// What the runner reports.
pub(super) fn run_steps(
    runner: &mut dyn Runner,
    prompts: &[Vec<u32>],
    steps: &[Step],
    shuffle: Option<u64>,
) -> Result<Vec<Vec<f32>>> {
    let mut sequences = Sequences::new(prompts, shuffle)?;
    steps.iter().try_for_each(|step| sequences.step(runner, step))?;
    Ok(sequences.sequences.into_iter().map(|sequence| sequence.logits).collect())
}
