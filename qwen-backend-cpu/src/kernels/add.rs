//! Sums element by element.

use super::scratch::Scratch;
use crate::memory::Cells;
use crate::simd::{Kernel, Simd};

/// Values of a piece.
const RUN: usize = 8192;

/// `x += y`; a piece is a run of values.
#[derive(Debug)]
pub(crate) struct Add {
    pub(crate) x: Cells<f32>,
    pub(crate) y: Cells<f32>,
    pub(crate) len: usize,
}

impl Add {
    pub(crate) fn pieces(&self) -> usize {
        self.len.div_ceil(RUN)
    }
}

impl Kernel for Add {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, piece: usize, _: &mut Scratch) {
        let start = piece * RUN;
        let len = RUN.min(self.len - start);
        // SAFETY: a run is one piece's alone; operations that write `y` are over.
        let (x, y) = unsafe { (self.x.slice_mut(start, len), self.y.slice(start, len)) };
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}
