//! Compares replayed steps with the same steps queued kernel by kernel.

use qwen_backend_cuda::CudaBackend;
use qwen_conformance::model::{GEOMETRIES, RandomModel};
use qwen_core::backend::Interrupt;
use qwen_core::backend::Limits;
use qwen_core::model::Model;
use qwen_core::model::batch::BlockId;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Precision, Result};

const BLOCK_SIZE: usize = 16;
const BLOCKS_OF_SEQUENCE: usize = 4;

/// The number of sequences in each step of single tokens. Numbers repeat, so that steps are replayed; three is padded.
const SEQUENCES: [usize; 8] = [1, 1, 1, 3, 3, 3, 3, 1];

/// The bits of all logits, and the greedy ids, of a small random model.
fn results(mut backend: CudaBackend) -> Result<Vec<u32>> {
    let model = RandomModel::new(GEOMETRIES[0])?;
    let limits = Limits {
        max_model_len: BLOCKS_OF_SEQUENCE * BLOCK_SIZE,
        max_num_batched_tokens: 64,
        max_num_seqs: 4,
        max_num_logits: 4,
        block_size: BLOCK_SIZE,
        num_blocks: 4 * BLOCKS_OF_SEQUENCE,
        vocab_size: model.config.vocab_size,
        num_token_ids: model.config.vocab_size,
    };
    let loaded = Model::load(&mut backend, ModelSpec::new(&model.config), &limits, &model, &mut |_, _| Ok(()))?;
    let mut runner = ModelRunner::new(backend, loaded, RopeStages::new(&model.config), limits);
    let mut computed = [0; 4];
    let mut results = Vec::new();
    let mut step = |tokens: &[usize], greedy: bool| -> Result<()> {
        let mut batch = Batch::new(BLOCK_SIZE);
        for (sequence, tokens) in tokens.iter().enumerate() {
            let first = sequence * BLOCKS_OF_SEQUENCE;
            let blocks: Vec<BlockId> = (first..first + BLOCKS_OF_SEQUENCE).map(|block| BlockId(block as u32)).collect();
            let ids: Vec<u32> = (0..*tokens).map(|i| ((computed[sequence] + i) * 37 + sequence) as u32 % 250).collect();
            batch.push(SequenceStep {
                input_ids: &ids,
                num_computed_tokens: computed[sequence],
                block_table: &blocks,
                logits: if greedy { WantLogits::Argmax } else { WantLogits::Last },
                rope_stage: 0,
                adapter: None,
            })?;
            computed[sequence] += tokens;
        }
        let mut output = StepOutput::default();
        runner.execute(&batch, &mut output, &Interrupt::default())?;
        results.extend(output.logits.iter().map(|logit| logit.to_bits()));
        results.extend(output.argmax.iter().flatten());
        Ok(())
    };
    step(&[9, 1, 10], false)?;
    for (n, sequences) in SEQUENCES.into_iter().enumerate() {
        step(&vec![1; sequences], n % 2 == 1)?;
    }
    Ok(results)
}

/// Compare in both precisions. `make` returns a backend that queues its steps kernel by kernel (`true`), or replays
/// them.
pub(crate) fn recorded_steps_have_the_bits_of_eager_ones(make: impl Fn(Precision, bool) -> Result<CudaBackend>) {
    for precision in [Precision::Exact, Precision::Fast] {
        let [recorded, eager] = [false, true].map(|eager| results(make(precision, eager).unwrap()).unwrap());
        assert!(!recorded.is_empty() && recorded == eager, "{precision:?}");
    }
}
