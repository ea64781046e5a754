//! The exponential and functions based on it, on vectors.

use crate::simd::Simd;

/// `e^x` to about one unit in the last place (Cody and Waite's reduction, Moshier's polynomial from Cephes).
///
/// 0 below -87.33, where the result would not be a normal number; at most e^88.37. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const LOWEST: f32 = -87.336_54;
    let clamped = s.min(s.splat(88.376_26), s.max(s.splat(LOWEST), x));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    let magic = s.splat(12_582_912.0);
    let t = s.mul_add(clamped, s.splat(std::f32::consts::LOG2_E), magic);
    let n = s.sub(t, magic);
    // ln 2 in two parts, the first with few enough bits that its product with n is exact.
    let r = s.mul_add(n, s.splat(-0.693_359_4), clamped);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = s.mul_add(p, r, s.splat(c));
    }
    let p = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    s.zero_below(s.mul(p, s.pow2(t)), x, LOWEST)
}

/// `silu(gate) * up`, with `silu(x) = x / (1 + e^-x)`, and 0 where that is below 1e-36.
#[inline(always)]
pub(crate) fn silu_mul<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), gate));
    let silu = s.div(gate, s.add(s.splat(1.0), e));
    s.mul(s.zero_below(silu, gate, -88.376_26), up)
}

/// The first `n` of sixteen values at `p`, then zeros.
///
/// # Safety
/// `n` values can be read at `p`.
#[inline(always)]
pub(crate) unsafe fn load_first<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    let mut lanes = [0.0f32; 16];
    // SAFETY: the caller guarantees `n` values; `lanes` has sixteen.
    unsafe {
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(16));
        s.load(lanes.as_ptr())
    }
}

/// The first `n` lanes to `p`.
///
/// # Safety
/// `n` values can be written at `p`.
#[inline(always)]
pub(crate) unsafe fn store_first<S: Simd>(s: S, v: S::F, p: *mut f32, n: usize) {
    let mut lanes = [0.0f32; 16];
    // SAFETY: the caller guarantees `n` values; `lanes` has sixteen.
    unsafe {
        s.store(v, lanes.as_mut_ptr());
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(16));
    }
}
