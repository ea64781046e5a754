//! The small operations on rows: `embed`, `gather_rows`, `add`, `silu_and_mul`.

use std::sync::Arc;

use super::Scratch;
use super::math::{load_first, silu_mul, store_first};
use crate::matrix::Matrix;
use crate::memory::Cells;
use crate::simd::{Kernel, LANES, Simd};

/// Values of a piece of an elementwise operation.
const RUN: usize = 8192;

/// `out[t] = table[ids[t]]`, zeros for an id outside; a piece is a token.
#[derive(Debug)]
pub(crate) struct Embed {
    pub(crate) ids: Cells<u32>,
    pub(crate) table: Arc<Matrix>,
    pub(crate) out: Cells<f32>,
    pub(crate) rows: usize,
}

impl Kernel for Embed {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, row: usize, _: &mut Scratch) {
        let width = self.table.layout.cols;
        // SAFETY: a row is one piece's alone; operations that write the ids are over.
        let (id, out) = unsafe { (self.ids.slice(row, 1)[0], self.out.slice_mut(row * width, width)) };
        self.table.decode_row(id as usize, out);
    }
}

/// `out[i] = x[indices[i]]`, zeros for an index outside; a piece is a row.
#[derive(Debug)]
pub(crate) struct GatherRows {
    pub(crate) x: Cells<f32>,
    pub(crate) indices: Cells<u32>,
    pub(crate) out: Cells<f32>,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

impl Kernel for GatherRows {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, row: usize, _: &mut Scratch) {
        let width = self.width;
        // SAFETY: a row is one piece's alone; operations that write the inputs are over.
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

/// `out = silu(gate) * up`, each row of the input being `[gate | up]`; a piece is a run within a row.
#[derive(Debug)]
pub(crate) struct SiluAndMul {
    pub(crate) gate_up: Cells<f32>,
    pub(crate) out: Cells<f32>,
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
        // SAFETY: a run is one piece's alone; operations that write the input are over.
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
