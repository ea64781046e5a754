//! A packed weight matrix.
//!
//! Rows are stored in *groups* of sixteen, one lane per row, with the columns in sequence; two groups are a *unit*,
//! which is the smallest piece of work. Rows are padded with zeros to whole units, columns of plain encodings to an
//! even number:
//!
//! ```text
//! bf16       [cols / 2][16 rows][2 columns]     a line of 64 bytes is one operand of the dot product
//! f16, f32   [cols][16 rows]
//! blocks     see [`crate::formats`]
//! ```
//!
//! So sums run over the columns of one lane, never across lanes, and read the matrix as one stream. Each group has its
//! own encoding: parts of a matrix in different encodings stay as they are, each starting a new unit.
//!
//! In a matrix for gate and up, the groups of the two alternate (and each is padded to whole groups), so that a unit has
//! a gate and its up side by side.

mod layout;
mod pack;

pub(crate) use layout::{Class, Group, Layout, MOST_INPUTS, Order, UNIT};

use qwen_core::backend::WeightView;
use qwen_core::{Encoding, Result};

use crate::formats::{self, SUB, staged, with_format};
use crate::memory::Memory;
use crate::simd::{LANES, Scalar};

/// A packed matrix. Never changes after packing, so that backends may share it.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    memory: Memory,
}

impl Matrix {
    /// Check `view`, allocate the memory and let `parallel` pack the groups: it calls its second argument for each
    /// number below its first, from any number of threads.
    ///
    /// # Errors
    /// For an invalid part or its file; errors of the allocation and of `parallel`.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        parallel: impl FnOnce(usize, &(dyn Fn(usize) + Sync)) -> Result<()>,
    ) -> Result<Matrix> {
        view.check()?;
        let layout = Layout::of_view(view)?;
        let memory = Memory::zeroed(layout.bytes)?;
        pack::pack(view, &layout, &memory, parallel)?;
        Ok(Matrix { layout, memory })
    }

    /// The first byte of group `group`.
    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> *const u8 {
        self.memory.ptr().wrapping_add(self.layout.groups[group].offset)
    }

    /// Decode row `row` into `out`, or zeros when there is no such row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        if row >= self.layout.rows || out.len() > self.layout.cols {
            return out.fill(0.0);
        }
        let Some((group, lane)) = self.layout.place(row) else { return out.fill(0.0) };
        let Group { encoding, bytes, input, .. } = self.layout.groups[group];
        // SAFETY: the group lies within the memory, which never changes.
        let bytes = unsafe { std::slice::from_raw_parts(self.group(group), bytes) };
        match encoding {
            Encoding::Bf16 => {
                for (out, line) in out.chunks_mut(2).zip(bytes.chunks_exact(4 * LANES)) {
                    encoding.decode_row(&line[4 * lane..4 * lane + 4], out);
                }
            }
            Encoding::F32 | Encoding::F16 => {
                let size = encoding.bytes(1);
                for (out, line) in out.chunks_mut(1).zip(bytes.chunks_exact(size * LANES)) {
                    encoding.decode_row(&line[size * lane..size * (lane + 1)], out);
                }
            }
            _ => {
                let order = self.layout.inputs.get(usize::from(input)).and_then(|input| input.column_order.as_deref());
                decode_blocks(encoding, self.layout.cols, bytes, lane, |col, value| {
                    let col = order.map_or(col, |order| order[col] as usize);
                    if let Some(out) = out.get_mut(col) {
                        *out = value;
                    }
                });
            }
        }
    }
}

/// Call `each` with the values of row `lane` of a packed group, by stored column.
fn decode_blocks(encoding: Encoding, cols: usize, bytes: &[u8], lane: usize, mut put: impl FnMut(usize, f32)) {
    let Some((scale_bytes, _)) = formats::group_bytes(encoding, cols) else { return };
    let (scales, codes) = bytes.split_at(scale_bytes);
    let mut values = [0.0; SUB * LANES];
    with_format!(encoding, format => {
        for sub in 0..cols / SUB {
            // SAFETY: the group has all sub-blocks of its columns, and `values` has room for one.
            unsafe { staged::values(Scalar, format, scales.as_ptr(), codes.as_ptr(), sub, values.as_mut_ptr()) };
            for (i, value) in values.iter().skip(lane).step_by(LANES).enumerate() {
                put(SUB * sub + i, *value);
            }
        }
    }, else ());
}
