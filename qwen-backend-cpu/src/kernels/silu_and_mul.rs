//! The gate of the MLP applied to its other half.

use super::math::{load_first, silu_mul, store_first};
use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Values of a piece.
const RUN: usize = 8192;

/// `out = silu(gate) * up`, each row of the input being `[gate | up]`; a piece is a run within a row.
#[derive(Debug)]
pub(crate) struct SiluAndMul {
    pub(crate) gate_up: Array<f32>,
    pub(crate) out: Array<f32>,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

impl SiluAndMul {
    pub(crate) fn pieces(&self) -> usize {
        self.rows * self.width.div_ceil(RUN)
    }
}

impl Kernel for SiluAndMul {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, _: &mut Scratch) {
        let width = self.width;
        let runs = width.div_ceil(RUN);
        let (row, start) = (piece / runs, piece % runs * RUN);
        let len = RUN.min(width - start);
        // SAFETY: a run belongs to one piece; operations that write the input are done.
        unsafe {
            let gate = self.gate_up.slice(row * 2 * width + start, len).as_ptr();
            let up = self.gate_up.slice(row * 2 * width + width + start, len).as_ptr();
            let out = self.out.slice_mut(row * width + start, len).as_mut_ptr();
            let whole = len - len % LANES;
            for i in (0..whole).step_by(LANES) {
                s.store(silu_mul(s, s.load(gate.add(i)), s.load(up.add(i))), out.add(i));
            }
            let n = len - whole;
            if n > 0 {
                let (gate, up) = (load_first(s, gate.add(whole), n), load_first(s, up.add(whole), n));
                store_first(s, silu_mul(s, gate, up), out.add(whole), n);
            }
        }
    }
}
