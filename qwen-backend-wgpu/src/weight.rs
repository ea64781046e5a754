//! How a matrix lies on the device: slabs of rows, each within the limit of a binding.
//!
//! A row is a whole number of eights of values, in the encoding of its file: what differs within a matrix is decoded to
//! f32. A slab has whole pairs of rows, since kernels take them in pairs; that of gate and up has so many gate rows and
//! then their up rows.

use std::ops::Range;

use qwen_core::backend::{RowReader, WeightRole, WeightShape, WeightView};
use qwen_core::{Encoding, Error, Result};

use crate::gpu::{Array, Gpu};

/// The largest slab of a device: a buffer that is bound as a whole.
pub(crate) fn max_slab(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
}

/// The shape of a matrix on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) encoding: Encoding,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Whether it is gate and up, whose row i goes with row i of the second half instead of its neighbour.
    pub(crate) gate_up: bool,
    /// The pairs of each slab.
    pub(crate) slabs: Vec<Range<usize>>,
}

impl Layout {
    /// The layout of a matrix on a device that holds slabs of at most `max_binding` bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding that shaders do not have, and when not even a pair of rows can be bound.
    pub(crate) fn new(shape: &WeightShape, max_binding: u64) -> Result<Self> {
        let shaders = |encoding: Encoding| matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16);
        if let Some((encoding, _)) = shape.parts.iter().find(|(encoding, _)| !shaders(*encoding)) {
            let reason = "the shaders take F32, F16 and BF16";
            return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
        }
        let first = shape.parts.first().map_or(Encoding::F32, |(encoding, _)| *encoding);
        let uniform = shape.parts.iter().all(|(encoding, _)| *encoding == first);
        let encoding = if uniform { first } else { Encoding::F32 };
        let rows = shape.rows();
        let gate_up = shape.role == WeightRole::GateUp && rows.is_multiple_of(2);
        let pairs = rows.div_ceil(2);
        let padded = shape.cols.checked_next_multiple_of(8).unwrap_or(usize::MAX);
        let pair_bytes = encoding.bytes(padded).saturating_mul(2);
        let most = usize::try_from(max_binding).unwrap_or(usize::MAX) / pair_bytes.max(1);
        if most == 0 {
            let reason =
                format!("two rows of {} columns take {pair_bytes} bytes, the device binds {max_binding}", shape.cols);
            return Err(Error::unsupported("a matrix this wide", reason));
        }
        // Slabs of equal size, so that none is left with a handful of rows.
        let count = pairs.div_ceil(most).max(1);
        let size = pairs.div_ceil(count);
        let slabs = (0..count).map(|slab| (slab * size).min(pairs)..((slab + 1) * size).min(pairs)).collect();
        Ok(Layout { encoding, rows, cols: shape.cols, gate_up, slabs })
    }

    /// Eights of a row.
    pub(crate) fn chunks(&self) -> usize {
        self.cols.div_ceil(8)
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.encoding.bytes(8 * self.chunks())
    }

    /// Bytes of all slabs.
    pub(crate) fn bytes(&self) -> u64 {
        self.slabs.iter().map(|pairs| (2 * pairs.len() * self.row_bytes()).max(16) as u64).sum()
    }

    /// The rows of the matrix that slab `slab` has, in its order; those past the last one are padding.
    fn slab_rows(&self, slab: usize) -> impl Iterator<Item = usize> + use<> {
        let pairs = self.slabs[slab].clone();
        let gate_rows = self.rows / 2;
        let (first, second) = match self.gate_up {
            true => (pairs.clone(), pairs.start + gate_rows..pairs.end + gate_rows),
            false => (2 * pairs.start..2 * pairs.end, 0..0),
        };
        first.chain(second)
    }
}

/// A matrix on the device.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    pub(crate) slabs: Vec<Array>,
    /// The largest exponent of its values, biased as in bf16, where cooperative matrices need to know.
    pub(crate) largest_exponent: u32,
}

impl Matrix {
    /// Bring a matrix to the device.
    pub(crate) fn load(gpu: &mut Gpu, view: &WeightView<'_>) -> Result<Self> {
        view.check()?;
        let layout = Layout::new(&view.shape(), max_slab(&gpu.limits))?;
        let mut parts: Vec<RowReader<'_>> = view.parts.iter().map(RowReader::new).collect();
        let mut decoded = vec![0.0; layout.cols];
        let measured = gpu.cooperative.is_some() && layout.encoding == Encoding::Bf16;
        let mut largest_exponent = 0;
        let mut slabs = Vec::with_capacity(layout.slabs.len());
        for slab in 0..layout.slabs.len() {
            let array = gpu.array(view.name, 2 * layout.slabs[slab].len() * layout.row_bytes() / 4)?;
            let mut rows = layout.slab_rows(slab);
            let mut failed = None;
            gpu.upload(view.name, &array, |piece| {
                let Some(row) = rows.next() else { return false };
                let start = piece.len();
                let appended = append_row(&mut parts, &layout, row, &mut decoded, piece);
                failed = failed.take().or(appended.err());
                if measured {
                    largest_exponent = largest_exponent.max(largest_bf16_exponent(&piece[start..]));
                }
                true
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            slabs.push(array);
        }
        Ok(Matrix { layout, slabs, largest_exponent })
    }
}

/// The largest biased exponent of finite bf16 values.
fn largest_bf16_exponent(bytes: &[u8]) -> u32 {
    let exponents = bytes.as_chunks().0.iter().map(|value| u32::from(u16::from_le_bytes(*value)) >> 7 & 0xff);
    exponents.filter(|exponent| *exponent < 0xff).max().unwrap_or(0)
}

/// Append row `row` as the device holds it, zeros where it cannot be read.
fn append_row(
    parts: &mut [RowReader<'_>],
    layout: &Layout,
    row: usize,
    decoded: &mut [f32],
    piece: &mut Vec<u8>,
) -> Result<()> {
    let end = piece.len() + layout.row_bytes();
    let result = append_stored(parts, layout, row, decoded, piece);
    piece.resize(end, 0);
    result
}

/// Append the values of row `row`, without its padding.
fn append_stored(
    parts: &mut [RowReader<'_>],
    layout: &Layout,
    row: usize,
    decoded: &mut [f32],
    piece: &mut Vec<u8>,
) -> Result<()> {
    let mut first = 0;
    for stored in parts {
        let part = stored.part();
        if row < first + part.rows {
            let bytes = stored.row(row - first)?;
            if part.encoding == layout.encoding {
                piece.extend_from_slice(bytes);
            } else {
                part.encoding.decode_row(bytes, decoded);
                piece.extend(decoded.iter().flat_map(|value| value.to_le_bytes()));
            }
            break;
        }
        first += part.rows;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(role: WeightRole, rows: usize, cols: usize) -> WeightShape {
        WeightShape { role, parts: vec![(Encoding::Bf16, rows)], cols }
    }

    #[test]
    fn slabs_cover_all_pairs_within_the_limit() {
        for (rows, cols) in [(1, 1), (7, 9), (151_936, 896), (152_064, 3584), (37_888, 3584)] {
            for limit in [1 << 20, 128 << 20, (2 << 30) - 4] {
                let layout = Layout::new(&shape(WeightRole::Embedding, rows, cols), limit).unwrap();
                assert!(layout.slabs.iter().all(|pairs| (2 * pairs.len() * layout.row_bytes()) as u64 <= limit));
                let covered: Vec<usize> = (0..layout.slabs.len()).flat_map(|slab| layout.slab_rows(slab)).collect();
                assert!(covered.into_iter().take(rows).eq(0..rows));
            }
        }
    }

    #[test]
    fn gate_and_up_rows_of_a_pair_share_a_slab() {
        let layout = Layout::new(&shape(WeightRole::GateUp, 4096, 896), 1 << 20).unwrap();
        assert!(layout.slabs.len() > 1);
        for (slab, pairs) in layout.slabs.iter().enumerate() {
            let rows: Vec<usize> = layout.slab_rows(slab).collect();
            assert_eq!(rows[0], pairs.start);
            assert_eq!(rows[pairs.len()], pairs.start + 2048);
        }
    }

    #[test]
    fn exponents_of_what_is_not_finite_do_not_count() {
        let values = [1.0, -3.0, f32::INFINITY, 0.1, f32::NAN].map(half::bf16::from_f32);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(largest_bf16_exponent(&bytes), 128);
        assert_eq!(largest_bf16_exponent(&[0; 8]), 0);
    }

    #[test]
    fn rows_too_wide_for_a_binding_are_refused() {
        assert!(Layout::new(&shape(WeightRole::Linear, 2, 1 << 20), 1 << 20).is_err());
    }
}
