//! The layout of a matrix on the device: slabs of rows, each within the limit of a binding.
//!
//! A row is padded to a multiple of eight values, in the encoding of its file; a matrix whose parts have different
//! encodings is decoded to f32. A slab has whole pairs of rows, since kernels process them in pairs; a slab of gate and
//! up has its gate rows first and then the corresponding up rows.

use std::ops::Range;

use qwen_core::backend::{RowReader, WeightRole, WeightShape, WeightView};
use qwen_core::numerics::size;
use qwen_core::{Encoding, Error, HumanBytes, Result};

use crate::runtime::array::Array;
use crate::runtime::device::Device;

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
    /// Whether it is gate and up: row i is paired with row i of the second half instead of the adjacent row.
    pub(crate) gate_up: bool,
    /// Pairs of rows per slab; the last one may have fewer.
    pairs_per_slab: usize,
}

impl Layout {
    /// The layout of a matrix on a device that holds slabs of at most `max_binding` bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding without shaders, and when not even a pair of rows can be bound.
    pub(crate) fn new(shape: &WeightShape, max_binding: u64) -> Result<Self> {
        let readable = |encoding: Encoding| matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16);
        if let Some((encoding, _)) = shape.parts.iter().find(|(encoding, _)| !readable(*encoding)) {
            return Err(Error::unsupported(format!("a matrix in {encoding}"), "the shaders read F32, F16 and BF16"));
        }
        let first = shape.parts.first().map_or(Encoding::F32, |(encoding, _)| *encoding);
        let uniform = shape.parts.iter().all(|(encoding, _)| *encoding == first);
        let encoding = if uniform { first } else { Encoding::F32 };
        let cols = shape.cols;
        let rows = shape.rows();
        let gate_up = shape.role == WeightRole::GateUp && rows.is_multiple_of(2);
        let pairs = rows.div_ceil(2);
        let pair_bytes = size::bytes(encoding.bytes(1), &[2, cols.div_ceil(8), 8]);
        let most = usize::try_from(max_binding / pair_bytes.max(1)).unwrap_or(usize::MAX);
        if most == 0 || pair_bytes > isize::MAX as u64 {
            let [takes, binds] = HumanBytes::compared(pair_bytes, max_binding);
            let reason = format!("two rows of {cols} columns take {takes}, the device binds {binds}");
            return Err(Error::unsupported("a matrix this wide", reason));
        }
        // Slabs of equal size, so that none has only a handful of rows.
        let count = pairs.div_ceil(most).max(1);
        Ok(Layout { encoding, rows, cols, gate_up, pairs_per_slab: pairs.div_ceil(count).max(1) })
    }

    fn pairs(&self) -> usize {
        self.rows.div_ceil(2)
    }

    /// How many slabs there are.
    pub(crate) fn num_slabs(&self) -> usize {
        self.pairs().div_ceil(self.pairs_per_slab).max(1)
    }

    /// The pairs of rows of each slab.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (pairs, size) = (self.pairs(), self.pairs_per_slab);
        (0..self.num_slabs()).map(move |slab| {
            let first = (slab * size).min(pairs);
            first..first + size.min(pairs - first)
        })
    }

    /// Groups of eight values per row.
    pub(crate) fn chunks(&self) -> usize {
        self.cols.div_ceil(8)
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.encoding.bytes(8 * self.chunks())
    }

    /// Bytes of all slabs; `u64::MAX` if they overflow.
    pub(crate) fn bytes(&self) -> u64 {
        // An empty matrix takes the smallest array.
        size::bytes(self.row_bytes(), &[2, self.pairs()]).max(16)
    }

    /// The rows of the matrix in the slab with these pairs, in slab order; those past the last row are padding.
    fn slab_rows(&self, pairs: Range<usize>) -> impl Iterator<Item = usize> + use<> {
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
    /// The largest exponent of its values, biased as in bf16, if cooperative matrices need it.
    pub(crate) largest_exponent: u32,
}

impl Matrix {
    /// Copy a matrix to the device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device cannot hold it, [`Error::OutOfMemory`] when it is larger than the device's
    /// memory or what is left of it; the errors of its parts.
    pub(crate) fn load(device: &Device, view: &WeightView<'_>) -> Result<Self> {
        view.check()?;
        let layout = Layout::new(&view.shape(), max_slab(&device.limits))?;
        device.check_memory(view.name, layout.bytes())?;
        let mut parts: Vec<RowReader<'_>> = view.parts.iter().map(RowReader::new).collect();
        let mut decoded = vec![0.0; layout.cols];
        let measured = device.cooperative.is_some() && layout.encoding == Encoding::Bf16;
        let mut largest_exponent = 0;
        let mut slabs = Vec::new();
        for pairs in layout.slabs() {
            let words = size::bytes(layout.row_bytes(), &[2, pairs.len()]) / 4;
            let array = device.array(view.name, words)?;
            let mut rows = layout.slab_rows(pairs);
            device.upload(view.name, &array, |piece| {
                let Some(row) = rows.next() else { return Ok(false) };
                let start = piece.len();
                append_row(&mut parts, &layout, row, &mut decoded, piece)?;
                if measured {
                    largest_exponent = largest_exponent.max(largest_bf16_exponent(&piece[start..]));
                }
                Ok(true)
            })?;
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

/// Append row `row` in the device's layout: zeros for padding rows, and after the last column.
fn append_row(
    parts: &mut [RowReader<'_>],
    layout: &Layout,
    row: usize,
    decoded: &mut [f32],
    piece: &mut Vec<u8>,
) -> Result<()> {
    let end = piece.len() + layout.row_bytes();
    let mut first = 0;
    for stored in parts {
        let part = stored.part();
        if row - first < part.rows {
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
    piece.resize(end, 0);
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
                assert!(layout.slabs().all(|pairs| (2 * pairs.len() * layout.row_bytes()) as u64 <= limit));
                let covered: Vec<usize> = layout.slabs().flat_map(|pairs| layout.slab_rows(pairs)).collect();
                assert!(covered.into_iter().take(rows).eq(0..rows));
                assert_eq!(layout.slabs().count(), layout.num_slabs());
            }
        }
    }

    #[test]
    fn gate_and_up_rows_of_a_pair_share_a_slab() {
        let layout = Layout::new(&shape(WeightRole::GateUp, 4096, 896), 1 << 20).unwrap();
        assert!(layout.num_slabs() > 1);
        for pairs in layout.slabs() {
            let rows: Vec<usize> = layout.slab_rows(pairs.clone()).collect();
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

    #[test]
    fn sizes_beyond_every_memory_do_not_wrap() {
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX - 6, usize::MAX] {
            for (rows, cols) in [(huge, 1 << 14), (1 << 14, huge), (huge, huge), (huge, 8)] {
                let refused = Layout::new(&shape(WeightRole::Linear, rows, cols), 128 << 20);
                // A matrix with any number of rows is planned in constant time.
                match refused {
                    Ok(layout) => assert!(layout.bytes() >= huge as u64, "{rows} x {cols}"),
                    Err(error) => assert!(matches!(error, Error::Unsupported { .. }), "{error}"),
                }
            }
            let parts = vec![(Encoding::Bf16, huge), (Encoding::Bf16, huge), (Encoding::F32, huge)];
            let layout = Layout::new(&WeightShape { role: WeightRole::Qkv, parts, cols: 1 << 10 }, 1 << 30).unwrap();
            assert!(layout.bytes() >= huge as u64, "{} bytes", layout.bytes());
        }
    }

    #[test]
    fn encodings_without_shaders_are_refused_by_name() {
        let shape = WeightShape { parts: vec![(Encoding::Q8_0, 32)], ..shape(WeightRole::Linear, 0, 64) };
        let error = Layout::new(&shape, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("a matrix in Q8_0"), "{error}");
    }
}
