//! The layout of a matrix on the device: slabs of rows, each within the limit of a binding.
//!
//! Rows keep the encoding of their file. Rows of 16- and 32-bit values are padded to a multiple of eight values; blocks
//! are arranged in planes ([`PlaneFormat`]). A matrix whose parts differ in encoding, or in the order of their columns, has a
//! segment for each. A slab has whole pairs of rows of one segment, since kernels process them in pairs; a slab of gate
//! and up has its gate rows first and then the corresponding up rows.

use std::ops::Range;
use std::sync::Arc;

use qwen_core::backend::planes::PlaneFormat;
use qwen_core::backend::{RowReader, WeightRole, WeightRun, WeightShape, WeightView};
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
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) role: WeightRole,
    /// Rows in one encoding with columns in one order, top to bottom.
    pub(crate) segments: Vec<Segment>,
}

/// Consecutive rows of a matrix that are stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) encoding: Encoding,
    /// The input feature of each column, if they are stored in another order.
    column_order: Option<Arc<[u32]>>,
    /// Which rows of the matrix these are.
    pub(crate) rows: Range<usize>,
    /// Whether they are gate and up: row i is paired with row i of the second half instead of the adjacent row.
    pub(crate) gate_up: bool,
    /// Bytes of a row, and of the table before the first row of a slab.
    pub(crate) row_bytes: usize,
    table_bytes: usize,
    /// Pairs of rows per slab; the last one may have fewer.
    pairs_per_slab: usize,
}

impl Layout {
    /// The layout of a matrix on a device that holds slabs of at most `max_binding` bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding without shaders, and when not even a pair of rows can be bound.
    pub(crate) fn new(shape: &WeightShape, max_binding: u64) -> Result<Self> {
        Layout::of(shape.role, shape.cols, shape.runs(), max_binding)
    }

    /// The layout of `view`.
    ///
    /// # Errors
    /// As [`Layout::new`].
    fn of_view(view: &WeightView<'_>, max_binding: u64) -> Result<Self> {
        Layout::of(view.role, view.cols(), view.runs(), max_binding)
    }

    fn of(role: WeightRole, cols: usize, runs: Vec<WeightRun>, max_binding: u64) -> Result<Self> {
        let rows = runs.last().map_or(0, |run| run.rows.end);
        let gate_up = role == WeightRole::GateUp && runs.len() == 1 && rows.is_multiple_of(2);
        let segment = |run| Segment::new(run, cols, gate_up, max_binding);
        let segments = runs.into_iter().map(segment).collect::<Result<_>>()?;
        Ok(Layout { rows, cols, role, segments })
    }

    /// Whether all of it is pairs of gate and up rows.
    pub(crate) fn is_gate_up(&self) -> bool {
        self.segments.first().is_some_and(|segment| segment.gate_up)
    }

    /// Its segments if they are gate and up, each stored in its own way.
    pub(crate) fn gate_and_up(&self) -> Option<[&Segment; 2]> {
        match &self.segments[..] {
            [gate, up] if self.role == WeightRole::GateUp && gate.rows.len() == up.rows.len() => Some([gate, up]),
            _ => None,
        }
    }

    /// How many slabs there are.
    pub(crate) fn num_slabs(&self) -> usize {
        self.segments.iter().map(Segment::num_slabs).fold(0, usize::saturating_add)
    }

    /// Groups of eight values per row.
    pub(crate) fn chunks(&self) -> usize {
        self.cols.div_ceil(8)
    }

    /// Bytes of all slabs; `u64::MAX` if they overflow.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).fold(0, u64::saturating_add)
    }
}

impl Segment {
    fn new(run: WeightRun, cols: usize, gate_up: bool, max_binding: u64) -> Result<Self> {
        let WeightRun { encoding, column_order, rows } = run;
        let (row_bytes, table_bytes) = match (encoding, PlaneFormat::of(encoding)) {
            (Encoding::F32 | Encoding::F16 | Encoding::Bf16, _) => {
                (cols.checked_next_multiple_of(8).and_then(|cols| encoding.row_bytes(cols)), 0)
            }
            (_, Some(format)) => (format.row_bytes(encoding, cols), format.table().len()),
            (_, None) => {
                let reason = "the shaders read F32, F16, BF16 and blocks of multiples of 32 values";
                return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
            }
        };
        let pairs = rows.len().div_ceil(2);
        let pair_bytes = row_bytes.map_or(u64::MAX, |bytes| size::bytes(bytes, &[2]));
        let room = max_binding.saturating_sub(table_bytes as u64);
        let most = usize::try_from(room / pair_bytes.max(1)).unwrap_or(usize::MAX);
        let (Some(row_bytes), true) = (row_bytes, most > 0 && pair_bytes <= isize::MAX as u64) else {
            let [takes, binds] = HumanBytes::compared(pair_bytes, max_binding);
            let reason = match encoding.row_bytes(cols) {
                None => format!("{cols} columns are not whole blocks of {encoding}"),
                Some(_) => format!("two rows of {cols} columns take {takes}, the device binds {binds}"),
            };
            return Err(Error::unsupported("a matrix this wide", reason));
        };
        // Slabs of equal size, so that none has only a handful of rows.
        let count = pairs.div_ceil(most).max(1);
        let pairs_per_slab = pairs.div_ceil(count).max(1);
        Ok(Segment { encoding, column_order, rows, gate_up, row_bytes, table_bytes, pairs_per_slab })
    }

    fn pairs(&self) -> usize {
        self.rows.len().div_ceil(2)
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

    /// The first row, as rows of this segment, of the pair `pair`: of its gate row if it has one.
    pub(crate) fn first_row(&self, pair: usize) -> usize {
        if self.gate_up { pair } else { 2 * pair }
    }

    /// Bytes of all slabs; `u64::MAX` if they overflow.
    fn bytes(&self) -> u64 {
        let tables = size::bytes(self.table_bytes, &[self.num_slabs()]);
        // An empty matrix takes the smallest array.
        size::bytes(self.row_bytes, &[2, self.pairs()]).saturating_add(tables).max(16)
    }

    /// The rows of the matrix in the slab with these pairs, in slab order; those past the last row are padding.
    fn slab_rows(&self, pairs: Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let (first, gate_rows) = (self.rows.start, self.rows.len() / 2);
        let (top, bottom) = match self.gate_up {
            true => (pairs.clone(), pairs.start + gate_rows..pairs.end + gate_rows),
            false => (2 * pairs.start..2 * pairs.end, 0..0),
        };
        top.chain(bottom).map(move |row| first + row)
    }
}

/// A matrix on the device.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    /// As many as the layout has segments.
    pub(crate) segments: Vec<StoredSegment>,
}

/// The rows of a segment on the device.
#[derive(Debug)]
pub(crate) struct StoredSegment {
    pub(crate) slabs: Vec<Array>,
    /// The input feature of each column, if they are stored in another order.
    pub(crate) column_order: Option<Array>,
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
        let layout = Layout::of_view(view, max_slab(&device.limits))?;
        device.check_memory(view.name, layout.bytes())?;
        let mut parts: Vec<RowReader<'_>> = view.parts.iter().map(RowReader::new).collect();
        let load = |segment| load_segment(device, view.name, segment, &mut parts);
        let segments = layout.segments.iter().map(load).collect::<Result<_>>()?;
        Ok(Matrix { layout, segments })
    }

    /// Its segments: their layout, and their memory.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (&Segment, &StoredSegment)> {
        self.layout.segments.iter().zip(&self.segments)
    }
}

fn load_segment(device: &Device, name: &str, segment: &Segment, parts: &mut [RowReader<'_>]) -> Result<StoredSegment> {
    // F16 is not scaled, and F32 not rounded.
    let measured = device.cooperative.is_some() && !matches!(segment.encoding, Encoding::F16 | Encoding::F32);
    let mut largest_exponent = 0;
    let mut decoded = Vec::new();
    let mut slabs = Vec::new();
    let table = PlaneFormat::of(segment.encoding).map_or(&[][..], PlaneFormat::table);
    for pairs in segment.slabs() {
        let bytes = size::bytes(segment.row_bytes, &[2, pairs.len()]).saturating_add(table.len() as u64);
        let array = device.array(name, bytes / 4)?;
        let mut rows = segment.slab_rows(pairs);
        let mut table = table;
        device.upload(name, &array, |piece| {
            piece.extend_from_slice(std::mem::take(&mut table));
            let Some(row) = rows.next() else { return Ok(false) };
            let end = piece.len() + segment.row_bytes;
            if let Some((stored, row)) = stored_row(parts, row).filter(|_| segment.rows.contains(&row)) {
                let cols = stored.part().cols;
                let bytes = stored.row(row)?;
                append_row(segment.encoding, bytes, segment.row_bytes, piece);
                if measured {
                    decoded.resize(cols, 0.0);
                    segment.encoding.decode_row(bytes, &mut decoded);
                    largest_exponent = largest_exponent.max(self::largest_exponent(&decoded));
                }
            }
            // Zeros for padding rows.
            piece.resize(end, 0);
            Ok(true)
        })?;
        slabs.push(array);
    }
    let column_order = match &segment.column_order {
        None => None,
        Some(order) => {
            let array = device.array(name, order.len() as u64)?;
            device.upload(name, &array, |piece| {
                piece.extend(order.iter().flat_map(|column| column.to_le_bytes()));
                Ok(false)
            })?;
            Some(array)
        }
    };
    Ok(StoredSegment { slabs, column_order, largest_exponent })
}

/// The part that has row `row` of the matrix, and the row there.
fn stored_row<'r, 'a>(parts: &'r mut [RowReader<'a>], row: usize) -> Option<(&'r mut RowReader<'a>, usize)> {
    let mut row = row;
    for stored in parts {
        let rows = stored.part().rows;
        if row < rows {
            return Some((stored, row));
        }
        row -= rows;
    }
    None
}

/// Append a row in the device's layout, without the zeros after its last column.
fn append_row(encoding: Encoding, bytes: &[u8], row_bytes: usize, piece: &mut Vec<u8>) {
    match PlaneFormat::of(encoding) {
        None => piece.extend_from_slice(bytes),
        Some(format) => {
            let start = piece.len();
            piece.resize(start + row_bytes, 0);
            format.pack_row(encoding, bytes, &mut piece[start..]);
        }
    }
}

/// The largest biased exponent of finite values.
fn largest_exponent(values: &[f32]) -> u32 {
    let exponents = values.iter().map(|value| value.to_bits() >> 23 & 0xff);
    exponents.filter(|exponent| *exponent < 0xff).max().unwrap_or(0)
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
                let [segment] = &layout.segments[..] else { panic!("{layout:?}") };
                assert!(segment.slabs().all(|pairs| (2 * pairs.len() * segment.row_bytes) as u64 <= limit));
                let covered: Vec<usize> = segment.slabs().flat_map(|pairs| segment.slab_rows(pairs)).collect();
                assert!(covered.into_iter().take(rows).eq(0..rows));
                assert_eq!(segment.slabs().count(), layout.num_slabs());
            }
        }
    }

    #[test]
    fn gate_and_up_rows_of_a_pair_share_a_slab() {
        let layout = Layout::new(&shape(WeightRole::GateUp, 4096, 896), 1 << 20).unwrap();
        assert!(layout.num_slabs() > 1);
        let segment = &layout.segments[0];
        for pairs in segment.slabs() {
            let rows: Vec<usize> = segment.slab_rows(pairs.clone()).collect();
            assert_eq!(rows[0], pairs.start);
            assert_eq!(rows[pairs.len()], pairs.start + 2048);
        }
    }

    #[test]
    fn exponents_of_what_is_not_finite_do_not_count() {
        assert_eq!(largest_exponent(&[1.0, -3.0, f32::INFINITY, 0.1, f32::NAN]), 128);
        assert_eq!(largest_exponent(&[0.0; 4]), 0);
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
    fn parts_in_other_encodings_are_segments_and_equal_ones_are_joined() {
        let parts = vec![(Encoding::Q4K, 64), (Encoding::Q4K, 31), (Encoding::Q6K, 31)];
        let qkv = WeightShape { role: WeightRole::Qkv, parts, cols: 512 };
        let layout = Layout::new(&qkv, 1 << 20).unwrap();
        let segments: Vec<_> = layout.segments.iter().map(|segment| (segment.encoding, segment.rows.clone())).collect();
        assert_eq!(segments, [(Encoding::Q4K, 0..95), (Encoding::Q6K, 95..126)]);
        // Each is whole pairs of rows.
        assert_eq!(layout.bytes(), 96 * 288 + 32 * (420 + 12));
        assert!(layout.gate_and_up().is_none());
        let halves = vec![(Encoding::Q4K, 33), (Encoding::Q6K, 33)];
        let layout = Layout::new(&WeightShape { role: WeightRole::GateUp, parts: halves, ..qkv }, 1 << 20).unwrap();
        assert!(!layout.is_gate_up() && layout.gate_and_up().is_some());
    }

    #[test]
    fn what_no_shader_reads_is_refused_by_name() {
        use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
        let of = |encoding, cols| {
            Layout::new(&WeightShape { parts: vec![(encoding, 32)], cols, ..shape(WeightRole::Linear, 0, 0) }, 1 << 20)
        };
        let odd = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 24 });
        let error = of(odd, 48).unwrap_err().to_string();
        assert!(error.contains("INT4 in groups of 24"), "{error}");
        let error = of(Encoding::Q4K, 128).unwrap_err().to_string();
        assert!(error.contains("128 columns are not whole blocks of Q4_K"), "{error}");
    }
}
