//! Sixteen lanes in plain Rust: what every target has, and the twin that the others are tested against.
//!
//! Products and sums are rounded separately: a fused multiply-add without an instruction for it is a library call.

use half::f16;

use super::{LANES, Simd};

/// Element Rust; every CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

type Lanes = [f32; LANES];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

/// What the bf16 dot instruction does to a value that is too small for a normal f32, on the way in and out.
fn flush(v: f32) -> f32 {
    if v.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(v) } else { v }
}

impl Simd for Scalar {
    type F = Lanes;
    type Pairs = [u32; LANES];

    const GROUPS: usize = 1;
    const TOKENS: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> Lanes {
        [v; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Lanes {
        // SAFETY: the caller gives a pointer to sixteen f32.
        unsafe { p.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, v: Lanes, p: *mut f32) {
        // SAFETY: the caller gives a pointer to sixteen f32.
        unsafe { p.cast::<Lanes>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Lanes {
        // SAFETY: the caller gives a pointer to sixteen f16.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: Lanes, p: *mut u16) {
        let max = f16::MAX.to_f32();
        let bits = v.map(|v| f16::from_f32(if v.is_nan() { v } else { v.clamp(-max, max) }).to_bits());
        // SAFETY: the caller gives a pointer to sixteen f16.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [u32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen pairs of bf16.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn widen(self, pairs: [u32; LANES]) -> [Lanes; 2] {
        [pairs.map(|p| f32::from_bits(p << 16)), pairs.map(|p| f32::from_bits(p & 0xffff_0000))]
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Lanes, w: [u32; LANES], x: u32) -> Lanes {
        let [w0, w1] = self.widen(w);
        let (x0, x1) = (flush(f32::from_bits(x << 16)), flush(f32::from_bits(x & 0xffff_0000)));
        let mut out = acc;
        for (i, out) in out.iter_mut().enumerate() {
            // The product of two bf16 has sixteen bits and is exact, so that a fused multiply-add rounds no less.
            let odd = flush(flush(w1[i]) * x1 + flush(*out));
            *out = flush(flush(w0[i]) * x0 + odd);
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn zero_below(self, v: Lanes, x: Lanes, bound: f32) -> Lanes {
        zip(v, x, |v, x| if x < bound { 0.0 } else { v })
    }

    #[inline(always)]
    fn first(self, n: usize, a: Lanes, b: Lanes) -> Lanes {
        let mut out = b;
        for (i, (out, a)) in out.iter_mut().zip(a).enumerate() {
            *out = if i < n { a } else { *out };
        }
        out
    }

    #[inline(always)]
    fn pow2(self, t: Lanes) -> Lanes {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        fold(v, |a, b| a + b)
    }

    #[inline(always)]
    fn hmax(self, v: Lanes) -> f32 {
        fold(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

#[inline(always)]
fn fold(mut v: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
    }
    v[0]
}
