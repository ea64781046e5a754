//! Rows picked out of a matrix of activations.

use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, Simd};

/// `out[i] = x[indices[i]]`, zeros for an index outside; a piece is a row.
#[derive(Debug)]
pub(crate) struct GatherRows {
    pub(crate) x: Array<f32>,
    pub(crate) indices: Array<u32>,
    pub(crate) out: Array<f32>,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

impl Kernel for GatherRows {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, row: usize, _: &mut Scratch) {
        let width = self.width;
        // SAFETY: a row belongs to one piece; operations that write the inputs are done.
        unsafe {
            let out = self.out.slice_mut(row * width, width);
            let index = self.indices.slice(row, 1)[0] as usize;
            if width > 0 && index < self.x.len() / width {
                out.copy_from_slice(self.x.slice(index * width, width));
            } else {
                out.fill(0.0);
            }
        }
    }
}
