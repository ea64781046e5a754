//! Sums element by element.

use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, Simd};

/// Values of a piece.
const RUN: usize = 8192;

/// `x += y`; a piece is a run of values.
#[derive(Debug)]
pub(crate) struct Add {
    pub(crate) x: Array<f32>,
    pub(crate) y: Array<f32>,
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
        // SAFETY: a run belongs to one piece; operations that write `y` are done.
        let (x, y) = unsafe { (self.x.slice_mut(start, len), self.y.slice(start, len)) };
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}
