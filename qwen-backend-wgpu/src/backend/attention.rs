//! Attention: spans side by side with a merge for decoding, tiles that take all spans in order for prompts.

use std::sync::atomic::Ordering;

use qwen_core::Result;
use qwen_core::backend::{HeadLayout, StepInputs, StepKey};

use super::{Numbers, WgpuBackend, words};
use crate::gpu::Array;
use crate::kv::{KvTypes, Store};
use crate::record::{Grid, Work};
use crate::shader::Shader;

/// Query rows of a tile.
const ROWS: u32 = 8;
/// Positions of a span.
pub(crate) const SPAN: u32 = 128;

/// The kernel for heads of twice `half_dim` channels; with `split` one that leaves records of spans.
pub(crate) fn shader(split: bool, types: KvTypes, half_dim: u32) -> Shader {
    types
        .flags(Shader::new("attention").flag_if(split, "SPLIT"))
        .constant("ROWS", ROWS)
        .constant("SPAN", SPAN)
        .constant("HALF_DIM", half_dim)
}

/// The kernel that puts records together.
pub(crate) fn merge_shader(half_dim: u32) -> Shader {
    Shader::new("attention_merge").constant("SPAN", SPAN).constant("HALF_DIM", half_dim)
}

impl WgpuBackend {
    /// The records of attention's spans: at least so many numbers.
    fn records(&mut self, len: usize) -> Result<Array> {
        if let Some((array, held)) = &self.records
            && *held >= len
        {
            return Ok(array.clone());
        }
        let array = self.gpu.array("attention records", len)?;
        self.records = Some((array.clone(), len));
        Ok(array)
    }

    #[allow(clippy::too_many_arguments, reason = "the arguments of the operation")]
    pub(super) fn attention(
        &mut self,
        qkv: &Numbers,
        store: &Store,
        layer: usize,
        heads: HeadLayout,
        inputs: &StepInputs<Self>,
        out: &Numbers,
        key: StepKey,
    ) -> Result<()> {
        let op = "paged_attention";
        self.check_store(op, store, layer, &heads)?;
        self.need(op, "qkv", qkv, key.num_tokens * heads.qkv_size())?;
        self.need(op, "out", out, key.num_tokens * heads.q_size())?;
        self.need(op, "cu_seqlens_q", &inputs.cu_seqlens_q.numbers, key.num_seqs + 1)?;
        self.need(op, "context_lens", &inputs.context_lens.numbers, key.num_seqs)?;
        self.need(op, "block_tables", &inputs.block_tables.numbers, key.num_seqs * inputs.max_blocks_per_seq)?;
        let half_dim = heads.head_dim as u32 / 2;
        let max_spans = (inputs.max_blocks_per_seq * store.spec.block_size).div_ceil(SPAN as usize);
        let record = heads.num_attention_heads * max_spans * (heads.head_dim + 2);
        let most = self.gpu.limits.max_storage_buffer_binding_size as usize / 4;
        // A token for each sequence and more than one span: the spans run side by side.
        let split = key.max_seqlen_q <= 1 && max_spans > 1 && key.num_tokens * record <= most;
        // Made once, for the largest step: recorded steps would keep smaller ones alive beside it.
        let seqs_held = inputs.context_lens.numbers.len.min(most / record.max(1)).max(key.num_tokens);
        let records = if split { Some(self.records(seqs_held * record)?) } else { None };
        let shader = shader(split, store.types(layer), half_dim);
        let heads_per_kv = heads.num_attention_heads / heads.num_key_value_heads.max(1);
        let rows = ROWS as usize;
        let seqs = key.num_seqs;
        let (cu_seqlens_q, context_lens) = (&inputs.cu_seqlens_q.numbers, &inputs.context_lens.numbers);
        for piece in self.pieces(op, key.num_tokens, &[heads.qkv_size(), heads.q_size()])? {
            let attended = out.array.write(words(&piece, heads.q_size()));
            let tiles = match split {
                true => piece.len() * heads_per_kv.div_ceil(rows),
                false => (piece.len() * heads_per_kv).div_ceil(rows),
            };
            for slab in &store.layers[layer] {
                let params = [
                    piece.len() as u32,
                    seqs as u32,
                    heads.num_attention_heads as u32,
                    heads.num_key_value_heads as u32,
                    store.spec.block_size as u32,
                    inputs.max_blocks_per_seq as u32,
                    store.num_slots() as u32,
                    slab.first_head as u32,
                    (1.0 / (heads.head_dim as f32).sqrt()).to_bits(),
                    max_spans as u32,
                    piece.start as u32,
                ];
                let bindings = [
                    qkv.array.read(words(&piece, heads.qkv_size())),
                    cu_seqlens_q.array.read(0..seqs + 1),
                    context_lens.array.read(0..seqs),
                    inputs.block_tables.numbers.array.read(0..seqs * inputs.max_blocks_per_seq),
                    slab.keys.read_all(),
                    slab.values.read_all(),
                    records.as_ref().map_or(attended, |records| records.write(0..key.num_tokens * record)),
                ];
                let (x, y) = (tiles as u32, slab.heads as u32);
                let longest = inputs.context_lens.largest.clone();
                let products = 2 * piece.len() * heads_per_kv * slab.heads * heads.head_dim;
                let work = Work {
                    multiply_adds: products as u64 * u64::from(longest.load(Ordering::Relaxed)),
                    kv: Some(((tiles * slab.heads) as u64 * store.position_bytes(layer), longest.clone())),
                    ..Work::default()
                };
                let grid = match split {
                    true => Grid::Spans { x, y, longest, span: SPAN, most: max_spans as u32 },
                    false => Grid::Fixed([x, y, 1]),
                };
                self.queue(op, &shader, &bindings, &params, grid, work)?;
            }
            if let Some(records) = &records {
                let bindings = [
                    cu_seqlens_q.array.read(0..seqs + 1),
                    context_lens.array.read(0..seqs),
                    records.read(0..key.num_tokens * record),
                    attended,
                ];
                let params = [seqs, heads.num_attention_heads, max_spans, piece.start].map(|param| param as u32);
                let grid = Grid::Fixed([heads.num_attention_heads as u32, piece.len() as u32, 1]);
                self.queue(op, &merge_shader(half_dim), &bindings, &params, grid, Work::default())?;
            }
        }
        Ok(())
    }
}
