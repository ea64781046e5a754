//! Shared by the cases about K/V stores: storing given rows into slots, and attention over single blocks; and, for K/V
//! in Q8_0, whether the backend supports it.

use crate::op::{Guarded, GuardedIndices};
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{self, Backend, HeadLayout, KvSpec, PAD_SLOT, StepInputs, StepKey};
use qwen_core::error::{Error, Result};

/// Positions of a block for [`attend`], the maximum per sequence.
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

/// The backend's reason, if it does not support block encodings.
pub(crate) fn refusal<B: Backend>(rig: &Rig<'_, B>) -> Result<Option<String>> {
    match rig.b.footprint().kv_bytes(&spec(BOTH, 64)) {
        Ok(_) => Ok(None),
        Err(error @ Error::Unsupported { .. }) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Store rows of q|k|v, one for each slot.
///
/// # Errors
/// What the backend reports.
pub(super) fn store<B: Backend>(
    b: &mut B,
    heads: HeadLayout,
    (kv, layer): (&mut B::Kv, usize),
    slots: &[u32],
    rows: &[f32],
) -> Result<()> {
    let (x, slot_mapping) = (Guarded::new(b, rows)?, GuardedIndices::new(b, slots)?);
    b.store_kv(backend::StoreKv {
        qkv: &x.buffer,
        slot_mapping: &slot_mapping.buffer,
        kv,
        layer,
        heads,
        rows: slots.len(),
    })
}

/// Attend with a row of q|k|v to each block: sequence `i` has the first `context_lens[i]` positions of block `i`.
///
/// # Errors
/// What the backend reports.
pub(super) fn look<B: Backend>(
    b: &mut B,
    heads: HeadLayout,
    (kv, layer): (&B::Kv, usize),
    context_lens: Vec<u32>,
    rows: &[f32],
) -> Result<Vec<f32>> {
    let count = context_lens.len();
    let mut indices = |values: Vec<u32>| Ok::<_, Error>(GuardedIndices::new(b, &values)?.buffer);
    let inputs = StepInputs {
        input_ids: indices(vec![0; count])?,
        slot_mapping: indices(vec![PAD_SLOT; count])?,
        cu_seqlens_q: indices((0..=count as u32).collect())?,
        context_lens: indices(context_lens)?,
        block_tables: indices((0..count as u32).collect())?,
        max_blocks_per_seq: 1,
        logits_indices: indices(vec![])?,
        cos_sin: Guarded::new(b, &vec![0.0; count * heads.head_dim])?.buffer,
    };
    let qkv = Guarded::new(b, rows)?;
    let mut out = Guarded::output(b, count * heads.q_size())?;
    b.paged_attention(backend::PagedAttention {
        qkv: &qkv.buffer,
        kv,
        layer,
        heads,
        inputs: &inputs,
        out: &mut out.buffer,
        key: StepKey {
            num_tokens: count,
            num_seqs: count,
            num_logits: 0,
            max_seqlen_q: 1,
            hidden: false,
            adapters: false,
        },
    })?;
    Ok(out.read(b)?.0)
}

/// Store the rows of q|k|v of each sequence, and attend with each sequence's last one. Returns the output heads of
/// each.
///
/// # Errors
/// What the backend reports.
pub(super) fn attend<B: Backend>(
    b: &mut B,
    heads: HeadLayout,
    encodings: (Encoding, Encoding),
    sequences: &[Vec<Vec<f32>>],
) -> Result<Vec<Vec<f32>>> {
    let mut kv = b.kv(&KvSpec {
        num_blocks: sequences.len(),
        block_size: BLOCK,
        num_key_value_heads: heads.num_key_value_heads,
        ..spec(encodings, heads.head_dim)
    })?;
    let slots: Vec<u32> = sequences
        .iter()
        .enumerate()
        .flat_map(|(sequence, rows)| (0..rows.len()).map(move |position| (sequence * BLOCK + position) as u32))
        .collect();
    let rows: Vec<f32> = sequences.iter().flatten().flatten().copied().collect();
    store(b, heads, (&mut kv, 0), &slots, &rows)?;
    let context_lens = sequences.iter().map(|rows| rows.len() as u32).collect();
    let last: Vec<f32> = sequences.iter().filter_map(|rows| rows.last()).flatten().copied().collect();
    let seen = look(b, heads, (&kv, 0), context_lens, &last)?;
    Ok(seen.chunks_exact(heads.q_size()).map(<[f32]>::to_vec).collect())
}
