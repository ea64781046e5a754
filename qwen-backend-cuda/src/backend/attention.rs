//! Attention: spans side by side with a merge for decoding, tiles by tensor cores for prompts, and one kernel that
//! takes all spans in order for everything else.

use qwen_core::Result;
use qwen_core::backend::{HeadLayout, StepInputs, StepKey};

use super::{CudaBackend, Numbers};
use crate::driver::Array;
use crate::geometry::*;
use crate::gpu::Args;
use crate::kernel::{Element, Kernel};
use crate::kv::Store;
use crate::params::{Address, Attention};

/// Bytes of records at most. What would take more is not split: so many sequences fill a card without.
const MOST_RECORD_BYTES: usize = 256 << 20;

/// Blocks that a multiprocessor is given to share a row's spans.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;

/// Widths of heads that have kernels.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
const TILE_WIDTHS: [usize; 2] = [64, 128];

/// Spans of the longest sequence.
pub(crate) fn span_count(max_blocks_per_seq: usize, block_size: usize) -> usize {
    (max_blocks_per_seq * block_size).div_ceil(ATTENTION_SPAN)
}

/// Bytes of a token's records: for each head and span the sums, the largest score and the total weight.
pub(crate) fn token_records(num_attention_heads: usize, max_spans: usize, head_dim: usize) -> usize {
    4 * num_attention_heads * max_spans * (head_dim + 2)
}

/// Sequences whose records are held, of so many that a step may have.
pub(crate) fn records_held(max_num_seqs: usize, token_bytes: usize) -> usize {
    max_num_seqs.min(MOST_RECORD_BYTES / token_bytes.max(1))
}

impl CudaBackend {
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
        let held = &store.layers[layer];
        let max_spans = span_count(inputs.max_blocks_per_seq, store.spec.block_size);
        let token_bytes = token_records(heads.num_attention_heads, max_spans, heads.head_dim);
        let tokens = key.num_tokens;
        // Held for the largest step, so that recorded steps share them.
        let seqs_held = records_held(inputs.context_lens.0.len, token_bytes);
        let split = key.max_seqlen_q <= 1 && max_spans > 1 && tokens <= seqs_held;
        let records = if split { Some(self.records(seqs_held * token_bytes)?) } else { None };

        let mut args = Args::new(&self.gpu, op);
        let params = Attention {
            qkv: args.take("qkv", &qkv.array, 4 * tokens * heads.qkv_size())?,
            keys: args.take("keys", &held.keys, held.key_element.bytes(store.layer_values()))?,
            values: args.take("values", &held.values, held.value_element.bytes(store.layer_values()))?,
            cu_seqlens_q: args.take("cu_seqlens_q", &inputs.cu_seqlens_q.0.array, 4 * (key.num_seqs + 1))?,
            context_lens: args.take("context_lens", &inputs.context_lens.0.array, 4 * key.num_seqs)?,
            block_tables: {
                let bytes = 4 * key.num_seqs * inputs.max_blocks_per_seq;
                args.take("block_tables", &inputs.block_tables.0.array, bytes)?
            },
            out: args.take("out", &out.array, 4 * tokens * heads.q_size())?,
            records: match &records {
                Some(records) => args.take("records", records, tokens * token_bytes)?,
                None => Address::NULL,
            },
            num_tokens: self.number(op, tokens)?,
            num_seqs: self.number(op, key.num_seqs)?,
            num_attention_heads: self.number(op, heads.num_attention_heads)?,
            num_key_value_heads: self.number(op, heads.num_key_value_heads)?,
            head_dim: self.number(op, heads.head_dim)?,
            block_size: self.number(op, store.spec.block_size)?,
            max_blocks_per_seq: self.number(op, inputs.max_blocks_per_seq)?,
            num_slots: self.number(op, store.num_slots())?,
            max_spans: self.number(op, max_spans)?,
            key_encoding: held.key_element.code(),
            value_encoding: held.value_element.code(),
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        };
        let heads_per_kv = heads.num_attention_heads / heads.num_key_value_heads;
        let width = |widths: &[usize]| widths.iter().find(|width| heads.head_dim <= **width).map(|width| *width as u32);
        let tiled = key.max_seqlen_q > 1
            && self.precision == qwen_core::Precision::Fast
            && self.card().has_tensor_cores()
            && held.value_element == Element::F16
            && TILE_WIDTHS.contains(&heads.head_dim);
        let (kernel, grid) = if tiled {
            let tiles = tokens.div_ceil(ATTENTION_TILE) + key.num_seqs;
            (Kernel::AttentionTile(held.key_element, heads.head_dim as u32), [tiles, heads.num_attention_heads, 1])
        } else {
            let Some(width) = width(&WIDTHS) else {
                return Err(self.misfit(op, format!("heads of {} values", heads.head_dim)));
            };
            let kernel = Kernel::Attention(held.key_element, held.value_element, width);
            let grid = match split {
                true => {
                    let tiles = tokens * heads_per_kv.div_ceil(ATTENTION_ROWS);
                    let blocks = tiles * heads.num_key_value_heads;
                    let wanted = BLOCKS_PER_MULTIPROCESSOR * self.card().multiprocessors as usize;
                    let splits = wanted.div_ceil(blocks.max(1)).clamp(1, max_spans.min(ATTENTION_SPLITS));
                    [tiles, heads.num_key_value_heads, splits]
                }
                false => [(tokens * heads_per_kv).div_ceil(ATTENTION_ROWS), heads.num_key_value_heads, 1],
            };
            (kernel, grid)
        };
        let work = args.launch(kernel, grid, &params)?;
        let merge = match &records {
            Some(records) => {
                let mut args = Args::new(&self.gpu, op);
                let params = Attention {
                    qkv: Address::NULL,
                    keys: Address::NULL,
                    values: Address::NULL,
                    block_tables: Address::NULL,
                    cu_seqlens_q: args.take("cu_seqlens_q", &inputs.cu_seqlens_q.0.array, 4 * (key.num_seqs + 1))?,
                    context_lens: args.take("context_lens", &inputs.context_lens.0.array, 4 * key.num_seqs)?,
                    records: args.take("records", records, tokens * token_bytes)?,
                    out: args.take("out", &out.array, 4 * tokens * heads.q_size())?,
                    ..params
                };
                args.launch(Kernel::AttentionMerge, [heads.num_attention_heads, tokens, 1], &params)?
            }
            None => None,
        };
        self.queue(work)?;
        self.queue(merge)
    }

    /// The records of attention's spans: at least so many bytes.
    fn records(&mut self, bytes: usize) -> Result<Array> {
        if let Some(records) = self.records.as_ref().filter(|records| records.bytes >= bytes) {
            return Ok(records.clone());
        }
        let records = self.gpu.unset_array("records of attention", bytes)?;
        self.records = Some(records.clone());
        Ok(records)
    }
}
