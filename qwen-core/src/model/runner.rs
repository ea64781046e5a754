//! From plain batches to a device and back: the boundary between plain code and code that is generic over backends.
//!
//! Everything above [`Runner`] (scheduler, engine, chat) is plain code that a scripted runner can drive in tests;
//! everything below is generic over [`Backend`].

use std::ops::Range;
use std::sync::Arc;

use crate::backend::Limits;
use crate::backend::collective::Collective;
use crate::backend::{Backend, Interrupt, KvSpec, NON_FINITE, PAD_SLOT, StepKey};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::batch::{AdapterId, Batch, BlockId, CopyBlock, Damage, StepOutput};
use crate::model::rope::RopeStages;
use crate::model::source::LowRankSource;
use crate::model::spec::{ModelSpec, WeightSpec};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;

/// Runs batches: plain data in, plain data out.
pub trait Runner: Send {
    /// The limits that this runner was built for.
    fn limits(&self) -> &Limits;

    /// Compute one step. A non-finite value is not an error: `output` names the sequences that it damaged.
    ///
    /// # Errors
    /// What [`Batch::check`] finds, [`Error::Cancelled`] when `interrupt` was raised (then no K/V of the step counts), and
    /// what the device reports.
    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()>;

    /// The most positions of a sequence in each stage of RoPE, in ascending order (see [`RopeStages`]). Default: none, so
    /// that all sequences are in the same stage.
    fn rope_contexts(&self) -> &[usize] {
        &[]
    }

    /// Copy K/V blocks that are about to be written while shared.
    ///
    /// # Errors
    /// What the device reports.
    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()>;

    /// Load a low-rank adapter beside the model, under a number that no other one has had. Sequences of a batch may
    /// choose it from then on ([`Batch::adapters`]).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a runner without adapters, which is the default, and for a model that is split over
    /// ranks; [`Error::DoesNotFit`] with the figures; what the file and the device report.
    fn load_adapter(&mut self, id: AdapterId, adapter: &dyn LowRankSource) -> Result<()> {
        let _ = id;
        self.adapter_bytes(adapter).map(drop)
    }

    /// Free an adapter that no sequence uses any more. Nothing for one that is not there.
    fn unload_adapter(&mut self, id: AdapterId) {
        let _ = id;
    }

    /// Bytes that an adapter takes on the devices, before it is loaded, without the buffers that all adapters share.
    ///
    /// # Errors
    /// As [`Runner::load_adapter`].
    fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        let reason = "this runner computes the model alone, as when it is split over ranks: merge the adapter at load";
        Err(Error::unsupported(format!("the adapter {} beside the model", adapter.name()), reason))
    }

    /// What [`Runner::read_blocks`] gives: the K/V of all layers of the model, in the order of the layers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where K/V cannot leave the devices. That is the default.
    fn stored_kv(&self) -> Result<KvSpec> {
        Err(Error::unsupported("saved K/V", "this runner keeps its K/V to itself: save the messages alone"))
    }

    /// Copy whole blocks of all layers to `out`, in the layout of [`Backend::read_blocks`].
    ///
    /// # Errors
    /// As [`Runner::stored_kv`], for another number of bytes, and what the device reports.
    fn read_blocks(&mut self, blocks: &[BlockId], out: &mut [u8]) -> Result<()> {
        let _ = (blocks, out);
        self.stored_kv().map(drop)
    }

    /// The contrary of [`Runner::read_blocks`].
    ///
    /// # Errors
    /// As [`Runner::read_blocks`].
    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        let _ = (blocks, bytes);
        self.stored_kv().map(drop)
    }
}

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
}

/// The padded inputs of a step on the host, reused.
#[derive(Debug, Default)]
struct HostInputs {
    input_ids: Vec<u32>,
    cos_sin: Vec<f32>,
    slot_mapping: Vec<u32>,
    cu_seqlens_q: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    logits_indices: Vec<u32>,
    /// The output ids as read from the device.
    argmax: Vec<u32>,
}

impl<B: Backend> ModelRunner<B> {
    /// A runner of `model`, which was loaded on `backend` for `limits`.
    pub fn new(backend: B, model: Model<B>, rope: RopeStages, limits: Limits) -> Self {
        ModelRunner { backend, model, rope, limits, group: None, neighbours: None, host: HostInputs::default() }
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

    /// Run this part of the model on a batch. A stage that is not the first takes `hidden`, the residual stream
    /// `[num_tokens, hidden_size]` of the previous stage.
    ///
    /// # Errors
    /// As [`Runner::execute`].
    pub fn run(&mut self, batch: &Batch, hidden: Option<&[f32]>, interrupt: &Interrupt) -> Result<StepKey> {
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

    /// The residual stream after [`ModelRunner::run`], for the next stage.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read_hidden(&mut self, num_tokens: usize) -> Result<Vec<f32>> {
        let mut hidden = vec![0.0; num_tokens * self.model.spec.hidden_size];
        self.backend.read(&self.model.buffers.residual, &mut hidden)?;
        Ok(hidden)
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
                Some(self.read_hidden(num_tokens)?)
            }
            None => None,
        };
        let found = self.locate(batch, hidden.as_deref(), key)?;
        if let Some(to) = to {
            self.pass_on(num_tokens, to)?;
        }
        Ok(found)
    }

    /// The part of the model that this runs.
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    /// Run this part of the model, which has the output head, and read what it computed.
    pub(crate) fn compute(
        &mut self,
        batch: &Batch,
        hidden: Option<&[f32]>,
        output: &mut StepOutput,
        interrupt: &Interrupt,
    ) -> Result<StepKey> {
        let _float_env = FloatEnv::enter();
        let key = self.run(batch, hidden, interrupt)?;
        output.clear();
        self.host.argmax.resize(batch.logits_indices.len(), 0);
        self.backend.read_indices(&self.model.buffers.greedy_ids, &mut self.host.argmax)?;
        output.argmax.extend(self.host.argmax.iter().map(|&id| Some(id).filter(|id| *id != NON_FINITE)));
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
        Ok(key)
    }

    /// Wait for everything queued.
    pub(crate) fn synchronize(&mut self) -> Result<()> {
        self.backend.synchronize()
    }

    fn write_inputs(&mut self, batch: &Batch, key: StepKey) -> Result<()> {
        let (host, head_dim) = (&mut self.host, self.model.spec.heads.head_dim);
        let stride = self.limits.max_blocks_per_seq();
        padded(&mut host.input_ids, &batch.input_ids, key.num_tokens, 0);
        padded(&mut host.slot_mapping, &batch.slot_mapping, key.num_tokens, PAD_SLOT);
        padded(&mut host.cu_seqlens_q, &batch.cu_seqlens_q, key.num_seqs + 1, batch.num_tokens() as u32);
        padded(&mut host.context_lens, &batch.context_lens, key.num_seqs, 0);
        padded(&mut host.logits_indices, &batch.logits_indices, key.num_logits, 0);
        host.cos_sin.resize(key.num_tokens * head_dim, 0.0);
        let mut rows = host.cos_sin.chunks_exact_mut(head_dim).zip(&batch.positions);
        for (tokens, &stage) in batch.cu_seqlens_q.windows(2).zip(&batch.rope_stages) {
            let rope = self.rope.get(stage as usize).ok_or_else(|| {
                let reason = format!("is {stage}; this model has {}", self.rope.contexts().len());
                Error::argument("rope_stage", reason)
            })?;
            for (row, &position) in rows.by_ref().take((tokens[1] - tokens[0]) as usize) {
                rope.cos_sin(position as usize, row);
            }
        }
        host.block_tables.clear();
        host.block_tables.resize(key.num_seqs * stride, 0);
        for (row, range) in host.block_tables.chunks_exact_mut(stride).zip(batch.cu_blocks.windows(2)) {
            let blocks = &batch.block_tables[range[0] as usize..range[1] as usize];
            // A table may be longer than the context needs if blocks were reserved ahead.
            let len = blocks.len().min(stride);
            row[..len].copy_from_slice(&blocks[..len]);
        }
        let (b, inputs) = (&mut self.backend, &mut self.model.inputs);
        b.write_indices(&mut inputs.input_ids, &host.input_ids)?;
        b.write_indices(&mut inputs.slot_mapping, &host.slot_mapping)?;
        b.write_indices(&mut inputs.cu_seqlens_q, &host.cu_seqlens_q)?;
        b.write_indices(&mut inputs.context_lens, &host.context_lens)?;
        b.write_indices(&mut inputs.logits_indices, &host.logits_indices)?;
        b.write_indices(&mut inputs.block_tables, &host.block_tables)?;
        b.write(&mut inputs.cos_sin, &host.cos_sin)
    }

    /// Where each sequence first has a non-finite value, before the output head: the step runs again layer by layer.
    /// Sequences that are already damaged in `hidden` are left out.
    ///
    /// Outside of [`Backend::step`]: inside, a backend would replay the recorded step. All ranks of a group call
    /// it together, and all run all layers: one that stopped early would leave the others waiting for its sums.
    pub(crate) fn locate(&mut self, batch: &Batch, hidden: Option<&[f32]>, key: StepKey) -> Result<Vec<Damage>> {
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

fn padded(out: &mut Vec<u32>, values: &[u32], len: usize, pad: u32) {
    out.clear();
    out.extend_from_slice(values);
    out.resize(len, pad);
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

/// The stages of one model, each on its own backend, run one after another.
#[derive(Debug)]
pub struct Pipeline<B: Backend> {
    before: Vec<ModelRunner<B>>,
    last: ModelRunner<B>,
}

impl<B: Backend> Pipeline<B> {
    /// A pipeline of `stages` with consecutive layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is none.
    pub fn new(mut stages: Vec<ModelRunner<B>>) -> Result<Self> {
        let last = stages.pop().ok_or_else(|| Error::argument("stages", "at least one stage is needed"))?;
        Ok(Pipeline { before: stages, last })
    }

    fn stages(&mut self) -> impl Iterator<Item = &mut ModelRunner<B>> {
        self.before.iter_mut().chain([&mut self.last])
    }

    /// Move each stage's part of each block, which is at a range of `len` bytes: in a block the stages follow each other.
    fn for_each_stage(
        &mut self,
        blocks: &[BlockId],
        len: usize,
        mut act: impl FnMut(&mut ModelRunner<B>, Range<usize>, BlockId) -> Result<()>,
    ) -> Result<()> {
        let stored = self.stored_kv()?;
        stored.check_blocks(&numbers(blocks), len).map_err(|reason| Error::argument("blocks", reason))?;
        let mut at = 0;
        for block in blocks {
            for stage in self.before.iter_mut().chain([&mut self.last]) {
                let end = at + stage.stored_kv()?.block_bytes();
                act(stage, at..end, *block)?;
                at = end;
            }
        }
        Ok(())
    }
}

impl<B: Backend> Runner for Pipeline<B> {
    fn limits(&self) -> &Limits {
        &self.last.limits
    }

    fn rope_contexts(&self) -> &[usize] {
        self.last.rope_contexts()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        let Pipeline { before, last } = self;
        // The input activations of each stage; the first starts from token ids.
        let mut hidden: Vec<Option<Vec<f32>>> = vec![None];
        let mut keys = Vec::new();
        for (index, stage) in before.iter_mut().enumerate() {
            keys.push(stage.run(batch, hidden[index].as_deref(), interrupt)?);
            hidden.push(Some(stage.read_hidden(batch.num_tokens())?));
        }
        keys.push(last.compute(batch, hidden[before.len()].as_deref(), output, interrupt)?);
        if !output.is_sound() {
            let mut found = Vec::new();
            for ((stage, hidden), key) in before.iter_mut().chain([last]).zip(&hidden).zip(keys) {
                found.extend(stage.locate(batch, hidden.as_deref(), key)?);
            }
            output.set_damage(batch, &found);
        }
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: &dyn LowRankSource) -> Result<()> {
        let loaded = self.stages().try_for_each(|stage| stage.load_adapter(id, adapter));
        if loaded.is_err() {
            self.unload_adapter(id);
        }
        loaded
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.stages().for_each(|stage| stage.unload_adapter(id));
    }

    fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        let stages = self.before.iter().chain([&self.last]);
        stages.map(|stage| stage.adapter_bytes(adapter)).sum()
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        self.before.iter_mut().try_for_each(|stage| stage.copy_blocks(copies))?;
        self.last.copy_blocks(copies)
    }

    fn stored_kv(&self) -> Result<KvSpec> {
        let mut all = self.last.stored_kv()?;
        let before = self.before.iter().map(|stage| Ok(stage.stored_kv()?.key_encodings));
        let mut key_encodings = before.collect::<Result<Vec<_>>>()?.concat();
        key_encodings.append(&mut all.key_encodings);
        Ok(KvSpec { key_encodings, ..all })
    }

    fn read_blocks(&mut self, blocks: &[BlockId], out: &mut [u8]) -> Result<()> {
        self.for_each_stage(blocks, out.len(), |stage, range, block| stage.read_blocks(&[block], &mut out[range]))
    }

    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        self.for_each_stage(blocks, bytes.len(), |stage, range, block| stage.write_blocks(&[block], &bytes[range]))
    }
}
