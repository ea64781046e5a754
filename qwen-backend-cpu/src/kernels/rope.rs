//! Rotary position embedding: pairs half a head apart are rotated by an angle that depends on their frequency and
//! position.
//!
//! ```text
//! x[i]           = x[i] * cos - x[i + dim/2] * sin
//! x[i + dim/2]   = x[i + dim/2] * cos + x[i] * sin
//! ```

use qwen_core::backend::HeadLayout;

use super::math::{load_first, store_first};
use super::scratch::Scratch;
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Rotate the query and key heads of a token; a piece is a token.
#[derive(Debug)]
pub(crate) struct Rope {
    pub(crate) qkv: Array<f32>,
    pub(crate) cos_sin: Array<f32>,
    pub(crate) heads: HeadLayout,
    pub(crate) rows: usize,
}

/// Rotate sixteen pairs.
///
/// # Safety
/// Sixteen values can be read at each pointer, and written at `a` and `b`.
#[inline(always)]
pub(crate) unsafe fn rotate<S: Simd>(s: S, a: *mut f32, b: *mut f32, cos: *const f32, sin: *const f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (x, y) = turn(s, s.load(a), s.load(b), s.load(cos), s.load(sin));
        s.store(x, a);
        s.store(y, b);
    }
}

#[inline(always)]
fn turn<S: Simd>(s: S, x: S::F, y: S::F, cos: S::F, sin: S::F) -> (S::F, S::F) {
    (s.sub(s.mul(x, cos), s.mul(y, sin)), s.add(s.mul(y, cos), s.mul(x, sin)))
}

impl Rope {
    pub(crate) fn pieces(&self) -> usize {
        // Empty rows would not be bounded by the buffers.
        if self.heads.qkv_size() == 0 { 0 } else { self.rows }
    }
}

impl Kernel for Rope {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, row: usize, _: &mut Scratch) {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = self.heads;
        let half = head_dim / 2;
        // SAFETY: a row belongs to one piece; operations that write the angles are done.
        unsafe {
            let cos = self.cos_sin.slice(row * head_dim, 2 * half).as_ptr();
            let sin = cos.add(half);
            for head in 0..num_attention_heads + num_key_value_heads {
                let at = row * self.heads.qkv_size() + head * head_dim;
                let a = self.qkv.slice_mut(at, head_dim).as_mut_ptr();
                let b = a.add(half);
                let mut i = 0;
                while i + LANES <= half {
                    rotate(s, a.add(i), b.add(i), cos.add(i), sin.add(i));
                    i += LANES;
                }
                let n = half - i;
                if n > 0 {
                    let (x, y) = (load_first(s, a.add(i), n), load_first(s, b.add(i), n));
                    let (x, y) = turn(s, x, y, load_first(s, cos.add(i), n), load_first(s, sin.add(i), n));
                    store_first(s, x, a.add(i), n);
                    store_first(s, y, b.add(i), n);
                }
            }
        }
    }
}
