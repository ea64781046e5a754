//! How much the errors of each input feature matter, matrix by matrix.

use std::collections::HashMap;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::batch::{Batch, BlockId, SequenceStep, WantLogits};
use crate::model::runner::{ModelRunner, Runner};

/// How much an error in each column of a model's matrices matters: the mean square of what the column is multiplied
/// with, over some text. `llama.cpp` calls it an importance matrix.
///
/// ```
/// use qwen_core::quantize::Importances;
///
/// let mut importances = Importances::default();
/// importances.insert("model.layers.0.mlp.down_proj.weight", vec![0.5, 2.0]);
/// assert_eq!(importances.get("model.layers.0.mlp.down_proj.weight"), Some(&[0.5, 2.0][..]));
/// assert_eq!(importances.get("lm_head.weight"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importances {
    of_matrix: HashMap<String, Vec<f32>>,
}

impl Importances {
    /// Run `prompts` on a whole model and compute the mean squares of each matrix's inputs. `progress` is called with
    /// the number of prompts done; its error ends the measurement.
    ///
    /// ```
    /// use qwen_core::Checkpoint;
    /// use qwen_core::backend::{Limits, reference::Reference};
    /// use qwen_core::model::{Model, rope::RopeStages, runner::ModelRunner, spec::ModelSpec};
    /// use qwen_core::quantize::Importances;
    ///
    /// let checkpoint = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo-model"))?;
    /// let (config, mut backend) = (checkpoint.config(), Reference::new());
    /// let limits = Limits {
    ///     max_model_len: 32,
    ///     max_num_batched_tokens: 32,
    ///     max_num_seqs: 1,
    ///     max_num_logits: 1,
    ///     block_size: 32,
    ///     num_blocks: 1,
    ///     vocab_size: config.vocab_size,
    ///     num_token_ids: config.vocab_size,
    /// };
    /// let model = Model::load(&mut backend, ModelSpec::new(config), &limits, &checkpoint, &mut |_, _| Ok(()))?;
    /// let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits);
    /// let importances = Importances::measure(&mut runner, &[&[1, 2, 3], &[4, 5]], &mut |_| Ok(()))?;
    /// assert_eq!(importances.len(), 6 * 7 + 1); // seven matrices a layer, and the head
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ContextLength`] for a prompt longer than a step of the runner, or than its K/V store;
    /// [`Error::InvalidArgument`] without a prompt; errors of the device and of `progress`.
    pub fn measure<B: Backend>(
        runner: &mut ModelRunner<B>,
        prompts: &[&[u32]],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let limits = runner.limits().clone();
        let block_size = limits.block_size.max(1);
        let most = limits.max_num_batched_tokens.min(limits.max_model_len).min(limits.num_blocks * block_size);
        let mut sums: HashMap<String, Vec<f64>> = HashMap::new();
        let mut tokens = 0;
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.len() > most {
                return Err(Error::ContextLength { prompt: prompt.len(), limit: most, context: most });
            }
            let blocks: Vec<BlockId> = (0..).take(prompt.len().div_ceil(block_size)).map(BlockId).collect();
            let logits = WantLogits::None;
            let mut batch = Batch::new(block_size);
            batch.push(SequenceStep {
                input_ids: prompt,
                num_computed_tokens: 0,
                block_table: &blocks,
                logits,
                rope_stage: 0,
                adapter: None,
            })?;
            runner.observe(&batch, &mut |weight, rows| {
                let cols = rows.len() / prompt.len();
                for cut in &weight.cuts {
                    let sums = sums.entry(cut.tensor.clone()).or_insert_with(|| vec![0.0; cols]);
                    for row in rows.chunks_exact(cols.max(1)) {
                        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
                    }
                }
            })?;
            tokens += prompt.len();
            progress(index + 1)?;
        }
        if tokens == 0 {
            return Err(Error::argument("prompts", "they contain no token to measure with"));
        }
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / tokens as f64) as f32).collect();
        Ok(Importances { of_matrix: sums.into_iter().map(|(name, sums)| (name, mean(sums))).collect() })
    }

    /// Set the importances of a matrix, by its published name: a number of at least 0 per column.
    pub fn insert(&mut self, name: impl Into<String>, of_columns: Vec<f32>) {
        self.of_matrix.insert(name.into(), of_columns);
    }

    /// The importances of a matrix, if there are any.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.of_matrix.get(name).map(Vec::as_slice)
    }

    /// The number of matrices with importances.
    pub fn len(&self) -> usize {
        self.of_matrix.len()
    }

    /// Whether no matrix has importances.
    pub fn is_empty(&self) -> bool {
        self.of_matrix.is_empty()
    }
}
