//! The operations that a [`super::Recording`] notes, and running them on what their handles name.

use super::recording::{BufferId, Device, IndicesId, KvId, WeightId};
use qwen_core::backend::{Backend, HeadLayout, StepInputs, StepKey};
use qwen_core::error::Result;

/// An operation with its handles and its constants: all that a device may keep of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Recorded {
    Embed {
        ids: IndicesId,
        table: WeightId,
        out: BufferId,
        rows: usize,
    },
    Linear {
        x: BufferId,
        w: WeightId,
        bias: Option<BufferId>,
        out: BufferId,
        rows: usize,
    },
    RmsNorm {
        x: BufferId,
        weight: BufferId,
        eps: f32,
        out: BufferId,
        hidden_size: usize,
        rows: usize,
    },
    Rope {
        qkv: BufferId,
        cos_sin: BufferId,
        heads: HeadLayout,
        rows: usize,
    },
    StoreKv {
        qkv: BufferId,
        slot_mapping: IndicesId,
        kv: KvId,
        layer: usize,
        heads: HeadLayout,
        rows: usize,
    },
    PagedAttention {
        qkv: BufferId,
        kv: KvId,
        layer: usize,
        heads: HeadLayout,
        cu_seqlens_q: IndicesId,
        context_lens: IndicesId,
        block_tables: IndicesId,
        max_blocks_per_seq: usize,
        out: BufferId,
        key: StepKey,
    },
    SiluAndMul {
        gate_up: BufferId,
        out: BufferId,
        intermediate_size: usize,
        rows: usize,
    },
    Add {
        x: BufferId,
        y: BufferId,
        len: usize,
    },
    GatherRows {
        x: BufferId,
        indices: IndicesId,
        out: BufferId,
        width: usize,
        rows: usize,
    },
    Argmax {
        x: BufferId,
        out: IndicesId,
        width: usize,
        valid: usize,
        rows: usize,
    },
}

impl Device {
    /// Run an operation on the reference. The output is taken out of its place meanwhile.
    pub(super) fn run(&mut self, op: &Recorded) -> Result<()> {
        let Device { reference: b, buffers, indices, weights, stores } = self;
        match *op {
            Recorded::Embed { ids, table, out, rows } => {
                b.embed(&indices[ids.0], &weights[table.0], &mut buffers[out.0], rows)
            }
            Recorded::Linear { x, w, bias, out, rows } => with(buffers, out, |buffers, out| {
                b.linear(&buffers[x.0], &weights[w.0], bias.map(|bias| &buffers[bias.0]), out, rows)
            }),
            Recorded::RmsNorm { x, weight, eps, out, hidden_size, rows } => with(buffers, out, |buffers, out| {
                b.rms_norm(&buffers[x.0], &buffers[weight.0], eps, out, hidden_size, rows)
            }),
            Recorded::Rope { qkv, cos_sin, heads, rows } => {
                with(buffers, qkv, |buffers, qkv| b.rope(qkv, &buffers[cos_sin.0], heads, rows))
            }
            Recorded::StoreKv { qkv, slot_mapping, kv, layer, heads, rows } => {
                let (qkv, slot_mapping) = (&buffers[qkv.0], &indices[slot_mapping.0]);
                b.store_kv(qkv, slot_mapping, &mut stores[kv.0], layer, heads, rows)
            }
            Recorded::PagedAttention {
                qkv,
                kv,
                layer,
                heads,
                cu_seqlens_q,
                context_lens,
                block_tables,
                max_blocks_per_seq,
                out,
                key,
            } => {
                let inputs = StepInputs {
                    input_ids: Vec::new(),
                    cos_sin: Vec::new(),
                    slot_mapping: Vec::new(),
                    cu_seqlens_q: indices[cu_seqlens_q.0].clone(),
                    context_lens: indices[context_lens.0].clone(),
                    block_tables: indices[block_tables.0].clone(),
                    max_blocks_per_seq,
                    logits_indices: Vec::new(),
                };
                with(buffers, out, |buffers, out| {
                    b.paged_attention(&buffers[qkv.0], &stores[kv.0], layer, heads, &inputs, out, key)
                })
            }
            Recorded::SiluAndMul { gate_up, out, intermediate_size, rows } => {
                with(buffers, out, |buffers, out| b.silu_and_mul(&buffers[gate_up.0], out, intermediate_size, rows))
            }
            Recorded::Add { x, y, len } => with(buffers, x, |buffers, x| b.add(x, &buffers[y.0], len)),
            Recorded::GatherRows { x, indices: at, out, width, rows } => {
                with(buffers, out, |buffers, out| b.gather_rows(&buffers[x.0], &indices[at.0], out, width, rows))
            }
            Recorded::Argmax { x, out, width, valid, rows } => {
                b.argmax(&buffers[x.0], &mut indices[out.0], width, valid, rows)
            }
        }
    }
}

fn with(
    buffers: &mut [Vec<f32>],
    out: BufferId,
    run: impl FnOnce(&[Vec<f32>], &mut Vec<f32>) -> Result<()>,
) -> Result<()> {
    let mut taken = std::mem::take(&mut buffers[out.0]);
    let outcome = run(buffers, &mut taken);
    buffers[out.0] = taken;
    outcome
}
