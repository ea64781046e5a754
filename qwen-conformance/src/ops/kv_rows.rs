//! What the cases about K/V in blocks share: whether the backend stores them, and attention over rows that a case gives, in
//! a store of one layer with a sequence of at most [`BLOCK`] positions in each block.

use crate::op::{Guarded, GuardedIndices};
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{self, Backend, HeadLayout, KvSpec, PAD_SLOT, StepInputs, StepKey};
use qwen_core::error::{Error, Result};

/// Positions of a block.
const BLOCK: usize = 32;

/// Keys and values in blocks.
pub(crate) const BOTH: (Encoding, Encoding) = (Encoding::Q8_0, Encoding::Q8_0);

/// A store of one layer with heads of `head_dim` values.
pub(super) fn spec((key, value): (Encoding, Encoding), head_dim: usize) -> KvSpec {
    KvSpec {
        key_encodings: vec![key],
        value_encoding: value,
        num_blocks: 1,
        block_size: 16,
        num_key_value_heads: 1,
        head_dim,
    }
}

/// Why the backend stores no blocks, if it says so.
pub(crate) fn refusal<B: Backend>(rig: &Rig<'_, B>) -> Result<Option<String>> {
    match rig.b.footprint().kv_bytes(&spec(BOTH, 64)) {
        Ok(_) => Ok(None),
        Err(error @ Error::Unsupported { .. }) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Store the rows of q|k|v of each sequence, and attend with each sequence's last one. The heads that each gets.
///
/// # Errors
/// What the backend reports.
pub(super) fn attend<B: Backend>(
    b: &mut B,
    heads: HeadLayout,
    (key, value): (Encoding, Encoding),
    sequences: &[Vec<Vec<f32>>],
) -> Result<Vec<Vec<f32>>> {
    let count = sequences.len();
    let mut kv = b.kv(&KvSpec {
        key_encodings: vec![key],
        value_encoding: value,
        num_blocks: count,
        block_size: BLOCK,
        num_key_value_heads: heads.num_key_value_heads,
        head_dim: heads.head_dim,
    })?;
    let slots: Vec<u32> = sequences
        .iter()
        .enumerate()
        .flat_map(|(sequence, rows)| (0..rows.len()).map(move |position| (sequence * BLOCK + position) as u32))
        .collect();
    let rows: Vec<f32> = sequences.iter().flatten().flatten().copied().collect();
    let (x, slot_mapping) = (Guarded::new(b, &rows)?, GuardedIndices::new(b, &slots)?);
    b.store_kv(backend::StoreKv {
        qkv: &x.buffer,
        slot_mapping: &slot_mapping.buffer,
        kv: &mut kv,
        layer: 0,
        heads,
        rows: slots.len(),
    })?;
    let mut indices = |values: Vec<u32>| Ok::<_, qwen_core::Error>(GuardedIndices::new(b, &values)?.buffer);
    let inputs = StepInputs {
        input_ids: indices(vec![0; count])?,
        slot_mapping: indices(vec![PAD_SLOT; count])?,
        cu_seqlens_q: indices((0..=count as u32).collect())?,
        context_lens: indices(sequences.iter().map(|rows| rows.len() as u32).collect())?,
        block_tables: indices((0..count as u32).collect())?,
        max_blocks_per_seq: 1,
        logits_indices: indices(vec![])?,
        cos_sin: Guarded::new(b, &vec![0.0; count * heads.head_dim])?.buffer,
    };
    let last: Vec<f32> = sequences.iter().filter_map(|rows| rows.last()).flatten().copied().collect();
    let qkv = Guarded::new(b, &last)?;
    let mut out = Guarded::output(b, count * heads.q_size())?;
    b.paged_attention(backend::PagedAttention {
        qkv: &qkv.buffer,
        kv: &kv,
        layer: 0,
        heads,
        inputs: &inputs,
        out: &mut out.buffer,
        key: StepKey { num_tokens: count, num_seqs: count, num_logits: 0, max_seqlen_q: 1 },
    })?;
    Ok(out.read(b)?.0.chunks_exact(heads.q_size()).map(<[f32]>::to_vec).collect())
}
