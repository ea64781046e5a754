//! How kernels divide their work, as far as other code has to know: the sizes of shared memory areas. Integers only, no
//! device.

use qwen_core::backend::Limits;
use qwen_core::backend::ModelShape;
use qwen_core::backend::partials::Partials;
use qwen_core::numerics::size;

use crate::runtime::array::bytes_of;

/// Positions of a partition of attention.
pub(crate) const PARTITION: u32 = 128;

/// From this number of rows on, [`qwen_core::Precision::Fast`] multiplies by tiles.
pub(crate) const TILE_FROM: usize = 9;

/// Words of a row of `cols` activations as f16, padded to a multiple of eight values.
pub(crate) fn f16_row_words(cols: usize) -> usize {
    cols.div_ceil(8).saturating_mul(4)
}

/// Words of a row of `cols` activations as signed bytes: for each 32 of them eight words, and four with their scale.
pub(crate) fn signed_row_words(cols: usize) -> usize {
    (cols / 32).saturating_mul(12)
}

/// The memory that the kernels of a step need in addition to the model's buffers. [`crate::WgpuFootprint`] plans it,
/// and the backend allocates it once, before a model is loaded. Sizes that overflow a u64 saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WorkspaceSizes {
    /// Words of the partial results of attention.
    pub(crate) partials: u64,
    /// Words of activations as f16, for products by cooperative matrices.
    pub(crate) f16_values: u64,
    /// Words of their scales, one per row.
    pub(crate) f16_scales: u64,
    /// Words of activations as signed bytes, for products of few rows with block formats.
    pub(crate) signed_rows: u64,
    /// Bytes of logits on their way to the host.
    pub(crate) readback: u64,
}

impl WorkspaceSizes {
    /// The workspace for the largest step of `limits`, on a device with bindings of up to `max_binding` bytes.
    pub(crate) fn new(limits: &Limits, shape: &ModelShape, max_binding: u64, cooperative: bool) -> Self {
        let max_seqs = limits.max_num_seqs.min(limits.max_num_batched_tokens);
        let (blocks, block_size) = (limits.max_blocks_per_seq(), limits.block_size);
        let partials = Partials::new(shape.heads, blocks, block_size, PARTITION as usize, max_seqs, max_binding);
        // The output head multiplies one row per row of logits, of which there may be more than tokens.
        let most = limits.max_num_batched_tokens.max(limits.max_num_logits);
        let rows = if cooperative { most } else { 0 };
        WorkspaceSizes {
            partials: partials.bytes() / 4,
            f16_values: size::bytes(1, &[rows, f16_row_words(shape.widest_input())]),
            f16_scales: rows as u64,
            signed_rows: size::bytes(1, &[most.min(TILE_FROM - 1), signed_row_words(shape.widest_input())]),
            readback: size::bytes(4, &[limits.max_num_logits, shape.vocab_size]),
        }
    }

    /// The total bytes; `u64::MAX` if they overflow.
    pub(crate) fn bytes(&self) -> u64 {
        let arrays =
            [self.partials, self.f16_values, self.f16_scales, self.signed_rows].into_iter().filter(|words| *words > 0);
        arrays.map(bytes_of).fold(self.readback, u64::saturating_add)
    }
}
