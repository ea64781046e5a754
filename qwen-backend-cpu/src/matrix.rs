//! A packed weight matrix.
//!
//! Rows lie in *groups* of sixteen, one lane a row, the columns in sequence; two groups are a *unit*, which is the
//! smallest piece of work. Rows are padded with zeros to whole units, columns to an even number:
//!
//! ```text
//! bf16       [group][cols / 2][16 rows][2 columns]     a line of 64 bytes is one operand of the dot product
//! f16, f32   [group][cols][16 rows]
//! ```
//!
//! Sums so run over the columns of one lane, never across lanes, and read the matrix as one stream.
//!
//! In a matrix for gate and up, the groups of the two alternate (and each is padded to whole groups), so that a unit has
//! a gate and its up side by side. Parts of several encodings are all stored as f32, which loses nothing.

use std::sync::OnceLock;

use qwen_core::backend::{WeightRole, WeightShape, WeightView};
use qwen_core::{Encoding, Error, Result};

use crate::memory::Memory;
use crate::simd::LANES;

/// Rows of a unit.
pub(crate) const UNIT: usize = 2 * LANES;

/// Groups that one task packs, so that its buffers serve more than one.
const GROUPS_AT_ONCE: usize = 8;

/// Where the rows of a matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row `r` is lane `r % 16` of group `r / 16`.
    Stacked,
    /// Groups of the upper half of the rows and of the lower half take turns.
    GateUp,
}

/// The shape of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) encoding: Encoding,
    pub(crate) order: Order,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// One group of a matrix: which rows it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// The row of the first lane.
    pub(crate) row: usize,
    /// Lanes that are rows; the others are padding.
    pub(crate) lanes: usize,
}

impl Layout {
    /// The layout of a matrix of this shape.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding that kernels do not have, and for sizes that memory cannot have.
    pub(crate) fn of_shape(shape: &WeightShape) -> Result<Layout> {
        let mut encodings = shape.parts.iter().map(|(encoding, _)| *encoding);
        let kernels = |encoding: &Encoding| matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16);
        if let Some(encoding) = encodings.clone().find(|encoding| !kernels(encoding)) {
            let reason = "CPU kernels take F32, F16 and BF16";
            return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
        }
        let first = encodings.next().unwrap_or(Encoding::F32);
        let encoding = if encodings.all(|encoding| encoding == first) { first } else { Encoding::F32 };
        let (rows, cols) = (shape.rows(), shape.cols);
        let order = if shape.role == WeightRole::GateUp && rows % 2 == 0 { Order::GateUp } else { Order::Stacked };
        // With the padding of both; everything that is computed from a layout stays below this.
        let most = |rows: usize| {
            let cols = cols.checked_next_multiple_of(2)?;
            let rows = rows.checked_add(2 * UNIT)?;
            encoding.row_bytes(cols)?.checked_mul(rows).filter(|bytes| *bytes <= isize::MAX as usize)
        };
        match most(rows) {
            Some(_) => Ok(Layout { encoding, order, rows, cols }),
            None => Err(Error::unsupported(format!("a matrix of {rows} x {cols} values"), "no memory is that large")),
        }
    }

    /// Columns with their padding.
    pub(crate) fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(2)
    }

    /// Units of two groups.
    pub(crate) fn units(&self) -> usize {
        match self.order {
            Order::Stacked => self.rows.div_ceil(UNIT),
            Order::GateUp => (self.rows / 2).div_ceil(LANES),
        }
    }

    /// Bytes of a group.
    pub(crate) fn group_bytes(&self) -> usize {
        self.encoding.bytes(LANES * self.padded_cols())
    }

    /// Bytes of the whole.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.units() * self.group_bytes()
    }

    /// Which rows group `group` holds.
    pub(crate) fn group(&self, group: usize) -> Group {
        let within =
            |first: usize, end: usize| Group { row: first.min(end), lanes: end.saturating_sub(first).min(LANES) };
        match self.order {
            Order::Stacked => within(group * LANES, self.rows),
            Order::GateUp => {
                let half = self.rows / 2;
                let Group { row, lanes } = within(group / 2 * LANES, half);
                Group { row: row + (group % 2) * half, lanes }
            }
        }
    }

    /// The group and lane of row `row`.
    pub(crate) fn place(&self, row: usize) -> (usize, usize) {
        match self.order {
            Order::Stacked => (row / LANES, row % LANES),
            Order::GateUp => {
                let half = self.rows / 2;
                (row % half / LANES * 2 + row / half, row % half % LANES)
            }
        }
    }
}

/// A packed matrix. Never changes after packing, so that backends may share it.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    pub(crate) memory: Memory,
}

impl Matrix {
    /// Check `view`, take the memory and let `parallel` pack the groups: it calls its argument for each number below
    /// its first, from as many threads as it likes.
    ///
    /// # Errors
    /// What is wrong with a part or its file; what the memory and `parallel` report.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        parallel: impl FnOnce(usize, &(dyn Fn(usize) + Sync)) -> Result<()>,
    ) -> Result<Matrix> {
        view.check()?;
        let layout = Layout::of_shape(&view.shape())?;
        let memory = Memory::zeroed(layout.bytes())?;
        let base = SendPtr(memory.ptr());
        let groups = 2 * layout.units();
        let failed = OnceLock::new();
        parallel(groups.div_ceil(GROUPS_AT_ONCE), &|run| {
            let mut buffers = vec![Vec::new(); view.parts.len()];
            for group in run * GROUPS_AT_ONCE..((run + 1) * GROUPS_AT_ONCE).min(groups) {
                if failed.get().is_some() {
                    return;
                }
                // SAFETY: groups are disjoint, within the memory, and each number is given once.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(base.get().add(group * layout.group_bytes()), layout.group_bytes())
                };
                if let Err(error) = pack_group(view, &layout, group, &mut buffers, out) {
                    // The first error is told; those after it have the same cause.
                    let _ = failed.set(error);
                }
            }
        })?;
        match failed.into_inner() {
            None => Ok(Matrix { layout, memory }),
            Some(error) => Err(error),
        }
    }

    /// The first byte of group `group`.
    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> *const u8 {
        debug_assert!(group < 2 * self.layout.units());
        self.memory.ptr().wrapping_add(group * self.layout.group_bytes())
    }

    /// Decode row `row` into `out`, or zeros when there is no such row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        if row >= self.layout.rows || out.len() > self.layout.cols {
            return out.fill(0.0);
        }
        let (group, lane) = self.layout.place(row);
        // SAFETY: the group lies within the memory, which never changes.
        let bytes = unsafe { std::slice::from_raw_parts(self.group(group), self.layout.group_bytes()) };
        let encoding = self.layout.encoding;
        match encoding {
            Encoding::Bf16 => {
                for (out, line) in out.chunks_mut(2).zip(bytes.chunks_exact(4 * LANES)) {
                    encoding.decode_row(&line[4 * lane..4 * lane + 4], out);
                }
            }
            _ => {
                let size = encoding.bytes(1);
                for (out, line) in out.chunks_mut(1).zip(bytes.chunks_exact(size * LANES)) {
                    encoding.decode_row(&line[size * lane..size * (lane + 1)], out);
                }
            }
        }
    }
}

/// A pointer that several threads may have, each for its own part of what it points to.
struct SendPtr(*mut u8);
// SAFETY: see the type.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    // Closures take the field itself where they name it, which would not be `Sync`.
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// Read and pack group `group`. `buffers` has one for each part, for rows that are read from a file: they stay in the
/// cache from the read to the packing.
fn pack_group(
    view: &WeightView<'_>,
    layout: &Layout,
    group: usize,
    buffers: &mut [Vec<u8>],
    out: &mut [u8],
) -> Result<()> {
    let Group { row: first, lanes } = layout.group(group);
    let mut rows: [&[u8]; LANES] = [&[]; LANES];
    let mut encodings = [layout.encoding; LANES];
    let (mut lane, mut part_start) = (0, 0);
    for (part, buffer) in view.parts.iter().zip(buffers) {
        // The rows of the group that this part has.
        let start = (first + lane).max(part_start).min(part_start + part.rows);
        let end = (first + lanes).clamp(start, part_start + part.rows);
        let bytes = part.read(start - part_start..end - part_start, buffer)?;
        let row_bytes = bytes.len() / (end - start).max(1);
        for row in bytes.chunks_exact(row_bytes.max(1)) {
            (rows[lane], encodings[lane]) = (row, part.encoding);
            lane += 1;
        }
        part_start += part.rows;
    }
    let rows = &rows[..lanes];
    if encodings.iter().any(|&encoding| encoding != layout.encoding) {
        let mut decoded = vec![0.0f32; layout.cols];
        for (lane, (row, encoding)) in rows.iter().zip(encodings).enumerate() {
            encoding.decode_row(row, &mut decoded);
            for (value, line) in decoded.iter().zip(out.chunks_exact_mut(4 * LANES)) {
                line[4 * lane..4 * lane + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        return Ok(());
    }
    match layout.encoding {
        // Two columns of bf16 are one element of the layout.
        Encoding::Bf16 | Encoding::F32 => interleave::<4>(rows, out),
        _ => interleave::<2>(rows, out),
    }
    Ok(())
}

/// `out[i][lane] = rows[lane][i]` for elements of `N` bytes, sixteen lanes wide.
fn interleave<const N: usize>(rows: &[&[u8]], out: &mut [u8]) {
    // Columns in short runs, so that the lines being filled stay in the cache while the rows take turns.
    const RUN: usize = 32;
    let len = rows.first().map_or(0, |row| row.len());
    for (run, lines) in out.chunks_mut(RUN * N * LANES).enumerate() {
        let start = (run * RUN * N).min(len);
        let end = ((run + 1) * RUN * N).min(len);
        for (lane, row) in rows.iter().enumerate() {
            // Elements of a size that the compiler knows: a move each, not a call.
            let (elements, rest) = row[start..end].as_chunks::<N>();
            let mut lines = lines.chunks_exact_mut(N * LANES);
            for (element, line) in elements.iter().zip(&mut lines) {
                line[N * lane..][..N].copy_from_slice(element);
            }
            // An odd column of bf16.
            if let (false, Some(line)) = (rest.is_empty(), lines.next()) {
                line[N * lane..][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_and_sizes_without_kernels_are_refused_by_name() {
        let layout = |encoding, rows, cols| {
            let parts = vec![(Encoding::Bf16, 32), (encoding, rows)];
            Layout::of_shape(&WeightShape { role: WeightRole::Linear, parts, cols })
        };
        let error = layout(Encoding::Q8_0, 32, 64).unwrap_err().to_string();
        assert!(error.contains("a matrix in Q8_0"), "{error}");
        for extreme in [1 << 53, 1 << 60, usize::MAX - 31, usize::MAX] {
            for (rows, cols) in [(extreme, 1 << 10), (1 << 10, extreme), (extreme, extreme)] {
                assert!(
                    matches!(layout(Encoding::Bf16, rows, cols), Err(Error::Unsupported { .. })),
                    "{rows} x {cols}"
                );
            }
        }
    }
}
