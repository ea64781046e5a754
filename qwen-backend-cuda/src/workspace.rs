//! The memory that the kernels of a step need in addition to the model's buffers: activations rounded to 16 bits for
//! tensor cores with the scales of their rows, or to bytes for matrices in blocks, and the partials of attention.
//!
//! Its sizes are computed in one place, from the limits of a step and the shape of a model. The plan adds them up, and
//! [`Workspace::reserve`] allocates the same bytes before anything is recorded, so that nothing is allocated in a step.
//! Operations outside of a model, as in tests, may make it grow.

use qwen_core::backend::Limits;
use qwen_core::backend::partials::Partials;
use qwen_core::backend::{HeadLayout, ModelShape};
use qwen_core::{Precision, Result};

use crate::driver::Array;
use crate::geometry::{ATTENTION_PARTITION, WEIGHT_ALIGN};
use crate::gpu::Gpu;
use crate::sizes::{product, taken_bytes};

/// The most bytes of attention's partials: enough for some 70 sequences of 131,072 positions on 7B. Larger steps are
/// not split: that many sequences keep the GPU busy without splitting.
const MAX_PARTIAL_BYTES: u64 = 1 << 30;

/// Bytes of each part of the workspace; 0 for a part that is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkspaceSizes {
    pub(crate) rounded: usize,
    pub(crate) scales: usize,
    pub(crate) partials: usize,
}

impl WorkspaceSizes {
    /// The sizes for steps within `limits`; `tensor_cores` says whether the GPU has them.
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when a size overflows.
    pub(crate) fn new(tensor_cores: bool, precision: Precision, limits: &Limits, shape: &ModelShape) -> Result<Self> {
        let (mut rounded, mut scales) = (0, 0);
        if precision == Precision::Fast {
            // The output head multiplies the rows whose logits are wanted, which may be more than the tokens.
            let rows = limits.max_num_batched_tokens.max(limits.max_num_logits);
            // Matrices in blocks may take bytes instead, which are never more than 16 bits.
            let cols = shape.widest_input();
            (rounded, scales) = match tensor_cores {
                true => (rounded_bytes(rows, cols)?, scales_bytes(rows)?),
                false => (product("rounded activations", &[rows, byte_row(cols)])?, 0),
            };
        }
        let partials = partials(shape.heads, limits.max_blocks_per_seq(), limits.block_size, limits.max_num_seqs);
        let partials = product("partials of attention", &[usize::try_from(partials.bytes()).unwrap_or(usize::MAX)])?;
        Ok(WorkspaceSizes { rounded, scales, partials })
    }

    /// Bytes of the GPU's memory that all parts take.
    pub(crate) fn taken_bytes(&self) -> u64 {
        let parts = [self.rounded, self.scales, self.partials];
        parts.into_iter().filter(|bytes| *bytes > 0).fold(0, |sum, bytes| sum.saturating_add(taken_bytes(bytes)))
    }
}

/// The partials of attention over sequences of up to `max_blocks_per_seq` blocks.
pub(crate) fn partials(
    heads: HeadLayout,
    max_blocks_per_seq: usize,
    block_size: usize,
    max_num_seqs: usize,
) -> Partials {
    Partials::new(heads, max_blocks_per_seq, block_size, ATTENTION_PARTITION, max_num_seqs, MAX_PARTIAL_BYTES)
}

/// Bytes of `rows` rows of `cols` activations in 16 bits.
fn rounded_bytes(rows: usize, cols: usize) -> Result<usize> {
    let stride = cols.checked_next_multiple_of(WEIGHT_ALIGN).unwrap_or(usize::MAX);
    product("rounded activations", &[rows, stride, 2])
}

/// Bytes of a row of `cols` activations in signed bytes: for each 32 of them an f32 scale in addition, see `round_to_bytes`
/// in kernels/params.cuh.
pub(crate) fn byte_row(cols: usize) -> usize {
    cols.div_ceil(32).checked_mul(36).and_then(|bytes| bytes.checked_next_multiple_of(16)).unwrap_or(usize::MAX)
}

/// Bytes of the scales of `rows` rows.
fn scales_bytes(rows: usize) -> Result<usize> {
    product("scales of activations", &[rows, 4])
}

/// The arrays of the workspace, as far as they were needed.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    rounded: Option<Array>,
    scales: Option<Array>,
    partials: Option<Array>,
}

impl Workspace {
    /// Allocate all parts.
    pub(crate) fn reserve(&mut self, gpu: &mut Gpu, sizes: &WorkspaceSizes) -> Result<()> {
        let WorkspaceSizes { rounded, scales, partials } = *sizes;
        if rounded > 0 {
            at_least(&mut self.rounded, gpu, "rounded activations", rounded)?;
        }
        if scales > 0 {
            at_least(&mut self.scales, gpu, "scales of activations", scales)?;
        }
        if partials > 0 {
            at_least(&mut self.partials, gpu, "partials of attention", partials)?;
        }
        Ok(())
    }

    /// Space for `rows` rows of `cols` activations in 16 bits, and for the scales of the rows.
    pub(crate) fn rounded(&mut self, gpu: &mut Gpu, rows: usize, cols: usize) -> Result<(Array, Array)> {
        let rounded = at_least(&mut self.rounded, gpu, "rounded activations", rounded_bytes(rows, cols)?)?;
        let scales = at_least(&mut self.scales, gpu, "scales of activations", scales_bytes(rows)?)?;
        Ok((rounded, scales))
    }

    /// Space for `rows` rows of `cols` activations in signed bytes.
    pub(crate) fn bytes(&mut self, gpu: &mut Gpu, rows: usize, cols: usize) -> Result<Array> {
        let bytes = product("rounded activations", &[rows, byte_row(cols)])?;
        at_least(&mut self.rounded, gpu, "rounded activations", bytes)
    }

    /// Space for the partials.
    pub(crate) fn partials(&mut self, gpu: &mut Gpu, partials: &Partials) -> Result<Array> {
        let bytes = usize::try_from(partials.bytes()).unwrap_or(usize::MAX);
        at_least(&mut self.partials, gpu, "partials of attention", product("partials of attention", &[bytes])?)
    }
}

/// The array in `held` if it has `bytes`, otherwise a new one in its place. Its contents are undefined.
fn at_least(held: &mut Option<Array>, gpu: &mut Gpu, what: &str, bytes: usize) -> Result<Array> {
    if let Some(array) = held.as_ref().filter(|array| array.bytes >= bytes) {
        return Ok(array.clone());
    }
    let array = gpu.unset_array(what, bytes)?;
    *held = Some(array.clone());
    Ok(array)
}

#[cfg(test)]
mod tests {
    use qwen_conformance::published::limits;

    use super::*;

    const SHAPE: ModelShape = ModelShape {
        hidden_size: 896,
        intermediate_size: 4864,
        vocab_size: 151_936,
        heads: HeadLayout { num_attention_heads: 14, num_key_value_heads: 2, head_dim: 64 },
    };

    fn sizes(tensor_cores: bool, precision: Precision, limits: &Limits) -> WorkspaceSizes {
        WorkspaceSizes::new(tensor_cores, precision, limits, &SHAPE).unwrap()
    }

    #[test]
    fn rows_of_logits_count_where_they_are_more_than_tokens() {
        let partials = 8 * 4 * 14 * 256 * 66;
        let fast = sizes(true, Precision::Fast, &limits(512, 16));
        assert_eq!(fast, WorkspaceSizes { rounded: 512 * 4864 * 2, scales: 512 * 4, partials });
        let more = sizes(true, Precision::Fast, &limits(512, 600));
        assert_eq!(more, WorkspaceSizes { rounded: 600 * 4864 * 2, scales: 600 * 4, partials });
        // Without tensor cores only matrices in blocks take rounded activations: bytes.
        let bytes = WorkspaceSizes { rounded: 600 * 4864 / 32 * 36, scales: 0, partials };
        assert_eq!(sizes(false, Precision::Fast, &limits(512, 600)), bytes);
        let none = WorkspaceSizes { rounded: 0, scales: 0, partials };
        assert_eq!(sizes(true, Precision::Exact, &limits(512, 600)), none);
        assert_eq!(none.taken_bytes(), taken_bytes(partials));
    }

    #[test]
    fn workspaces_without_a_number_are_refused() {
        for huge in [1 << (usize::BITS - 4), usize::MAX] {
            for limits in [limits(huge, 1), limits(1, huge)] {
                let error = WorkspaceSizes::new(true, Precision::Fast, &limits, &SHAPE).unwrap_err();
                assert!(matches!(error, qwen_core::Error::Unsupported { .. }), "{error}");
            }
            // Sequences and contexts of any length are not split beyond the available partials.
            let limits = Limits { max_model_len: huge, max_num_seqs: huge, ..limits(8, 8) };
            assert!(sizes(true, Precision::Fast, &limits).partials as u64 <= MAX_PARTIAL_BYTES);
        }
    }
}
