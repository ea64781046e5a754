//! A model, or some of its layers, on one backend: write a batch's inputs, run the step, read what it computed.

use std::sync::Arc;

use super::inputs::HostInputs;
use super::{Runner, Stage};
use crate::backend::collective::Collective;
use crate::backend::{Backend, Interrupt, KvSpec, Limits, NON_FINITE, StepKey};
use crate::error::Result;
use crate::model::Model;
use crate::model::batch::{AdapterId, Batch, BlockId, CopyBlock, Damage, StepOutput};
use crate::model::rope::RopeStages;
use crate::model::source::LowRankSource;
use crate::model::spec::{ModelSpec, WeightSpec};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;

/// A model on a backend.
#[derive(Debug)]
pub struct ModelRunner<B: Backend> {
    backend: B,
    model: Model<B>,
    rope: RopeStages,
    limits: Limits,
    group: Option<Arc<dyn Collective>>,
    /// Passes activations to the next stage, if devices do that.
    neighbours: Option<Arc<dyn Collective>>,
    host: HostInputs,
    /// The output ids as read from the device.
    argmax: Vec<u32>,
}

impl<B: Backend> ModelRunner<B> {
    /// A runner of `model`, which was loaded on `backend` for `limits`.
    pub fn new(backend: B, model: Model<B>, rope: RopeStages, limits: Limits) -> Self {
        let (host, argmax) = (HostInputs::default(), Vec::new());
        ModelRunner { backend, model, rope, limits, group: None, neighbours: None, host, argmax }
    }

    /// Sum with the other ranks over `group`.
    pub fn with_group(mut self, group: Arc<dyn Collective>) -> Self {
        self.group = Some(group);
        self
    }

    /// Pass activations between stages through `group`, if it can do so from device to device.
    pub fn with_neighbours(mut self, group: Arc<dyn Collective>) -> Self {
        self.neighbours = Some(group).filter(|group| self.backend.supports_p2p(&**group));
        self
    }

    /// Run the backend's warm-up steps before the first request. They compute padding and store nothing.
    ///
    /// # Errors
    /// What the device reports.
    pub fn warm_up(&mut self) -> Result<()> {
        let _float_env = FloatEnv::enter();
        let padding = Batch::new(self.limits.block_size);
        let Limits { max_num_batched_tokens, max_num_seqs, max_num_logits, .. } = self.limits;
        let fits = |key: &StepKey| {
            key.num_tokens <= max_num_batched_tokens && key.num_seqs <= max_num_seqs && key.num_logits <= max_num_logits
        };
        for key in self.backend.warmup_shapes().into_iter().filter(fits) {
            self.write_inputs(&padding, key)?;
            let ModelRunner { backend, model, group, .. } = self;
            let interrupt = Interrupt::default();
            backend.step(key, &interrupt, &mut |b| model.forward(b, key, group.as_deref(), &interrupt))?;
        }
        self.backend.synchronize()
    }

    /// Run a batch half layer by half layer, and call `note` with each matrix of the model and its inputs, one row per
    /// token. No logits are computed. Outside of [`Backend::step`], for measurements: each read waits for the device.
    ///
    /// # Errors
    /// As [`Runner::execute`].
    pub fn observe(&mut self, batch: &Batch, note: &mut dyn FnMut(&WeightSpec, &[f32])) -> Result<()> {
        let _float_env = FloatEnv::enter();
        batch.check(&self.limits)?;
        let key = self.backend.padded(StepKey {
            num_tokens: batch.num_tokens(),
            num_seqs: batch.num_seqs(),
            num_logits: 0,
            max_seqlen_q: batch.max_seqlen_q(),
            hidden: false,
            adapters: false,
        });
        self.write_inputs(batch, key)?;
        self.model.observe(&mut self.backend, key, batch.num_tokens(), note)
    }

    /// Whether activations go to the next stage from device to device.
    pub(crate) fn hands_over(&self) -> bool {
        self.neighbours.is_some()
    }

    /// Send the residual stream to the stage of rank `to`.
    pub(crate) fn pass_on(&mut self, num_tokens: usize, to: usize) -> Result<()> {
        let len = num_tokens * self.model.spec.hidden_size;
        match &self.neighbours {
            Some(group) => self.backend.send(&self.model.buffers.residual, len, to, &**group),
            None => Ok(()),
        }
    }

    /// Receive the residual stream from the stage of rank `from`.
    pub(crate) fn take_over(&mut self, num_tokens: usize, from: usize) -> Result<()> {
        let len = num_tokens * self.model.spec.hidden_size;
        match &self.neighbours {
            Some(group) => self.backend.receive(&mut self.model.buffers.residual, len, from, &**group),
            None => Ok(()),
        }
    }

    /// Locates damage in the stages, one after another by rank. Each runs the step again and passes its result on.
    pub(crate) fn locate_in_turn(
        &mut self,
        batch: &Batch,
        key: StepKey,
        from: Option<usize>,
        to: Option<usize>,
    ) -> Result<Vec<Damage>> {
        let num_tokens = batch.num_tokens();
        let hidden = match from {
            Some(from) => {
                self.take_over(num_tokens, from)?;
                let mut hidden = Vec::new();
                self.read_hidden(num_tokens, &mut hidden)?;
                Some(hidden)
            }
            None => None,
        };
        let found = self.locate(batch, hidden.as_deref(), key)?;
        if let Some(to) = to {
            self.pass_on(num_tokens, to)?;
        }
        Ok(found)
    }

    /// Run this part of the model, which has the output head, and read what it computed.
    pub(crate) fn compute(
        &mut self,
        batch: &Batch,
        hidden: Option<&[f32]>,
        output: &mut StepOutput,
        interrupt: &Interrupt,
    ) -> Result<StepKey> {
        let key = self.run(batch, hidden, interrupt)?;
        self.read_output(batch, output)?;
        Ok(key)
    }

    /// Wait for everything queued.
    pub(crate) fn synchronize(&mut self) -> Result<()> {
        self.backend.synchronize()
    }

    fn write_inputs(&mut self, batch: &Batch, key: StepKey) -> Result<()> {
        self.host.fill(batch, key, &self.limits, &self.rope, self.model.spec.heads.head_dim)?;
        self.host.write(&mut self.backend, &mut self.model.inputs)
    }
}

impl<B: Backend> Stage for ModelRunner<B> {
    fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    fn warm_up(&mut self) -> Result<()> {
        ModelRunner::warm_up(self)
    }

    fn run(&mut self, batch: &Batch, hidden: Option<&[f32]>, interrupt: &Interrupt) -> Result<StepKey> {
        let _float_env = FloatEnv::enter();
        batch.check(&self.limits)?;
        let adapters = self.model.begin_adapters(&mut self.backend, batch)?;
        let key = self.backend.padded(StepKey {
            num_tokens: batch.num_tokens(),
            num_seqs: batch.num_seqs(),
            num_logits: batch.logits_indices.len(),
            max_seqlen_q: batch.max_seqlen_q(),
            hidden: !batch.hidden_indices.is_empty(),
            adapters,
        });
        self.write_inputs(batch, key)?;
        if let Some(hidden) = hidden {
            self.backend.write(&mut self.model.buffers.residual, hidden)?;
        }
        let ModelRunner { backend, model, group, .. } = self;
        backend.step(key, interrupt, &mut |b| model.forward(b, key, group.as_deref(), interrupt))?;
        Ok(key)
    }

    fn read_hidden(&mut self, num_tokens: usize, hidden: &mut Vec<f32>) -> Result<()> {
        hidden.resize(num_tokens * self.model.spec.hidden_size, 0.0);
        self.backend.read(&self.model.buffers.residual, hidden)
    }

    fn read_output(&mut self, batch: &Batch, output: &mut StepOutput) -> Result<()> {
        output.clear();
        self.argmax.resize(batch.logits_indices.len(), 0);
        self.backend.read_indices(&self.model.buffers.greedy_ids, &mut self.argmax)?;
        output.argmax.extend(self.argmax.iter().map(|&id| Some(id).filter(|id| *id != NON_FINITE)));
        if batch.num_logits_read > 0 {
            output.logits.resize(batch.num_logits_read * self.limits.vocab_size, 0.0);
            self.backend.read(&self.model.buffers.logits, &mut output.logits)?;
        }
        if let Some(last) = batch.hidden_indices.last() {
            let width = self.model.spec.hidden_size;
            // Reads begin with the first row: read up to the last wanted one, then close the gaps.
            output.hidden.resize((*last as usize + 1) * width, 0.0);
            self.backend.read(&self.model.buffers.normed, &mut output.hidden)?;
            for (row, &token) in batch.hidden_indices.iter().enumerate() {
                output.hidden.copy_within(token as usize * width..(token as usize + 1) * width, row * width);
            }
            output.hidden.truncate(batch.hidden_indices.len() * width);
        }
        Ok(())
    }

    /// Outside of [`Backend::step`]: inside, a backend would replay the recorded step. All ranks of a group call
    /// it together, and all run all layers: one that stopped early would leave the others waiting for its sums.
    fn locate(&mut self, batch: &Batch, hidden: Option<&[f32]>, key: StepKey) -> Result<Vec<Damage>> {
        let _float_env = FloatEnv::enter();
        let width = self.model.spec.hidden_size;
        let mut values = vec![0.0; batch.num_tokens() * width];
        if let Some(hidden) = hidden {
            self.backend.write(&mut self.model.buffers.residual, hidden)?;
            values.copy_from_slice(hidden);
        }
        let mut sound = vec![true; batch.num_seqs()];
        let mut found = Vec::new();
        // Records sequences that are not finite now but were before.
        let mut note = |values: &[f32], place: Option<&dyn Fn() -> String>| {
            for (seq, tokens) in batch.cu_seqlens_q.windows(2).enumerate() {
                let rows = &values[tokens[0] as usize * width..tokens[1] as usize * width];
                if sound[seq] && !rows.iter().all(|value| value.is_finite()) {
                    sound[seq] = false;
                    found.extend(place.map(|place| Damage { seq, place: place() }));
                }
            }
        };
        note(&values, None);
        let ModelRunner { backend, model, group, .. } = self;
        model.embed(backend, key)?;
        backend.read(&model.buffers.residual, &mut values)?;
        note(&values, Some(&|| "the embedding".into()));
        for layer in 0..model.num_layers() {
            model.layer(backend, layer, key, group.as_deref())?;
            backend.read(&model.buffers.residual, &mut values)?;
            note(&values, Some(&|| format!("layer {}", model.spec.layers.start + layer)));
        }
        Ok(found)
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn rope_contexts(&self) -> &[usize] {
        self.rope.contexts()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        let key = self.compute(batch, None, output, interrupt)?;
        if !output.is_sound() {
            let found = self.locate(batch, None, key)?;
            output.set_damage(batch, &found);
        }
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: &dyn LowRankSource) -> Result<()> {
        let _float_env = FloatEnv::enter();
        self.model.load_adapter(&mut self.backend, &self.limits, id, adapter)
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.model.unload_adapter(&mut self.backend, id);
    }

    fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        self.model.adapter_bytes(&self.backend, &self.limits, adapter)
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        let pairs: Vec<(u32, u32)> = copies.iter().map(|copy| (copy.from.0, copy.to.0)).collect();
        self.backend.copy_blocks(&mut self.model.kv, &pairs)
    }

    fn stored_kv(&self) -> Result<KvSpec> {
        let KvSpec { key_encodings, value_encoding, .. } = &self.model.kv_spec;
        let stored = |encoding: &Encoding| self.backend.stored_encoding(*encoding);
        let (key_encodings, value_encoding) = (key_encodings.iter().map(stored).collect(), stored(value_encoding));
        Ok(KvSpec { key_encodings, value_encoding, ..self.model.kv_spec })
    }

    fn read_blocks(&mut self, blocks: &[BlockId], out: &mut [u8]) -> Result<()> {
        self.backend.read_blocks(&self.model.kv, &numbers(blocks), out)
    }

    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        self.backend.write_blocks(&mut self.model.kv, &numbers(blocks), bytes)
    }
}

fn numbers(blocks: &[BlockId]) -> Vec<u32> {
    blocks.iter().map(|block| block.0).collect()
}
