//! The rows of a packed matrix as blocks, converted while they are read.
//!
//! In the file the codes of a row are far apart: 32 bits, or 4, in each line of `qweight`. So a matrix is converted in
//! *spans* of columns: all rows of a span come from one contiguous range of the file, and each thread that asks for
//! rows first converts spans that no other thread is converting. A span holds only codes, row by row; scales and zero
//! points are held separately, as the heads of all blocks. Together they are the matrix in block form, which is freed
//! with the last [`MatrixPart`] of the matrix; the file's form is held only for the ranges being converted.
//!
//! [`MatrixPart`]: crate::backend::MatrixPart

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::Packed;
use super::held::{Held, Made, Memory};
use crate::backend::ReadBytes;
use crate::error::{Error, Result};
use crate::numerics::encoding::Block;

/// Columns per span: a cache line of 4-bit codes.
const SPAN: usize = 128;

/// Converted rows begin and end at multiples of this: AWQ packs that many together.
const ROW_UNIT: usize = 8;

/// Bytes of the scale and the zero point at the start of a block.
const HEAD: usize = 4;

/// The source of a matrix's rows.
pub(super) struct Rows<'a> {
    packed: Packed<'a>,
    /// The column in the file of each stored column.
    order: Option<Arc<[u32]>>,
    /// The rows to convert.
    rows: Range<usize>,
    /// Heads `[row][group]`.
    heads: Held,
    /// Codes `[row][column]` of each span.
    spans: Vec<Held>,
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows {:?} of {:?}", self.rows, self.packed)
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(packed: Packed<'a>, order: Option<Arc<[u32]>>) -> Self {
        let rows = 0..packed.rows;
        Rows::of(packed, order, rows)
    }

    fn of(packed: Packed<'a>, order: Option<Arc<[u32]>>, rows: Range<usize>) -> Self {
        let spans = (0..packed.cols.div_ceil(SPAN)).map(|_| Held::default()).collect();
        Rows { packed, order, rows, heads: Held::default(), spans }
    }

    fn block(&self) -> Block {
        self.packed.encoding().block()
    }

    /// Columns of span `span`.
    fn columns(&self, span: usize) -> Range<usize> {
        span * SPAN..((span + 1) * SPAN).min(self.packed.cols)
    }

    /// Bytes of the codes of `columns` columns.
    fn code_bytes(&self, columns: usize) -> usize {
        columns * self.packed.encoding.bits.count() as usize / 8
    }

    /// The heads of all blocks of the rows.
    fn make_heads(&self) -> Result<Memory> {
        let Packed { packing, scales, qzeros, groups, rows: all_rows, .. } = self.packed;
        let (scale_bytes, encoding) = (scales.read_all()?, scales.encoding()?);
        let zero_bytes = qzeros.read_all()?;
        let mut heads = self.zeroed(self.rows.len() * groups * HEAD)?;
        let (mut zeros, mut values) = (Vec::with_capacity(all_rows), vec![0.0; all_rows]);
        let scale_rows = scale_bytes.chunks_exact(encoding.bytes(all_rows).max(1));
        let zero_rows = zero_bytes.chunks_exact((zero_bytes.len() / groups.max(1)).max(1));
        for (group, (scale_row, zero_row)) in scale_rows.zip(zero_rows).enumerate() {
            encoding.decode_row(scale_row, &mut values);
            zeros.clear();
            zero_row.as_chunks().0.iter().for_each(|integer| {
                packing.unpack_zeros(u32::from_le_bytes(*integer), &mut zeros);
            });
            let of_group = heads.as_chunks_mut::<HEAD>().0.iter_mut().skip(group).step_by(groups);
            let pairs = values.iter().zip(&zeros).enumerate().skip(self.rows.start);
            for (head, (row, (value, zero))) in of_group.zip(pairs) {
                let scale = f16::from_f32(*value);
                // Compared by bits, since a thread may treat subnormal values as zeros. A NaN stays a NaN in F16.
                if scale.to_f32().to_bits() != value.to_bits() && !value.is_nan() {
                    return Err(Error::InvalidTensor {
                        name: scales.info.name.clone(),
                        path: scales.shard.path().to_path_buf(),
                        expected: "values that F16 holds exactly: use a file whose scales are F16".into(),
                        found: format!("{value:e} in {encoding} for group {group} of output feature {row}"),
                    });
                }
                let ([a, b], [c, d]) = (scale.to_le_bytes(), zero.to_le_bytes());
                *head = [a, b, c, d];
            }
        }
        Ok(heads)
    }

    /// The codes of span `span`, row by row.
    fn make_span(&self, span: usize) -> Result<Memory> {
        let Packed { packing, qweight, .. } = self.packed;
        let columns: Vec<usize> = match &self.order {
            None => self.columns(span).collect(),
            Some(order) => order.get(self.columns(span)).unwrap_or_default().iter().map(|col| *col as usize).collect(),
        };
        let mut lines: Vec<usize> = columns.iter().map(|col| packing.packed_row(*col)).collect();
        lines.sort_unstable();
        lines.dedup();
        let line_bytes = 4 * qweight.info.shape.last().copied().unwrap_or_default();
        let mut integers = self.zeroed(lines.len() * line_bytes)?;
        // Adjacent lines of the file are read at once.
        let mut rest = &mut *integers;
        for run in lines.chunk_by(|line, next| line + 1 == *next) {
            let (out, others) = rest.split_at_mut(run.len() * line_bytes);
            let first = run.first().copied().unwrap_or_default();
            qweight.read_at(first as u64 * line_bytes as u64, out)?;
            rest = others;
        }
        let words = packing.words(&columns, |line| lines.binary_search(&line).unwrap_or_default());
        let row_bytes = self.code_bytes(columns.len());
        let mut codes = self.zeroed(self.rows.len() * row_bytes)?;
        let mut of_rows = vec![0u32; packing.rows_at_once()];
        let tiles = codes.chunks_mut(of_rows.len() * row_bytes);
        for (tile, first) in tiles.zip(self.rows.clone().step_by(of_rows.len())) {
            for (place, word) in words.iter().enumerate() {
                packing.word_of_rows(word, &integers, line_bytes, first, &mut of_rows);
                for (row, word) in tile.chunks_exact_mut(row_bytes).zip(&of_rows) {
                    if let Some(out) = row.as_chunks_mut().0.get_mut(place) {
                        *out = word.to_le_bytes();
                    }
                }
            }
        }
        Ok(codes)
    }

    fn zeroed(&self, len: usize) -> Result<Memory> {
        Memory::zeroed(len, &self.packed.qweight.info.name)
    }

    /// Assemble block `group` of row `row` from the heads and the spans from `first_span` on.
    fn fill(&self, row: usize, group: usize, heads: &[u8], spans: &[Made<'_>], first_span: usize, out: &mut [u8]) {
        let row = row - self.rows.start;
        let Some((head, mut codes)) = out.split_first_chunk_mut() else { return };
        *head = heads.as_chunks::<HEAD>().0.get(row * self.packed.groups + group).copied().unwrap_or_default();
        let group_size = self.packed.encoding.group_size as usize;
        let mut columns = group * group_size..(group + 1) * group_size;
        while !columns.is_empty() {
            let span = columns.start / SPAN;
            let of_span = self.columns(span);
            let taken = columns.start..columns.end.min(of_span.end);
            let from = self.code_bytes(row * of_span.len() + taken.start - of_span.start);
            let (out, rest) = codes.split_at_mut(self.code_bytes(taken.len()));
            let span = spans.get(span - first_span).and_then(|span| span.get(from..from + out.len()));
            out.copy_from_slice(span.unwrap_or_default());
            (codes, columns.start) = (rest, taken.end);
        }
    }
}

impl ReadBytes for Rows<'_> {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let Packed { groups, .. } = self.packed;
        let block_bytes = self.block().bytes;
        // Blocks are numbered across all rows.
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(out.len()));
        let blocks = start.zip(end).map(|(start, end)| start / block_bytes..end.div_ceil(block_bytes));
        let held = self.rows.start * groups..self.rows.end * groups;
        let Some(blocks) = blocks.filter(|blocks| held.start <= blocks.start && blocks.end <= held.end) else {
            let reason = format!("{} bytes at {offset} of {self:?}", out.len());
            return Err(Error::argument("offset", reason));
        };
        if out.is_empty() {
            return Ok(());
        }
        let group_size = self.packed.encoding.group_size as usize;
        let within_row = blocks.start / groups == (blocks.end - 1) / groups;
        let columns = match within_row {
            true => blocks.start % groups * group_size..((blocks.end - 1) % groups + 1) * group_size,
            false => 0..self.packed.cols,
        };
        let first_span = columns.start / SPAN;
        let spans = || self.spans.iter().enumerate().take(columns.end.div_ceil(SPAN)).skip(first_span);
        self.heads.begin(|| self.make_heads());
        spans().for_each(|(span, held)| held.begin(|| self.make_span(span)));
        let heads = self.heads.get(|| self.make_heads())?;
        let spans = spans().map(|(span, held)| held.get(|| self.make_span(span))).collect::<Result<Vec<_>>>()?;

        let (mut rest, mut skipped, mut partial) = (out, offset as usize % block_bytes, Vec::new());
        for block in blocks {
            let len = (block_bytes - skipped).min(rest.len());
            let (out, others) = rest.split_at_mut(len);
            let (row, group) = (block / groups, block % groups);
            if len == block_bytes {
                self.fill(row, group, &heads, &spans, first_span, out);
            } else {
                partial.resize(block_bytes, 0);
                self.fill(row, group, &heads, &spans, first_span, &mut partial);
                out.iter_mut().zip(partial.iter().skip(skipped)).for_each(|(out, byte)| *out = *byte);
            }
            (rest, skipped) = (others, 0);
        }
        Ok(())
    }

    fn narrowed<'b>(&self, bytes: Range<u64>) -> Option<Arc<dyn ReadBytes + 'b>>
    where
        Self: 'b,
    {
        let row_bytes = (self.block().bytes * self.packed.groups) as u64;
        let unit = ROW_UNIT as u64;
        let first = bytes.start / row_bytes / unit * unit;
        let end = bytes.end.div_ceil(row_bytes).next_multiple_of(unit).min(self.rows.end as u64);
        let rows = usize::try_from(first).ok()?.max(self.rows.start)..usize::try_from(end).ok()?;
        (rows != self.rows)
            .then(|| Arc::new(Rows::of(self.packed, self.order.clone(), rows)) as Arc<dyn ReadBytes + 'b>)
    }
}
