//! Attention: for decoding, partitions of the context in parallel, followed by a merge; for prompts, tiles of query
//! rows that process all partitions in order. The bits are the same.

use qwen_core::Result;
use qwen_core::backend::PagedAttention;
use qwen_core::backend::partials::Partials;
use qwen_core::numerics::size;

use crate::executor::{KernelCall, WgpuBackend, words};
use crate::geometry::PARTITION;
use crate::kv::KvTypes;
use crate::ops::store_kv::check_store;
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;

/// Query rows of a tile.
const ROWS: u32 = 8;

/// The kernel for heads of twice `half_dim` channels; with `split` the one that writes partial results.
pub(crate) fn shader(split: bool, types: KvTypes, half_dim: u32) -> Shader {
    types
        .flags(Shader::new("attention").flag_if(split, "SPLIT"))
        .constant("ROWS", ROWS)
        .constant("PARTITION", PARTITION)
        .constant("HALF_DIM", half_dim)
}

/// The kernel that merges partial results.
pub(crate) fn merge_shader(half_dim: u32) -> Shader {
    Shader::new("attention_merge").constant("PARTITION", PARTITION).constant("HALF_DIM", half_dim)
}

pub(crate) fn paged_attention(b: &mut WgpuBackend, op: PagedAttention<'_, WgpuBackend>) -> Result<()> {
    let PagedAttention { qkv, kv, layer, heads, inputs, out, key, .. } = op;
    let (op, store) = ("paged_attention", &kv.0);
    check_store(b, op, store, layer, &heads)?;
    let (tokens, seqs, max_blocks) = (key.num_tokens, key.num_seqs, inputs.max_blocks_per_seq);
    let (cu_seqlens_q, context_lens) = (&inputs.cu_seqlens_q.words, &inputs.context_lens.words);
    b.need(op, "qkv", &qkv.0, &[tokens, heads.qkv_size()])?;
    b.need(op, "out", &out.0, &[tokens, heads.q_size()])?;
    b.need(op, "cu_seqlens_q", cu_seqlens_q, &[seqs.saturating_add(1)])?;
    b.need(op, "context_lens", context_lens, &[seqs])?;
    b.need(op, "block_tables", &inputs.block_tables.words, &[seqs, max_blocks])?;
    let block_size = store.spec.block_size;
    // Positions that a block table has room for; the kernels clamp contexts to it.
    let max_context = size::bytes(1, &[max_blocks, block_size]);
    if max_context > i32::MAX as u64 {
        return Err(b.error(op, format!("{max_blocks} blocks of {block_size} positions exceed 31 bits")));
    }

    let max_binding = b.gpu.device.limits.max_storage_buffer_binding_size;
    let partials = Partials::new(heads, max_blocks, block_size, PARTITION as usize, context_lens.len, max_binding);
    let token_words = partials.bytes_per_token / 4;
    let partial_results = match partials.split(key) {
        true => {
            let [needed, most] = [tokens, partials.num_tokens].map(|tokens| tokens as u64 * token_words);
            Some(b.workspace.partials.array(&b.gpu.device, "partial results of attention", needed, most)?)
        }
        false => None,
    };
    let split = partial_results.is_some();
    let partial_words = 0..tokens * token_words as usize;

    let half_dim = heads.head_dim as u32 / 2;
    let shader = shader(split, store.types(layer), half_dim);
    let heads_per_kv = heads.num_attention_heads / heads.num_key_value_heads.max(1);
    let rows = ROWS as usize;
    for piece in b.pieces(op, tokens, &[heads.qkv_size(), heads.q_size()])? {
        let attended = out.0.array.write(words(&piece, heads.q_size()));
        let tiles = match split {
            true => piece.len() * heads_per_kv.div_ceil(rows),
            false => (piece.len() * heads_per_kv).div_ceil(rows),
        };
        for slab in &store.layers[layer] {
            let mut params = b.params(
                op,
                &[
                    piece.len(),
                    seqs,
                    heads.num_attention_heads,
                    heads.num_key_value_heads,
                    block_size,
                    max_blocks,
                    store.num_slots,
                    slab.first_head,
                ],
            )?;
            params.push((1.0 / (heads.head_dim as f32).sqrt()).to_bits());
            params.extend(b.params(op, &[partials.num_partitions, piece.start])?);
            let bindings = [
                qkv.0.array.read(words(&piece, heads.qkv_size())),
                cu_seqlens_q.array.read(0..seqs + 1),
                context_lens.array.read(0..seqs),
                inputs.block_tables.words.array.read(0..seqs * max_blocks),
                slab.keys.read_all(),
                slab.values.read_all(),
                partial_results.as_ref().map_or(attended, |partials| partials.write(partial_words.clone())),
            ];
            let longest = inputs.context_lens.largest.clone();
            let products = 2 * piece.len() * heads_per_kv * slab.heads * heads.head_dim;
            let cost = Cost {
                multiply_adds: (products as u64).saturating_mul(max_context.min(longest.get().into())),
                kv: Some(((tiles * slab.heads) as u64 * store.position_bytes(layer), longest.clone())),
                ..Cost::default()
            };
            let grid = match (Grid::fixed([tiles, slab.heads, 1]), split) {
                (Grid::Fixed([x, y, _]), true) => {
                    let most = u32::try_from(partials.num_partitions).unwrap_or(u32::MAX);
                    Grid::Partitions { x, y, longest, partition: PARTITION, most }
                }
                (fixed, _) => fixed,
            };
            b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost })?;
        }
        if let Some(partial_results) = &partial_results {
            let bindings = [
                cu_seqlens_q.array.read(0..seqs + 1),
                context_lens.array.read(0..seqs),
                partial_results.read(partial_words.clone()),
                attended,
            ];
            let params = b.params(op, &[seqs, heads.num_attention_heads, partials.num_partitions, piece.start])?;
            let grid = Grid::fixed([heads.num_attention_heads, piece.len(), 1]);
            let (shader, cost) = (merge_shader(half_dim), Cost::default());
            b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost })?;
        }
    }
    Ok(())
}
