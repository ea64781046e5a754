//! The index of the largest value of a row: first for each run of the row, then over the runs' results.

use qwen_core::backend::NON_FINITE;

use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Values of a piece.
const RUN: usize = 8192;

/// The best of each run of each row; a piece is a run.
#[derive(Debug)]
pub(crate) struct ArgmaxRuns {
    pub(crate) x: Array<f32>,
    /// `[row][run][2]`: the bits of the largest value and its index.
    pub(crate) best: Array<u32>,
    pub(crate) width: usize,
    pub(crate) valid: usize,
    pub(crate) rows: usize,
}

impl ArgmaxRuns {
    /// Runs of a row.
    pub(crate) fn runs(valid: usize) -> usize {
        valid.div_ceil(RUN)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.rows * Self::runs(self.valid)
    }
}

impl Kernel for ArgmaxRuns {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, _: &mut Scratch) {
        let runs = Self::runs(self.valid);
        let (row, start) = (piece / runs, piece % runs * RUN);
        let len = RUN.min(self.valid - start);
        // SAFETY: the result belongs to one piece; operations that write `x` are done.
        let (x, best) = unsafe { (self.x.slice(row * self.width + start, len), self.best.slice_mut(2 * piece, 2)) };
        let mut max = s.splat(f32::NEG_INFINITY);
        // Zero as long as all values are finite, since infinity minus itself is NaN.
        let mut off = s.splat(0.0);
        for chunk in x.chunks_exact(LANES) {
            // SAFETY: the chunk has sixteen values.
            let v = unsafe { s.load(chunk.as_ptr()) };
            max = s.max(max, v);
            off = s.add(off, s.sub(v, v));
        }
        let mut largest = s.hmax(max);
        let mut finite = s.sum(off) == 0.0;
        for &v in x.chunks_exact(LANES).remainder() {
            finite &= v.is_finite();
            largest = if v > largest { v } else { largest };
        }
        let index = x.iter().position(|&v| v == largest);
        best[0] = largest.to_bits();
        best[1] = match index {
            Some(index) if finite => (start + index) as u32,
            _ => NON_FINITE,
        };
    }
}

/// The best of the runs of a row; a piece is a row.
#[derive(Debug)]
pub(crate) struct ArgmaxRows {
    pub(crate) best: Array<u32>,
    pub(crate) out: Array<u32>,
    pub(crate) runs: usize,
    pub(crate) rows: usize,
}

impl Kernel for ArgmaxRows {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, row: usize, _: &mut Scratch) {
        // SAFETY: a row belongs to one piece; operations that write the runs are done.
        let (best, out) = unsafe { (self.best.slice(2 * row * self.runs, 2 * self.runs), self.out.slice_mut(row, 1)) };
        let (mut max, mut index, mut finite) = (f32::NEG_INFINITY, 0, true);
        for run in best.chunks_exact(2) {
            finite &= run[1] != NON_FINITE;
            if f32::from_bits(run[0]) > max {
                (max, index) = (f32::from_bits(run[0]), run[1]);
            }
        }
        out[0] = if finite { index } else { NON_FINITE };
    }
}
