//! The operations that a [`super::Recording`] records, and running them on the objects behind their handles.

use super::{BufferId, Device, IndicesId, KvId, WeightId};
use qwen_core::backend::{self, Backend, HeadLayout, StepInputs, StepKey};
use qwen_core::error::Result;

/// An operation with its handles and its constants: all that a device may keep.
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
    AddRows {
        x: BufferId,
        indices: IndicesId,
        scale: f32,
        out: BufferId,
        out_rows: usize,
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
    /// Run an operation on the reference. The output is moved out of its slot meanwhile.
    pub(super) fn run(&mut self, op: &Recorded) -> Result<()> {
        let Device { reference: b, buffers, indices, weights, stores } = self;
        match *op {
            Recorded::Embed { ids, table, out, rows } => b.embed(backend::Embed {
                ids: &indices[ids.0],
                table: &weights[table.0],
                out: &mut buffers[out.0],
                rows,
            }),
            Recorded::Linear { x, w, bias, out, rows } => with(buffers, out, |buffers, out| {
                b.linear(backend::Linear {
                    x: &buffers[x.0],
                    w: &weights[w.0],
                    bias: bias.map(|bias| &buffers[bias.0]),
                    out,
                    rows,
                })
            }),
            Recorded::RmsNorm { x, weight, eps, out, hidden_size, rows } => with(buffers, out, |buffers, out| {
                b.rms_norm(backend::RmsNorm {
                    x: &buffers[x.0],
                    weight: &buffers[weight.0],
                    eps,
                    out,
                    hidden_size,
                    rows,
                })
            }),
            Recorded::Rope { qkv, cos_sin, heads, rows } => with(buffers, qkv, |buffers, qkv| {
                b.rope(backend::Rope { qkv, cos_sin: &buffers[cos_sin.0], heads, rows })
            }),
            Recorded::StoreKv { qkv, slot_mapping, kv, layer, heads, rows } => {
                let (qkv, slot_mapping) = (&buffers[qkv.0], &indices[slot_mapping.0]);
                b.store_kv(backend::StoreKv { qkv, slot_mapping, kv: &mut stores[kv.0], layer, heads, rows })
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
                    b.paged_attention(backend::PagedAttention {
                        qkv: &buffers[qkv.0],
                        kv: &stores[kv.0],
                        layer,
                        heads,
                        inputs: &inputs,
                        out,
                        key,
                    })
                })
            }
            Recorded::SiluAndMul { gate_up, out, intermediate_size, rows } => with(buffers, out, |buffers, out| {
                b.silu_and_mul(backend::SiluAndMul { gate_up: &buffers[gate_up.0], out, intermediate_size, rows })
            }),
            Recorded::Add { x, y, len } => {
                with(buffers, x, |buffers, x| b.add(backend::Add { x, y: &buffers[y.0], len }))
            }
            Recorded::GatherRows { x, indices: at, out, width, rows } => with(buffers, out, |buffers, out| {
                b.gather_rows(backend::GatherRows { x: &buffers[x.0], indices: &indices[at.0], out, width, rows })
            }),
            Recorded::AddRows { x, indices: to, scale, out, out_rows, width, rows } => {
                with(buffers, out, |buffers, out| {
                    let (x, indices) = (&buffers[x.0], &indices[to.0]);
                    b.add_rows(backend::AddRows { x, indices, scale, out, out_rows, width, rows })
                })
            }
            Recorded::Argmax { x, out, width, valid, rows } => {
                b.argmax(backend::Argmax { x: &buffers[x.0], out: &mut indices[out.0], width, valid, rows })
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
