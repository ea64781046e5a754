//! A batch as the device gets it: padded to the shape of the step, with the cosines and sines of its positions.

use crate::backend::{Backend, Limits, PAD_SLOT, StepInputs, StepKey};
use crate::error::{Error, Result};
use crate::model::batch::Batch;
use crate::model::rope::RopeStages;

/// The padded inputs of a step on the host, reused.
#[derive(Debug, Default)]
pub(super) struct HostInputs {
    input_ids: Vec<u32>,
    cos_sin: Vec<f32>,
    slot_mapping: Vec<u32>,
    cu_seqlens_q: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    logits_indices: Vec<u32>,
}

impl HostInputs {
    /// Pad `batch` to the shape `key`.
    pub(super) fn fill(
        &mut self,
        batch: &Batch,
        key: StepKey,
        limits: &Limits,
        rope: &RopeStages,
        head_dim: usize,
    ) -> Result<()> {
        let stride = limits.max_blocks_per_seq();
        padded(&mut self.input_ids, &batch.input_ids, key.num_tokens, 0);
        padded(&mut self.slot_mapping, &batch.slot_mapping, key.num_tokens, PAD_SLOT);
        padded(&mut self.cu_seqlens_q, &batch.cu_seqlens_q, key.num_seqs + 1, batch.num_tokens() as u32);
        padded(&mut self.context_lens, &batch.context_lens, key.num_seqs, 0);
        padded(&mut self.logits_indices, &batch.logits_indices, key.num_logits, 0);
        self.cos_sin.resize(key.num_tokens * head_dim, 0.0);
        let mut rows = self.cos_sin.chunks_exact_mut(head_dim).zip(&batch.positions);
        for (tokens, &stage) in batch.cu_seqlens_q.windows(2).zip(&batch.rope_stages) {
            let rope = rope.get(stage as usize).ok_or_else(|| {
                let reason = format!("is {stage}; this model has {}", rope.contexts().len());
                Error::argument("rope_stage", reason)
            })?;
            for (row, &position) in rows.by_ref().take((tokens[1] - tokens[0]) as usize) {
                rope.cos_sin(position as usize, row);
            }
        }
        self.block_tables.clear();
        self.block_tables.resize(key.num_seqs * stride, 0);
        for (row, range) in self.block_tables.chunks_exact_mut(stride).zip(batch.cu_blocks.windows(2)) {
            let blocks = &batch.block_tables[range[0] as usize..range[1] as usize];
            // A table may be longer than the context needs if blocks were reserved ahead.
            let len = blocks.len().min(stride);
            row[..len].copy_from_slice(&blocks[..len]);
        }
        Ok(())
    }

    /// Write them to the device.
    pub(super) fn write<B: Backend>(&self, b: &mut B, inputs: &mut StepInputs<B>) -> Result<()> {
        b.write_indices(&mut inputs.input_ids, &self.input_ids)?;
        b.write_indices(&mut inputs.slot_mapping, &self.slot_mapping)?;
        b.write_indices(&mut inputs.cu_seqlens_q, &self.cu_seqlens_q)?;
        b.write_indices(&mut inputs.context_lens, &self.context_lens)?;
        b.write_indices(&mut inputs.logits_indices, &self.logits_indices)?;
        b.write_indices(&mut inputs.block_tables, &self.block_tables)?;
        b.write(&mut inputs.cos_sin, &self.cos_sin)
    }
}

fn padded(out: &mut Vec<u32>, values: &[u32], len: usize, pad: u32) {
    out.clear();
    out.extend_from_slice(values);
    out.resize(len, pad);
}
