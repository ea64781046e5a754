//! Scaled rows added to some of the rows of a matrix of activations.

use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, Simd};

/// Columns of a piece.
const RUN: usize = 256;

/// `out[indices[i]] += scale * x[i]`, nothing for an index outside. A piece is a run of columns of all rows, so that no
/// two pieces write the same value, whatever the indices.
#[derive(Debug)]
pub(crate) struct AddRows {
    pub(crate) x: Array<f32>,
    pub(crate) indices: Array<u32>,
    pub(crate) scale: f32,
    pub(crate) out: Array<f32>,
    pub(crate) out_rows: usize,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

impl AddRows {
    pub(crate) fn pieces(&self) -> usize {
        if self.rows == 0 { 0 } else { self.width.div_ceil(RUN) }
    }
}

impl Kernel for AddRows {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, piece: usize, _: &mut Scratch) {
        let start = piece * RUN;
        let len = RUN.min(self.width - start);
        // SAFETY: a run of columns belongs to one piece; operations that write the inputs are done.
        let indices = unsafe { self.indices.slice(0, self.rows) };
        for (row, &index) in indices.iter().enumerate() {
            let index = index as usize;
            if index >= self.out_rows {
                continue;
            }
            // SAFETY: as above; the backend checked both sizes.
            let (out, x) = unsafe {
                (self.out.slice_mut(index * self.width + start, len), self.x.slice(row * self.width + start, len))
            };
            for (out, x) in out.iter_mut().zip(x) {
                *out += self.scale * x;
            }
        }
    }
}
