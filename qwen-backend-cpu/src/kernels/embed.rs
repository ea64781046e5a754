//! Rows of the token embedding.

use std::sync::Arc;

use super::scratch::Scratch;
use crate::matrix::Matrix;
use crate::memory::Array;
use crate::simd::{Kernel, Simd};

/// `out[t] = table[ids[t]]`, zeros for an id outside; a piece is a token.
#[derive(Debug)]
pub(crate) struct Embed {
    pub(crate) ids: Array<u32>,
    pub(crate) table: Arc<Matrix>,
    pub(crate) out: Array<f32>,
    pub(crate) rows: usize,
}

impl Kernel for Embed {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, row: usize, _: &mut Scratch) {
        let width = self.table.layout.cols;
        // SAFETY: a row belongs to one piece; operations that write the ids are done.
        let (id, out) = unsafe { (self.ids.slice(row, 1)[0], self.out.slice_mut(row * width, width)) };
        self.table.decode_row(id as usize, out);
    }
}
