//! Joining the spans of a row: online softmax (Milakov and Gimelshein 2018).

use std::sync::Arc;

use qwen_core::backend::HeadLayout;

use super::geometry::partial_len;
use super::schedule::Schedule;
use crate::kernels::math::{exp, store_first};
use crate::kernels::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Join the separately reduced spans of tokens; a piece is a token and a K/V head.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) heads: HeadLayout,
    pub(crate) partials: Array<f32>,
    pub(crate) out: Array<f32>,
}

impl Merge {
    pub(crate) fn pieces(&self) -> usize {
        self.schedule.joins.len()
    }
}

impl Kernel for Merge {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        let join = &self.schedule.joins[piece];
        let dim = self.heads.head_dim;
        let padded = dim.next_multiple_of(LANES);
        let len = partial_len(padded);
        let group = self.heads.num_attention_heads / self.heads.num_key_value_heads;
        for r in 0..group {
            let (mut m, mut l) = (f32::NEG_INFINITY, 0.0);
            let o = scratch.floats(padded);
            o.fill(0.0);
            for span in 0..join.spans {
                // SAFETY: the tasks that write the partial results are done.
                let partial = unsafe { self.partials.slice((join.partial + span * join.stride + r) * len, len) };
                merge(s, &mut m, &mut l, o, partial[padded], partial[padded + 1], &partial[..padded]);
            }
            let at = join.token * self.heads.q_size() + (join.head * group + r) * dim;
            // SAFETY: only this piece writes these heads of the token.
            unsafe { finish(s, o, l, self.out.slice_mut(at, dim)) };
        }
    }
}

/// Merge a span's results `m2, l2, o2` into `m, l, o`.
#[inline(always)]
pub(super) fn merge<S: Simd>(s: S, m: &mut f32, l: &mut f32, o: &mut [f32], m2: f32, l2: f32, o2: &[f32]) {
    let max = if *m > m2 { *m } else { m2 };
    let (a, b) = (exp(s, s.splat(*m - max)), exp(s, s.splat(m2 - max)));
    let sum = s.mul_add(s.splat(l2), b, s.mul(s.splat(*l), a));
    // All lanes are equal, so the largest is any of them.
    *l = s.hmax(sum);
    *m = max;
    for (o, o2) in o.chunks_exact_mut(LANES).zip(o2.chunks_exact(LANES)) {
        // SAFETY: both have sixteen values.
        unsafe { s.store(s.mul_add(s.load(o2.as_ptr()), b, s.mul(s.load(o.as_ptr()), a)), o.as_mut_ptr()) };
    }
}

/// `out = o / l`
#[inline(always)]
pub(super) fn finish<S: Simd>(s: S, o: &[f32], l: f32, out: &mut [f32]) {
    for (o, out) in o.chunks_exact(LANES).zip(out.chunks_mut(LANES)) {
        // SAFETY: `o` has sixteen values, and as many are written as `out` has.
        unsafe { store_first(s, s.div(s.load(o.as_ptr()), s.splat(l)), out.as_mut_ptr(), out.len()) };
    }
}
