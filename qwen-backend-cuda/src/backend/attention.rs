//! `paged_attention`: for decoding, partitions of the positions in parallel, followed by a merge; for prompts, tiles on
//! tensor cores; for everything else, one kernel that processes all partitions in order.

use qwen_core::backend::partials::Partials;
use qwen_core::backend::{HeadLayout, PagedAttention, StepKey};
use qwen_core::{Precision, Result};

use super::CudaBackend;
use crate::geometry::*;
use crate::kernel::{Element, Kernel};
use crate::kv::{KvType, Layer, Store};
use crate::launch::Args;
use crate::params::{Address, Attention};
use crate::sizes::kernel_size;
use crate::workspace;

/// Blocks per multiprocessor that the kernel is compiled for: the partitions of a step are split among them.
const BLOCKS_PER_MULTIPROCESSOR: usize = 3;

/// Widths of heads that have kernels.
const WIDTHS: [u32; 4] = [32, 64, 128, 256];
const TILE_WIDTHS: [usize; 2] = [64, 128];

/// How the attention of a step is launched.
struct Strategy {
    kernel: Kernel,
    grid: [usize; 3],
    /// Whether all rows of a block belong to one token.
    by_token: bool,
    /// Whether blocks split the partitions of a row, and a merge follows.
    split: bool,
}

impl CudaBackend {
    pub(super) fn queue_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key, .. } = op;
        let (name, store) = ("paged_attention", &kv.0);
        self.check_store(name, store, layer, &heads)?;
        self.check_positions(name, store, inputs.max_blocks_per_seq, key)?;
        let held = &store.layers[layer];
        // Sized for the largest step, so that recorded steps share one array.
        let (max_blocks, max_seqs) = (inputs.max_blocks_per_seq, inputs.context_lens.0.len);
        let partials = workspace::partials(heads, max_blocks, store.spec.block_size, max_seqs);
        let strategy = self.choose_attention(name, held, &heads, key, &partials)?;
        let workspace = match strategy.split {
            true => Some(self.workspace.partials(&mut self.gpu, &partials)?),
            false => None,
        };
        let tokens = key.num_tokens;
        let partial_bytes = [4, tokens, heads.num_attention_heads, partials.num_partitions, heads.head_dim + 2];

        let mut args = Args::new(&self.gpu, name);
        let mut params = Attention {
            qkv: args.take("qkv", &qkv.0.array, &[4, tokens, heads.qkv_size()])?,
            keys: args.take("keys", &held.keys, &store.array_bytes(held.key_type))?,
            values: args.take("values", &held.values, &store.array_bytes(held.value_type))?,
            cu_seqlens_q: args.take("cu_seqlens_q", &inputs.cu_seqlens_q.0.array, &[4, key.num_seqs + 1])?,
            context_lens: args.take("context_lens", &inputs.context_lens.0.array, &[4, key.num_seqs])?,
            block_tables: args.take("block_tables", &inputs.block_tables.0.array, &[4, key.num_seqs, max_blocks])?,
            out: args.take("out", &out.0.array, &[4, tokens, heads.q_size()])?,
            partials: Address::NULL,
            num_tokens: args.size(tokens)?,
            num_seqs: args.size(key.num_seqs)?,
            num_attention_heads: args.size(heads.num_attention_heads)?,
            num_key_value_heads: args.size(heads.num_key_value_heads)?,
            head_dim: args.size(heads.head_dim)?,
            block_size: args.size(store.spec.block_size)?,
            max_blocks_per_seq: args.size(max_blocks)?,
            num_slots: store.num_slots(),
            max_partitions: args.size(partials.num_partitions)?,
            by_token: u32::from(strategy.by_token),
            key_encoding: held.key_type.code(),
            value_encoding: held.value_type.code(),
            unused: 0,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        };
        if let Some(workspace) = &workspace {
            params.partials = args.take("partials", workspace, &partial_bytes)?;
        }
        let command = args.launch(strategy.kernel, strategy.grid, &params)?;
        self.queue(command)?;
        let Some(workspace) = workspace else { return Ok(()) };

        let mut args = Args::new(&self.gpu, name);
        let params = Attention {
            qkv: Address::NULL,
            keys: Address::NULL,
            values: Address::NULL,
            block_tables: Address::NULL,
            cu_seqlens_q: args.take("cu_seqlens_q", &inputs.cu_seqlens_q.0.array, &[4, key.num_seqs + 1])?,
            context_lens: args.take("context_lens", &inputs.context_lens.0.array, &[4, key.num_seqs])?,
            partials: args.take("partials", &workspace, &partial_bytes)?,
            out: args.take("out", &out.0.array, &[4, tokens, heads.q_size()])?,
            ..params
        };
        let merge = args.launch(Kernel::AttentionMerge, [heads.num_attention_heads, tokens, 1], &params)?;
        self.queue(merge)
    }

    /// Check what kernels rely on: that positions in a block table do not overflow, and that there is a slot to clamp
    /// to.
    fn check_positions(&self, op: &str, store: &Store, max_blocks_per_seq: usize, key: StepKey) -> Result<()> {
        let block_size = store.spec.block_size;
        let positions = max_blocks_per_seq.checked_mul(block_size).and_then(kernel_size);
        if positions.is_none() || key.num_seqs.checked_add(1).is_none() {
            let reason = format!("{max_blocks_per_seq} blocks of {block_size} positions, {} sequences", key.num_seqs);
            return Err(self.mismatch(op, format!("{reason}: kernels count to {}", i32::MAX)));
        }
        match store.num_slots() == 0 && key.num_tokens > 0 {
            true => Err(self.mismatch(op, "the K/V store has no blocks")),
            false => Ok(()),
        }
    }

    /// The kernel and its grid.
    fn choose_attention(
        &self,
        op: &str,
        held: &Layer,
        heads: &HeadLayout,
        key: StepKey,
        partials: &Partials,
    ) -> Result<Strategy> {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
        let (tokens, single) = (key.num_tokens, key.max_seqlen_q <= 1);
        let tiled = !single
            && self.precision == Precision::Fast
            && self.properties().has_tensor_cores()
            && held.value_type != KvType::F32
            && TILE_WIDTHS.contains(&head_dim);
        if tiled {
            // Keys in blocks become f32.
            let keys = if held.key_type == KvType::F16 { Element::F16 } else { Element::F32 };
            let kernel = Kernel::AttentionTile(keys, head_dim as u32);
            let grid = [tokens.div_ceil(ATTENTION_TILE).saturating_add(key.num_seqs), num_attention_heads, 1];
            return Ok(Strategy { kernel, grid, by_token: false, split: false });
        }
        let Some(width) = WIDTHS.into_iter().find(|width| head_dim <= *width as usize) else {
            return Err(self.mismatch(op, format!("heads of {head_dim} values have no kernel")));
        };
        let kernel = match (held.key_type, held.value_type) {
            (KvType::F32, KvType::F32) => Kernel::Attention(Element::F32, Element::F32, width),
            (KvType::F32, KvType::F16) => Kernel::Attention(Element::F32, Element::F16, width),
            (KvType::F16, KvType::F16) => Kernel::Attention(Element::F16, Element::F16, width),
            _ => Kernel::AttentionAny(width.max(64)),
        };
        let heads_per_kv = num_attention_heads / num_key_value_heads;
        if !single {
            // The kernel counts the rows of all blocks in 32 bits.
            let rows = tokens.checked_mul(heads_per_kv).filter(|rows| kernel_size(*rows).is_some());
            let Some(rows) = rows else {
                return Err(self.mismatch(op, format!("{tokens} tokens of {heads_per_kv} heads for each K/V head")));
            };
            let grid = [rows.div_ceil(ATTENTION_ROWS), num_key_value_heads, 1];
            return Ok(Strategy { kernel, grid, by_token: false, split: false });
        }
        let tiles = tokens.saturating_mul(heads_per_kv.div_ceil(ATTENTION_ROWS));
        let split = partials.split(key);
        let splits = match split {
            true => {
                let wanted = BLOCKS_PER_MULTIPROCESSOR * self.properties().multiprocessors as usize;
                let most = partials.num_partitions.min(ATTENTION_SPLITS);
                wanted.div_ceil(tiles.saturating_mul(num_key_value_heads).max(1)).clamp(1, most)
            }
            false => 1,
        };
        Ok(Strategy { kernel, grid: [tiles, num_key_value_heads, splits], by_token: true, split })
    }
}
