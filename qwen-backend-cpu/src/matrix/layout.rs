//! Which rows each group of a packed matrix holds, their encoding and their position.

use std::sync::Arc;

use qwen_core::backend::{WeightRole, WeightShape, WeightView};
use qwen_core::{Encoding, Error, Result};

use crate::formats;
use crate::simd::LANES;

/// Rows of a unit.
pub(crate) const UNIT: usize = 2 * LANES;

/// The most forms of activations that a product may need.
pub(crate) const MOST_INPUTS: usize = 4;

/// The order of a matrix's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Sequential; parts in another encoding start a new unit.
    Stacked,
    /// Groups of the upper and the lower half of the rows alternate.
    GateUp,
}

/// The form of the activations that a group is multiplied with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) class: Class,
    /// The input feature of each stored column, if columns are reordered.
    pub(crate) column_order: Option<Arc<[u32]>>,
}

/// Encodings that need their activations in the same form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// f32 and f16.
    Plain,
    Bf16,
    /// Block formats.
    Blocks,
}

/// Sixteen rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// The row of the first lane.
    pub(crate) row: usize,
    /// Lanes that are rows; the others are padding.
    pub(crate) lanes: usize,
    pub(crate) encoding: Encoding,
    /// Its index in [`Layout::inputs`].
    pub(crate) input: u8,
    /// Its start.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// The shape of a packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) order: Order,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// An even number of them.
    pub(crate) groups: Vec<Group>,
    pub(crate) inputs: Vec<Input>,
    /// The total size in bytes.
    pub(crate) bytes: usize,
}

/// Rows in one encoding, top to bottom.
struct Run {
    rows: usize,
    encoding: Encoding,
    input: u8,
}

impl Layout {
    /// The layout of a matrix of this shape whose columns are in order.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for sizes that cannot be addressed.
    pub(crate) fn of_shape(shape: &WeightShape) -> Result<Layout> {
        let parts = shape.parts.iter().map(|(encoding, rows)| (*encoding, *rows, None));
        Layout::new(shape.role, shape.rows(), shape.cols, parts)
    }

    /// The layout of `view`.
    ///
    /// # Errors
    /// As [`Layout::of_shape`].
    pub(crate) fn of_view(view: &WeightView<'_>) -> Result<Layout> {
        let parts = view.parts.iter().map(|part| (part.encoding, part.rows, part.column_order.clone()));
        Layout::new(view.role, view.rows(), view.cols(), parts)
    }

    fn new(
        role: WeightRole,
        rows: usize,
        cols: usize,
        parts: impl Iterator<Item = (Encoding, usize, Option<Arc<[u32]>>)>,
    ) -> Result<Layout> {
        let mut inputs: Vec<Input> = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        for (encoding, rows, order) in parts {
            let class = match encoding {
                Encoding::F32 | Encoding::F16 => Class::Plain,
                Encoding::Bf16 => Class::Bf16,
                _ => Class::Blocks,
            };
            let same = |input: &Input| input.class == class && input.column_order == order;
            let input = inputs.iter().position(same).unwrap_or_else(|| {
                inputs.push(Input { class, column_order: order.clone() });
                inputs.len() - 1
            });
            if input >= MOST_INPUTS {
                let reason = format!("its parts need their input in more than {MOST_INPUTS} forms");
                return Err(Error::unsupported(format!("a matrix of {} x {cols} values", rows), reason));
            }
            match runs.last_mut() {
                Some(last) if last.encoding == encoding && usize::from(last.input) == input => last.rows += rows,
                _ => runs.push(Run { rows, encoding, input: input as u8 }),
            }
        }
        let mut layout = Layout { order: Order::Stacked, rows, cols, groups: Vec::new(), inputs, bytes: 0 };
        // Gate and up are one run of both, or a run each.
        let halves = match (role, &runs[..]) {
            (WeightRole::GateUp, [both]) if rows.is_multiple_of(2) => Some([(both, 0), (both, rows / 2)]),
            (WeightRole::GateUp, [gate, up]) if gate.rows == up.rows => Some([(gate, 0), (up, rows / 2)]),
            _ => None,
        };
        if let Some(halves) = halves {
            layout.order = Order::GateUp;
            layout.reserve(2 * (rows / 2).div_ceil(LANES))?;
            for at in (0..rows / 2).step_by(LANES) {
                for (run, first) in halves {
                    layout.push(run, first + at, LANES.min(rows / 2 - at))?;
                }
            }
            return Ok(layout);
        }
        layout.reserve(rows.div_ceil(LANES).saturating_add(2 * runs.len()))?;
        let mut first = 0;
        for run in &runs {
            for at in (0..run.rows.next_multiple_of(UNIT)).step_by(LANES) {
                let row = at.min(run.rows);
                layout.push(run, first + row, LANES.min(run.rows - row))?;
            }
            first += run.rows;
        }
        Ok(layout)
    }

    /// Reserve space for `groups`, unless they could not fit in memory in any encoding.
    fn reserve(&mut self, groups: usize) -> Result<()> {
        // In any encoding a group takes more than a byte per eight columns; its entry here is at least that large, too.
        let least = groups.checked_mul(self.cols.max(64) / 8).filter(|bytes| *bytes <= isize::MAX as usize / 2);
        let reserved = least.and_then(|_| self.groups.try_reserve_exact(groups).ok());
        reserved.ok_or_else(|| self.too_large())
    }

    fn push(&mut self, run: &Run, row: usize, lanes: usize) -> Result<()> {
        let bytes = match run.encoding {
            encoding @ (Encoding::F32 | Encoding::F16 | Encoding::Bf16) => {
                self.cols.checked_next_multiple_of(2).and_then(|cols| encoding.row_bytes(cols)?.checked_mul(LANES))
            }
            encoding if formats::group_bytes(encoding, self.cols).is_none() => {
                let reason = "CPU kernels take F32, F16, BF16 and the block formats whose blocks are multiples of 32";
                return Err(Error::unsupported(format!("a matrix in {encoding} of {} columns", self.cols), reason));
            }
            encoding => formats::group_bytes(encoding, self.cols)
                .and_then(|(scales, codes)| scales.checked_add(codes)?.checked_next_multiple_of(formats::LINE)),
        };
        let end = bytes.and_then(|bytes| self.bytes.checked_add(bytes)).filter(|end| *end <= isize::MAX as usize);
        let (Some(bytes), Some(end)) = (bytes, end) else { return Err(self.too_large()) };
        let Run { encoding, input, .. } = *run;
        self.groups.push(Group { row, lanes, encoding, input, offset: self.bytes, bytes });
        self.bytes = end;
        Ok(())
    }

    fn too_large(&self) -> Error {
        let what = format!("a matrix of {} x {} values", self.rows, self.cols);
        Error::unsupported(what, "no memory is that large")
    }

    /// Columns including padding.
    pub(crate) fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(2)
    }

    /// Units of two groups.
    pub(crate) fn units(&self) -> usize {
        self.groups.len() / 2
    }

    /// Whether row `r` is lane `r % 16` of group `r / 16`.
    pub(crate) fn is_stacked(&self) -> bool {
        self.order == Order::Stacked
            && self.groups.iter().enumerate().all(|(i, group)| group.row == i * LANES || group.lanes == 0)
    }

    /// The group and lane of row `row`.
    pub(crate) fn place(&self, row: usize) -> Option<(usize, usize)> {
        let group = match self.order {
            Order::Stacked => self.groups.partition_point(|group| group.row <= row).checked_sub(1)?,
            Order::GateUp => {
                let half = self.rows / 2;
                row % half / LANES * 2 + row / half
            }
        };
        // Padding groups start at the same row as the next group.
        let group = (0..=group).rev().find(|&group| self.groups.get(group).is_some_and(|group| group.lanes > 0))?;
        let lane = row.checked_sub(self.groups.get(group)?.row)?;
        (lane < LANES).then_some((group, lane))
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
        for (encoding, cols) in [(Encoding::Q8_0, 48), (Encoding::Q4K, 96)] {
            let error = layout(encoding, 32, cols).unwrap_err().to_string();
            assert!(error.contains(&format!("a matrix in {encoding} of {cols} columns")), "{error}");
        }
        for extreme in [1 << 53, 1 << 60, usize::MAX - 31, usize::MAX] {
            for (rows, cols) in [(extreme, 1 << 10), (1 << 10, extreme), (extreme, extreme)] {
                assert!(
                    matches!(layout(Encoding::Bf16, rows, cols), Err(Error::Unsupported { .. })),
                    "{rows} x {cols}"
                );
            }
        }
    }

    #[test]
    fn every_row_has_a_place() {
        for role in [WeightRole::Linear, WeightRole::GateUp] {
            for parts in [
                vec![(Encoding::Bf16, 70)],
                vec![(Encoding::Q8_0, 40), (Encoding::Q4_0, 40)],
                vec![(Encoding::Q4_0, 33), (Encoding::Q4_0, 7), (Encoding::F32, 1), (Encoding::Q4_0, 95)],
            ] {
                let shape = WeightShape { role, parts, cols: 64 };
                let layout = Layout::of_shape(&shape).unwrap();
                let mut seen = vec![false; layout.rows];
                for (index, group) in layout.groups.iter().enumerate() {
                    for lane in 0..group.lanes {
                        assert_eq!(layout.place(group.row + lane), Some((index, lane)), "{shape:?}");
                        assert!(!std::mem::replace(&mut seen[group.row + lane], true));
                    }
                }
                assert!(seen.into_iter().all(|seen| seen), "{shape:?}");
                assert!(layout.groups.len().is_multiple_of(2), "{shape:?}");
            }
        }
    }
}
