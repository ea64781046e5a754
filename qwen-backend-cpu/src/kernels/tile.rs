//! The register tile: products of a few groups of sixteen rows with a few tokens.
//!
//! ```text
//! acc[t][g][lane] += sum_k w[g][k][lane] * x[t][k]        k in sequence, one addition after the other
//! ```
//!
//! A line of each group is loaded once and used for all tokens of the tile; values of `x` are broadcast. The arithmetic
//! does not depend on the number of tokens or groups, so all tile shapes give a row the same bits. Attention uses the
//! same tile for its scores and its weighted sums.

use crate::simd::{LANES, Simd, array};

/// The most tokens of a tile on any instruction set.
pub(crate) const MOST_TOKENS: usize = 12;

/// The layout of a group's elements, and their multiplication with those of `x`.
pub(crate) trait Weights<S: Simd> {
    /// Columns of a line.
    const COLS: usize;
    /// Bytes of a line.
    const LINE: usize;
    /// Elements of `x` that are multiplied with a line.
    const STEP: usize;
    /// An element of `x`.
    type X: Copy;
    /// A line in registers.
    type W: Copy;
    /// The factor of a line, in all lanes.
    type B: Copy;

    /// # Safety
    /// A line can be read at `p`.
    unsafe fn load(s: S, p: *const u8) -> Self::W;
    /// # Safety
    /// `STEP` elements of `x`, `xk` apart, can be read.
    unsafe fn broadcast(s: S, x: *const Self::X, xk: usize) -> Self::B;
    /// `acc + w * x`
    fn mul_add(s: S, acc: S::F, w: Self::W, x: Self::B) -> S::F;
}

/// f32 weights, f32 `x`.
pub(crate) struct F32;
/// f16 weights, f32 `x`.
pub(crate) struct F16;
/// Signed bytes, whose scale is applied elsewhere, f32 `x`.
pub(crate) struct Codes;
/// bf16 weights, decoded exactly, f32 `x`.
pub(crate) struct Bf16;
/// bf16 weights and `x`, multiplied and added by the dot product of pairs.
pub(crate) struct Bf16Dot;

/// Weights of one column per line that are converted to f32 when they are loaded: the name, the bytes of a weight, the
/// load.
macro_rules! single_columns {
    ($($name:ident, $bytes:literal, |$s:ident, $p:ident| $load:expr;)*) => {$(
        impl<S: Simd> Weights<S> for $name {
            const COLS: usize = 1;
            const LINE: usize = $bytes * LANES;
            const STEP: usize = 1;
            type X = f32;
            type W = S::F;
            type B = S::F;

            #[inline(always)]
            unsafe fn load($s: S, $p: *const u8) -> S::F {
                // SAFETY: guaranteed by the caller.
                unsafe { $load }
            }

            #[inline(always)]
            unsafe fn broadcast(s: S, x: *const f32, _: usize) -> S::F {
                // SAFETY: guaranteed by the caller.
                s.splat(unsafe { *x })
            }

            #[inline(always)]
            fn mul_add(s: S, acc: S::F, w: S::F, x: S::F) -> S::F {
                s.mul_add(w, x, acc)
            }
        }
    )*};
}

single_columns! {
    F32, 4, |s, p| s.load(p.cast());
    F16, 2, |s, p| s.load_f16(p.cast());
    Codes, 1, |s, p| s.ints_to_f(s.load_i8(p));
}

impl<S: Simd> Weights<S> for Bf16 {
    const COLS: usize = 2;
    const LINE: usize = 4 * LANES;
    const STEP: usize = 2;
    type X = f32;
    type W = [S::F; 2];
    type B = [S::F; 2];

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> [S::F; 2] {
        // SAFETY: guaranteed by the caller.
        s.widen(unsafe { s.load_pairs(p.cast()) })
    }

    #[inline(always)]
    unsafe fn broadcast(s: S, x: *const f32, xk: usize) -> [S::F; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe { [s.splat(*x), s.splat(*x.add(xk))] }
    }

    #[inline(always)]
    fn mul_add(s: S, acc: S::F, w: [S::F; 2], x: [S::F; 2]) -> S::F {
        s.mul_add(w[1], x[1], s.mul_add(w[0], x[0], acc))
    }
}

impl<S: Simd> Weights<S> for Bf16Dot {
    const COLS: usize = 2;
    const LINE: usize = 4 * LANES;
    const STEP: usize = 1;
    type X = u32;
    type W = S::Pairs;
    type B = u32;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::Pairs {
        // SAFETY: guaranteed by the caller.
        unsafe { s.load_pairs(p.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(_: S, x: *const u32, _: usize) -> u32 {
        // SAFETY: guaranteed by the caller.
        unsafe { *x }
    }

    #[inline(always)]
    fn mul_add(s: S, acc: S::F, w: S::Pairs, x: u32) -> S::F {
        s.dot_bf16(acc, w, x)
    }
}

/// `acc` plus the products of `lines` lines of each group with `T` tokens: token `t` has its element for line `i` at
/// `x + i * STEP * xk + t * xt`. With `AHEAD`, lines that many bytes ahead are prefetched.
///
/// # Safety
/// All those lines and elements can be read.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn accumulate<S: Simd, W: Weights<S>, const G: usize, const T: usize, const AHEAD: usize>(
    s: S,
    mut acc: [[S::F; G]; T],
    w: [*const u8; G],
    x: *const W::X,
    xk: usize,
    xt: usize,
    lines: usize,
) -> [[S::F; G]; T] {
    for i in 0..lines {
        // SAFETY: the caller guarantees the lines and elements; a prefetch may have any address.
        unsafe {
            let line = array!(g < G => W::load(s, w[g].add(i * W::LINE)));
            if AHEAD > 0 {
                for w in w {
                    s.prefetch(w.wrapping_add(i * W::LINE + AHEAD));
                }
            }
            for (t, acc) in acc.iter_mut().enumerate() {
                let value = W::broadcast(s, x.add(i * W::STEP * xk + t * xt), xk);
                for g in 0..G {
                    acc[g] = W::mul_add(s, acc[g], line[g], value);
                }
            }
        }
    }
    acc
}

/// Call a function generic over the number of tokens, `1 ..= S::TOKENS`, with a number known at run time.
macro_rules! by_tokens {
    ($tokens:expr, $max:expr, $n:ident => $call:expr) => {
        $crate::kernels::tile::by_tokens!(@ $tokens, $max, $n => $call, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $tokens:expr, $max:expr, $n:ident => $call:expr, $($number:literal)*) => {
        match $tokens {
            // A constant, so that calls with more than the maximum number of tokens are not compiled.
            $($number if const { $number <= $max } => {
                const $n: usize = $number;
                $call
            })*
            tokens => unreachable!("a tile of {tokens} tokens"),
        }
    };
}
pub(crate) use by_tokens;
