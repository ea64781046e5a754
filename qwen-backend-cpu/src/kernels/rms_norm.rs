//! Root-mean-square norm (Zhang and Sennrich 2019).
//!
//! ```text
//! out = x / sqrt(mean(x^2) + eps) * weight
//! ```
//!
//! Squares are summed in 64 lanes that are folded in a fixed order, so that each partial sum covers a 64th of the row.

use super::math::{load_first, store_first};
use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Norm of rows; a piece is a row.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) x: Array<f32>,
    pub(crate) weight: Array<f32>,
    pub(crate) eps: f32,
    pub(crate) out: Array<f32>,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

impl RmsNorm {
    pub(crate) fn pieces(&self) -> usize {
        // Empty rows would not be bounded by the buffers.
        if self.width == 0 { 0 } else { self.rows }
    }
}

impl Kernel for RmsNorm {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, row: usize, _: &mut Scratch) {
        let width = self.width;
        let tail = width % LANES;
        let whole = width - tail;
        // SAFETY: a row belongs to one piece; operations that write the inputs are done.
        unsafe {
            let out = self.out.slice_mut(row * width, width).as_mut_ptr();
            let weight = self.weight.slice(0, width).as_ptr();
            let x = self.x.slice(row * width, width).as_ptr();
            let mut sums = [s.splat(0.0); 4];
            let mut i = 0;
            while i + 4 * LANES <= whole {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let v = s.load(x.add(i + j * LANES));
                    *sum = s.mul_add(v, v, *sum);
                }
                i += 4 * LANES;
            }
            while i < whole {
                let v = s.load(x.add(i));
                sums[0] = s.mul_add(v, v, sums[0]);
                i += LANES;
            }
            let v = load_first(s, x.add(whole), tail);
            sums[1] = s.mul_add(v, v, sums[1]);
            let sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
            let scale = s.splat(1.0 / (sum / width as f32 + self.eps).sqrt());
            for i in (0..whole).step_by(LANES) {
                s.store(s.mul(s.mul(s.load(x.add(i)), scale), s.load(weight.add(i))), out.add(i));
            }
            let v = s.mul(s.mul(v, scale), load_first(s, weight.add(whole), tail));
            store_first(s, v, out.add(whole), tail);
        }
    }
}
