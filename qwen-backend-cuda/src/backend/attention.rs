//! Attention: spans side by side with a merge for decoding, tiles by tensor cores for prompts, and one kernel that
//! takes all spans in order for everything else.

use qwen_core::backend::{HeadLayout, StepInputs, StepKey};
use qwen_core::{Precision, Result};

use super::{CudaBackend, Numbers};
use crate::driver::Array;
use crate::geometry::*;
use crate::gpu::Args;
use crate::kernel::{Element, Kernel};
use crate::kv::{Layer, Store};
use crate::params::{Address, Attention};
use crate::records::{records_held, span_count, token_records};

/// Blocks that a multiprocessor has at once, as the kernel is compiled: as many share the spans of a step.
const BLOCKS_PER_MULTIPROCESSOR: usize = 3;

/// Widths of heads that have kernels.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
const TILE_WIDTHS: [usize; 2] = [64, 128];

/// How a step is attended.
struct Way {
    kernel: Kernel,
    grid: [usize; 3],
    /// Whether the rows of a block are of one token.
    by_token: bool,
    /// Whether blocks share the spans of a row, and a merge follows.
    split: bool,
}

impl CudaBackend {
    /// The kernel and its grid. `max_spans` is of the longest sequence, `seqs_held` have records.
    fn way(
        &self,
        op: &str,
        held: &Layer,
        heads: &HeadLayout,
        key: StepKey,
        max_spans: usize,
        seqs_held: usize,
    ) -> Result<Way> {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
        let (tokens, single) = (key.num_tokens, key.max_seqlen_q <= 1);
        let tiled = !single
            && self.precision == Precision::Fast
            && self.card().has_tensor_cores()
            && held.value_element == Element::F16
            && TILE_WIDTHS.contains(&head_dim);
        if tiled {
            let kernel = Kernel::AttentionTile(held.key_element, head_dim as u32);
            let grid = [tokens.div_ceil(ATTENTION_TILE) + key.num_seqs, num_attention_heads, 1];
            return Ok(Way { kernel, grid, by_token: false, split: false });
        }
        let Some(width) = WIDTHS.into_iter().find(|width| head_dim <= *width) else {
            return Err(self.misfit(op, format!("heads of {head_dim} values")));
        };
        if (held.key_element, held.value_element) == (Element::F16, Element::F32) {
            return Err(self.misfit(op, "keys in f16 with values in f32 have no kernel".into()));
        }
        let kernel = Kernel::Attention(held.key_element, held.value_element, width as u32);
        let heads_per_kv = num_attention_heads / num_key_value_heads;
        if !single {
            let grid = [(tokens * heads_per_kv).div_ceil(ATTENTION_ROWS), num_key_value_heads, 1];
            return Ok(Way { kernel, grid, by_token: false, split: false });
        }
        let tiles = tokens * heads_per_kv.div_ceil(ATTENTION_ROWS);
        let split = max_spans > 1 && tokens <= seqs_held;
        let splits = match split {
            true => {
                let wanted = BLOCKS_PER_MULTIPROCESSOR * self.card().multiprocessors as usize;
                wanted.div_ceil((tiles * num_key_value_heads).max(1)).clamp(1, max_spans.min(ATTENTION_SPLITS))
            }
            false => 1,
        };
        Ok(Way { kernel, grid: [tiles, num_key_value_heads, splits], by_token: true, split })
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
        let held = &store.layers[layer];
        let max_spans = span_count(inputs.max_blocks_per_seq, store.spec.block_size);
        let token_bytes = token_records(heads.num_attention_heads, max_spans, heads.head_dim);
        // Held for the largest step, so that recorded steps share them.
        let seqs_held = records_held(inputs.context_lens.0.len, token_bytes);
        let way = self.way(op, held, &heads, key, max_spans, seqs_held)?;
        let records = if way.split { Some(self.records(seqs_held * token_bytes)?) } else { None };

        let tokens = key.num_tokens;
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
            by_token: u32::from(way.by_token),
            unused: 0,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        };
        let work = args.launch(way.kernel, way.grid, &params)?;
        self.queue(work)?;
        let Some(records) = records else { return Ok(()) };

        let mut args = Args::new(&self.gpu, op);
        let params = Attention {
            qkv: Address::NULL,
            keys: Address::NULL,
            values: Address::NULL,
            block_tables: Address::NULL,
            cu_seqlens_q: args.take("cu_seqlens_q", &inputs.cu_seqlens_q.0.array, 4 * (key.num_seqs + 1))?,
            context_lens: args.take("context_lens", &inputs.context_lens.0.array, 4 * key.num_seqs)?,
            records: args.take("records", &records, tokens * token_bytes)?,
            out: args.take("out", &out.array, 4 * tokens * heads.q_size())?,
            ..params
        };
        let merge = args.launch(Kernel::AttentionMerge, [heads.num_attention_heads, tokens, 1], &params)?;
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
