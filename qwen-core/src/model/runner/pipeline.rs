//! One model over several backends: consecutive layers on each.

use std::fmt;
use std::ops::Range;

use super::{Runner, Stage};
use crate::backend::{Interrupt, KvSpec, Limits};
use crate::error::{Error, Result};
use crate::model::batch::{AdapterId, Batch, BlockId, CopyBlock, StepOutput};
use crate::model::source::LowRankSource;

/// The stages of one model, each on its own backend, run one after another. The residual stream goes from one to the next
/// through host memory; each keeps the K/V of its own layers, in blocks with the same numbers.
pub struct Pipeline {
    before: Vec<Box<dyn Stage>>,
    last: Box<dyn Stage>,
    /// The residual stream behind each stage but the last, reused.
    hidden: Vec<Vec<f32>>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stages().map(|stage| &stage.spec().layers)).finish()
    }
}

impl Pipeline {
    /// A pipeline of stages that together are a whole model, in the order of their layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when layers are missing, and for stages of unlike sizes.
    pub fn new(mut stages: Vec<Box<dyn Stage>>) -> Result<Self> {
        let refuse = |reason: String| Err(Error::argument("stages", reason));
        let Some(last) = stages.pop() else { return refuse("at least one stage is needed".into()) };
        let mut next = 0;
        for stage in stages.iter().chain([&last]) {
            let (spec, end) = (stage.spec(), last.spec());
            if spec.layers.start != next || spec.num_hidden_layers != end.num_hidden_layers {
                let (all, layers) = (end.num_hidden_layers, &spec.layers);
                return refuse(format!("layer {next} of {all} has to follow, a stage has {layers:?}"));
            }
            if spec.hidden_size != end.hidden_size || stage.limits() != last.limits() {
                return refuse("they are of unlike sizes".into());
            }
            next = spec.layers.end;
        }
        if !last.spec().has_head() {
            return refuse(format!("the last one ends at layer {next}, without the output head"));
        }
        Ok(Pipeline { hidden: vec![Vec::new(); stages.len()], before: stages, last })
    }

    fn stages(&self) -> impl Iterator<Item = &dyn Stage> {
        self.before.iter().chain([&self.last]).map(|stage| &**stage)
    }

    fn stages_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Stage>> {
        self.before.iter_mut().chain([&mut self.last])
    }

    /// Move each stage's part of each block, which is at a range of `len` bytes: in a block the stages follow each other.
    fn for_each_stage(
        &mut self,
        blocks: &[BlockId],
        len: usize,
        mut act: impl FnMut(&mut dyn Stage, Range<usize>, BlockId) -> Result<()>,
    ) -> Result<()> {
        let numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        self.stored_kv()?.check_blocks(&numbers, len).map_err(|reason| Error::argument("blocks", reason))?;
        let sizes = self.stages().map(|stage| Ok(stage.stored_kv()?.block_bytes())).collect::<Result<Vec<_>>>()?;
        let mut at = 0;
        for block in blocks {
            for (stage, size) in self.stages_mut().zip(&sizes) {
                act(&mut **stage, at..at + size, *block)?;
                at += size;
            }
        }
        Ok(())
    }
}

/// What stage `index` starts from: the first one has token ids only.
fn input_of(hidden: &[Vec<f32>], index: usize) -> Option<&[f32]> {
    index.checked_sub(1).and_then(|before| hidden.get(before)).map(Vec::as_slice)
}

impl Runner for Pipeline {
    fn limits(&self) -> &Limits {
        self.last.limits()
    }

    fn rope_contexts(&self) -> &[usize] {
        self.last.rope_contexts()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        let Pipeline { before, last, hidden } = self;
        let mut keys = Vec::with_capacity(before.len() + 1);
        for (index, stage) in before.iter_mut().enumerate() {
            keys.push(stage.run(batch, input_of(hidden, index), interrupt)?);
            stage.read_hidden(batch.num_tokens(), &mut hidden[index])?;
        }
        keys.push(last.run(batch, input_of(hidden, before.len()), interrupt)?);
        last.read_output(batch, output)?;
        if !output.is_sound() {
            let mut found = Vec::new();
            for (index, (stage, key)) in before.iter_mut().chain([last]).zip(keys).enumerate() {
                found.extend(stage.locate(batch, input_of(hidden, index), key)?);
            }
            output.set_damage(batch, &found);
        }
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: &dyn LowRankSource) -> Result<()> {
        let loaded = self.stages_mut().try_for_each(|stage| stage.load_adapter(id, adapter));
        if loaded.is_err() {
            self.unload_adapter(id);
        }
        loaded
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.stages_mut().for_each(|stage| stage.unload_adapter(id));
    }

    fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        self.stages().map(|stage| stage.adapter_bytes(adapter)).sum()
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        self.stages_mut().try_for_each(|stage| stage.copy_blocks(copies))
    }

    fn stored_kv(&self) -> Result<KvSpec> {
        let mut all = self.last.stored_kv()?;
        let mut key_encodings = Vec::new();
        for stage in &self.before {
            let KvSpec { key_encodings: own, value_encoding, .. } = stage.stored_kv()?;
            if value_encoding != all.value_encoding {
                let (one, other) = (value_encoding, all.value_encoding);
                let reason = format!("one device of the model stores values as {one}, another one as {other}");
                return Err(Error::unsupported("saved K/V", reason));
            }
            key_encodings.extend(own);
        }
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
