//! The layout of a matrix on the GPU: its rows in the order and encoding of the file, in one array for each run of rows
//! that are stored alike.
//!
//! Rows of 16- and 32-bit values are padded with zeros to whole words of 16 bytes; blocks are arranged in planes
//! ([`PlaneFormat`]), behind the table of their format if it has one. A matrix of 16- and 32-bit parts that differ in
//! encoding is decoded to f32, which represents all of them exactly; next to blocks each part keeps its own.

use std::ops::Range;
use std::sync::Arc;

use qwen_core::backend::planes::PlaneFormat;
use qwen_core::backend::{RowReader, WeightRole, WeightRun, WeightShape, WeightView};
use qwen_core::{Encoding, Error, HumanBytes, Result};

use crate::driver::Array;
use crate::geometry::{UNIT, WEIGHT_ALIGN};
use crate::gpu::Gpu;
use crate::kernel::Element;
use crate::sizes::{kernel_size, product, taken_bytes};

/// The shape of a matrix on the GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Rows that are stored alike, top to bottom.
    pub(crate) segments: Vec<Segment>,
}

/// Consecutive rows of a matrix that are stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) format: Format,
    /// Which rows of the matrix these are.
    pub(crate) rows: Range<usize>,
    /// The input feature of each column, if they are stored in another order.
    column_order: Option<Arc<[u32]>>,
    /// From one row to the next.
    pub(crate) row_bytes: usize,
    /// Bytes of the table before the first row, and of all rows.
    pub(crate) bytes: usize,
}

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Values of this type.
    Values(Element),
    /// Blocks of an encoding in planes.
    Blocks(BlockFormat),
}

/// Blocks of an encoding in planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockFormat {
    encoding: Encoding,
    /// The name of its kernels.
    pub(crate) name: &'static str,
}

impl BlockFormat {
    /// Units of columns that share a scale and a zero point, in formats of groups.
    pub(crate) fn group_units(self) -> usize {
        match self.encoding {
            Encoding::Group(group) => group.group_size as usize / UNIT,
            _ => 1,
        }
    }

    fn planes(self) -> Option<&'static PlaneFormat> {
        PlaneFormat::of(self.encoding)
    }

    /// What is stored before the first row.
    fn table(self) -> &'static [u8] {
        self.planes().map_or(&[], PlaneFormat::table)
    }
}

impl Format {
    fn of(encoding: Encoding) -> Option<Self> {
        let blocks = || Some(BlockFormat { encoding, name: PlaneFormat::of(encoding)?.name() });
        Element::of(encoding).map(Format::Values).or_else(|| blocks().map(Format::Blocks))
    }

    /// Bytes of a row of `cols` values; `None` if they are not whole blocks or overflow.
    fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Format::Values(element) => cols.checked_next_multiple_of(WEIGHT_ALIGN)?.checked_mul(element.bytes()),
            Format::Blocks(blocks) => blocks.planes()?.row_bytes(blocks.encoding, cols),
        }
    }

    fn table(self) -> &'static [u8] {
        match self {
            Format::Values(_) => &[],
            Format::Blocks(blocks) => blocks.table(),
        }
    }
}

impl Layout {
    /// The layout of a matrix.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding without kernels, and for a matrix whose size overflows.
    pub(crate) fn new(shape: &WeightShape) -> Result<Self> {
        Layout::of(shape.role, shape.cols, shape.runs())
    }

    fn of(role: WeightRole, cols: usize, mut runs: Vec<WeightRun>) -> Result<Self> {
        let rows = runs.last().map_or(0, |run| run.rows.end);
        let ordered = runs.iter().any(|run| run.column_order.is_some());
        if runs.iter().all(|run| Element::of(run.encoding).is_some()) && runs.len() > 1 && !ordered {
            runs = vec![WeightRun { encoding: Encoding::F32, column_order: None, rows: 0..rows }];
        }
        if role == WeightRole::Embedding && runs.len() > 1 {
            return Err(Error::unsupported("an embedding table in several formats", "CUDA kernels take one"));
        }
        let segments = runs.into_iter().map(|run| Segment::new(run, cols)).collect::<Result<_>>()?;
        let layout = Layout { rows, cols, segments };
        // Rows of all segments are counted by the same kernels.
        if kernel_size(rows).is_none() || layout.bytes().is_none() {
            return Err(too_large(rows, cols));
        }
        Ok(layout)
    }

    /// The only segment, if there is one.
    pub(crate) fn whole(&self) -> Option<&Segment> {
        match &self.segments[..] {
            [segment] => Some(segment),
            _ => None,
        }
    }

    /// Bytes of all rows.
    fn bytes(&self) -> Option<usize> {
        let sum = self.segments.iter().try_fold(0_usize, |sum, segment| sum.checked_add(segment.bytes));
        sum.filter(|sum| *sum <= isize::MAX as usize)
    }

    /// Bytes of the GPU's memory that it takes.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::taken_bytes).fold(0, u64::saturating_add)
    }
}

fn too_large(rows: usize, cols: usize) -> Error {
    let reason = format!("kernels count to {} rows or columns", i32::MAX);
    Error::unsupported(format!("a matrix of {rows} x {cols}"), reason)
}

impl Segment {
    fn new(run: WeightRun, cols: usize) -> Result<Self> {
        let WeightRun { encoding, column_order, rows } = run;
        let Some(format) = Format::of(encoding) else {
            let reason = "CUDA kernels take F32, F16, BF16 and blocks of multiples of 32 values";
            return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
        };
        if column_order.is_some() && !matches!(encoding, Encoding::Group(_)) {
            let reason = "CUDA kernels take columns in another order only in groups, as GPTQ stores them";
            return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
        }
        if !cols.is_multiple_of(encoding.block().values.max(1)) {
            let reason = format!("{cols} columns are not whole blocks");
            return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
        }
        let row_bytes = format.row_bytes(cols).filter(|bytes| kernel_size(*bytes).is_some());
        let (Some(row_bytes), Some(_)) = (row_bytes, kernel_size(cols)) else {
            return Err(too_large(rows.len(), cols));
        };
        let what = format!("a matrix of {} x {cols}", rows.len());
        let bytes = product(&what, &[rows.len(), row_bytes])?.checked_add(format.table().len());
        let bytes = product(&what, &[bytes.unwrap_or(usize::MAX)])?;
        Ok(Segment { format, rows, column_order, row_bytes, bytes })
    }

    /// The row stride in values.
    pub(crate) fn stride(&self, element: Element) -> usize {
        self.row_bytes / element.bytes()
    }

    fn taken_bytes(&self) -> u64 {
        taken_bytes(self.bytes)
            .saturating_add(self.column_order.as_ref().map_or(0, |order| taken_bytes(4 * order.len())))
    }
}

/// A matrix on the GPU.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    /// As many as the layout has segments.
    pub(crate) segments: Vec<StoredSegment>,
}

/// The rows of a segment on the GPU.
#[derive(Debug)]
pub(crate) struct StoredSegment {
    pub(crate) array: Array,
    /// The input feature of each column, if they are stored in another order.
    pub(crate) column_order: Option<Array>,
}

impl Matrix {
    /// Copy a matrix to the GPU: rows are packed into one piece of pinned memory while another is copied.
    pub(crate) fn load(gpu: &mut Gpu, view: &WeightView<'_>) -> Result<Self> {
        view.check()?;
        let layout = Layout::of(view.role, view.cols(), view.runs())?;
        let mut stored = Vec::new();
        for segment in &layout.segments {
            if segment.row_bytes > Gpu::piece() {
                let [row, most] = HumanBytes::compared(segment.row_bytes as u64, Gpu::piece() as u64);
                let reason = format!("a row of {} columns has {row}, at most {most} are copied", layout.cols);
                return Err(Error::unsupported(view.name, reason));
            }
            let array = gpu.unset_array(view.name, segment.bytes)?;
            let table = segment.format.table();
            gpu.write_bytes(view.name, &array, 0, table)?;
            load_rows(gpu, view, segment, &array, table.len())?;
            let column_order = match &segment.column_order {
                None => None,
                Some(order) => {
                    let array = gpu.unset_array(view.name, product(view.name, &[4, order.len()])?)?;
                    gpu.write_u32(view.name, &array, order)?;
                    Some(array)
                }
            };
            stored.push(StoredSegment { array, column_order });
        }
        Ok(Matrix { layout, segments: stored })
    }

    /// Its segments: their layout, and their memory.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (&Segment, &StoredSegment)> {
        self.layout.segments.iter().zip(&self.segments)
    }
}

/// Write the rows of a segment to `array`, the first at `start`.
fn load_rows(gpu: &mut Gpu, view: &WeightView<'_>, segment: &Segment, array: &Array, start: usize) -> Result<()> {
    let row_bytes = segment.row_bytes;
    let rows_at_once = Gpu::piece() / row_bytes.max(1);
    let mut decoded = Vec::new();
    // The first row of a part, as a row of the matrix.
    let mut top = 0;
    for part in view.parts {
        let mut stored = RowReader::new(part);
        let here = top.max(segment.rows.start)..(top + part.rows).min(segment.rows.end);
        for begin in here.clone().step_by(rows_at_once.max(1)) {
            let rows = rows_at_once.min(here.end - begin);
            let mut failed = None;
            let at = start + (begin - segment.rows.start) * row_bytes;
            gpu.write(view.name, array, at, rows * row_bytes, |piece| {
                for (row, out) in piece.chunks_exact_mut(row_bytes.max(1)).enumerate() {
                    match stored.row(begin - top + row) {
                        Ok(bytes) => pack_row(part.encoding, bytes, segment.format, part.cols, &mut decoded, out),
                        Err(error) => {
                            failed.get_or_insert(error);
                        }
                    }
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        top += part.rows;
    }
    Ok(())
}

/// Write a row of `cols` values in the layout of the GPU; missing bytes become zeros.
fn pack_row(encoding: Encoding, bytes: &[u8], format: Format, cols: usize, decoded: &mut Vec<f32>, out: &mut [u8]) {
    let filled = match format {
        Format::Blocks(blocks) => {
            out.fill(0);
            if let Some(planes) = blocks.planes() {
                planes.pack_row(encoding, bytes, out);
            }
            return;
        }
        Format::Values(element) if Element::of(encoding) == Some(element) => {
            let len = bytes.len().min(out.len());
            out[..len].copy_from_slice(&bytes[..len]);
            len
        }
        Format::Values(_) => {
            decoded.clear();
            decoded.resize(cols, 0.0);
            encoding.decode_row(bytes, decoded);
            for (out, value) in out.chunks_exact_mut(4).zip(&*decoded) {
                out.copy_from_slice(&value.to_le_bytes());
            }
            4 * decoded.len()
        }
    };
    out[filled..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwen_core::backend::planes;
    use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};

    fn layout(parts: &[(Encoding, usize)], cols: usize) -> Layout {
        Layout::new(&WeightShape { role: WeightRole::Linear, parts: parts.to_vec(), cols }).unwrap()
    }

    #[test]
    fn rows_are_padded_to_whole_words() {
        let odd = layout(&[(Encoding::Bf16, 3)], 9);
        let segment = odd.whole().unwrap();
        assert_eq!((segment.stride(Element::Bf16), segment.row_bytes, segment.bytes), (16, 32, 96));
        assert_eq!(layout(&[(Encoding::F32, 2)], 8).taken_bytes(), 64);
        assert_eq!(layout(&[], 8).taken_bytes(), 0);
    }

    #[test]
    fn parts_of_different_values_become_f32() {
        let mixed = layout(&[(Encoding::Bf16, 1), (Encoding::F16, 1)], 8);
        let segment = mixed.whole().unwrap();
        assert_eq!((segment.format, segment.bytes), (Format::Values(Element::F32), 64));
        let mut out = [1; 32];
        let bytes: Vec<u8> = [half::bf16::ONE; 7].iter().flat_map(|value| value.to_le_bytes()).collect();
        pack_row(Encoding::Bf16, &bytes, segment.format, 7, &mut Vec::new(), &mut out);
        let expected: Vec<u8> =
            [1.0_f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(out[..], expected);
    }

    #[test]
    fn parts_beside_blocks_keep_their_encoding() {
        let mixed = layout(&[(Encoding::Q4K, 3), (Encoding::Q4K, 4), (Encoding::Bf16, 2), (Encoding::F32, 1)], 256);
        let rows: Vec<_> = mixed.segments.iter().map(|segment| (segment.rows.clone(), segment.bytes)).collect();
        assert_eq!(rows, [(0..7, 7 * 144), (7..9, 2 * 512), (9..10, 1024)]);
        assert!(mixed.whole().is_none());
    }

    #[test]
    fn blocks_take_what_they_do_in_the_file_and_a_table() {
        for encoding in planes::encodings() {
            let cols = 4 * encoding.block().values;
            let (ours, table) = (layout(&[(encoding, 64)], cols), PlaneFormat::of(encoding).unwrap().table().len());
            let segment = ours.whole().unwrap();
            assert_eq!(segment.bytes, table + 64 * segment.row_bytes, "{encoding}");
            // Kernels read rows 16 bytes at a time.
            assert!(table.is_multiple_of(16) && segment.row_bytes.is_multiple_of(16), "{encoding}");
            // Of few blocks, padding takes more than 3 percent.
            assert!(segment.row_bytes < encoding.row_bytes(cols).unwrap() + 32, "{encoding}");
        }
    }

    #[test]
    fn matrices_without_a_number_are_refused() {
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            for encodings in [[Encoding::F32, Encoding::Bf16], [Encoding::Q8_0, Encoding::Q4K]] {
                for (parts, cols) in
                    [(vec![huge], 4096), (vec![4096], huge), (vec![huge; 3], 256), (vec![1], huge), (vec![huge], 0)]
                {
                    let parts = parts.iter().zip(encodings.iter().cycle()).map(|(rows, encoding)| (*encoding, *rows));
                    let shape = WeightShape { role: WeightRole::Linear, parts: parts.collect(), cols };
                    let error = Layout::new(&shape).unwrap_err();
                    assert!(matches!(error, Error::Unsupported { .. }), "{shape:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn encodings_and_sizes_without_kernels_are_refused_by_name() {
        let shape =
            |encoding, rows, cols| WeightShape { role: WeightRole::Linear, parts: vec![(encoding, rows)], cols };
        let odd = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 40 });
        let error = Layout::new(&shape(odd, 32, 80)).unwrap_err().to_string();
        assert!(error.contains(&format!("a matrix in {odd}")), "{error}");
        let error = Layout::new(&shape(Encoding::Q4K, 32, 288)).unwrap_err().to_string();
        assert!(error.contains("288 columns are not whole blocks"), "{error}");
        for extreme in [1 << 53, 1 << 60, usize::MAX - 31, usize::MAX] {
            for (rows, cols) in [(extreme, 1 << 10), (1 << 10, extreme), (extreme, extreme)] {
                assert!(Layout::new(&shape(Encoding::Bf16, rows, cols)).is_err(), "{rows} x {cols}");
            }
        }
        let mut table = shape(Encoding::Bf16, 8, 256);
        table.role = WeightRole::Embedding;
        table.parts.push((Encoding::Q8_0, 8));
        assert!(Layout::new(&table).is_err());
    }
}
