//! Products with block formats: integer dot products of a sub-block, scaled and added as f32.
//!
//! ```text
//! acc[t][g][lane] += (sum_k code[g][lane][k] * x[t][k]) * scale[g][lane] * x_scale[t] + offset[g][lane] * x_sum[t]
//! ```
//!
//! with `k` over 32 columns, sub-block after sub-block. The integers are exact and the f32 operations are always the
//! same in the same order, whether lines are read directly from the packed codes (few tokens) or were unpacked before
//! ([`staged`], many tokens).

use std::ops::Range;

use crate::formats::{Affine, Format, LINE, LINES, staged};
use crate::kernels::panel::{INT8_WORDS, SCALE, SCALED_SUMS, SUMS};
use crate::simd::{Simd, array, partial_lines};

/// A source of sub-blocks of `G` groups. The constants are as in [`Format`]; zero points are offsets here.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Source<S: Simd, const G: usize> {
    const SIGNED: bool;
    const MOST: i32;
    const HALVES: bool;
    const OFFSETS: bool;

    /// The code that stands for zero in all rows.
    fn zero(&self) -> i32;
    /// The affine of sub-block `sub`, and the position of its lines.
    unsafe fn begin(&self, s: S, sub: usize) -> ([Affine<S::F>; G], [*const u8; G]);
    /// Line `line` of the sub-block at `at`.
    unsafe fn line(&self, s: S, at: *const u8, line: usize) -> S::Bytes;
}

/// Packed codes.
pub(crate) struct Packed<F, const G: usize> {
    pub(crate) format: F,
    pub(crate) scales: [*const u8; G],
    pub(crate) codes: [*const u8; G],
}

/// Prefetch distance for codes, in bytes.
const AHEAD: usize = 1024;

impl<S: Simd, F: Format, const G: usize> Source<S, G> for Packed<F, G> {
    const SIGNED: bool = F::SIGNED;
    const MOST: i32 = F::MOST;
    const HALVES: bool = F::HALVES;
    const OFFSETS: bool = F::OFFSETS || F::ZERO_POINTS;

    #[inline(always)]
    fn zero(&self) -> i32 {
        F::ZERO
    }

    #[inline(always)]
    unsafe fn begin(&self, s: S, sub: usize) -> ([Affine<S::F>; G], [*const u8; G]) {
        let found = array!(g < G => staged::find(self.format, self.scales[g], self.codes[g], sub));
        for (_, codes, _) in found {
            for line in 0..F::BITS {
                s.prefetch(codes.wrapping_add(AHEAD + LINE * line));
            }
        }
        // SAFETY: guaranteed by the caller.
        let affine = array!(g < G => unsafe { staged::affine(s, self.format, found[g].0, found[g].2) });
        (affine, array!(g < G => found[g].1))
    }

    #[inline(always)]
    unsafe fn line(&self, s: S, at: *const u8, line: usize) -> S::Bytes {
        // SAFETY: guaranteed by the caller.
        unsafe { self.format.line(s, at, line) }
    }
}

/// Unpacked sub-blocks, from sub-block `first` on. `BITS` is 4, 5 or 6, for the largest code.
pub(crate) struct Apart<const G: usize, const BITS: i32, const SIGNED: bool, const HALVES: bool, const OFFSETS: bool> {
    pub(crate) first: usize,
    pub(crate) at: [*const u8; G],
    pub(crate) zero: i32,
}

impl<S: Simd, const G: usize, const BITS: i32, const SIGNED: bool, const HALVES: bool, const OFFSETS: bool> Source<S, G>
    for Apart<G, BITS, SIGNED, HALVES, OFFSETS>
{
    const SIGNED: bool = SIGNED;
    const MOST: i32 = if SIGNED { 128 } else { (1 << BITS) - 1 };
    const HALVES: bool = HALVES;
    const OFFSETS: bool = OFFSETS;

    #[inline(always)]
    fn zero(&self) -> i32 {
        self.zero
    }

    #[inline(always)]
    unsafe fn begin(&self, s: S, sub: usize) -> ([Affine<S::F>; G], [*const u8; G]) {
        let at = array!(g < G => self.at[g].wrapping_add((sub - self.first) * staged::BYTES));
        // SAFETY: guaranteed by the caller.
        (array!(g < G => unsafe { staged::affine_apart(s, at[g]) }), at)
    }

    #[inline(always)]
    unsafe fn line(&self, s: S, at: *const u8, line: usize) -> S::Bytes {
        // SAFETY: guaranteed by the caller.
        unsafe { s.load_bytes(at.add(LINE * line)) }
    }
}

/// The products of the sub-blocks `subs` with `T` tokens, added to zero in order. `x` is the tile of an int8 panel.
///
/// # Safety
/// The source has the sub-blocks and the tile has them too.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd, R: Source<S, G>, const G: usize, const T: usize>(
    s: S,
    source: &R,
    x: *const u32,
    subs: Range<usize>,
) -> [[S::F; G]; T] {
    let halves = if R::HALVES { 2 } else { 1 };
    let lines = LINES / halves;
    let room = partial_lines::<S>(R::MOST).min(lines);
    // The offset of every code of a row.
    let zero = if R::SIGNED { S::SIGNED_OFFSET } else { source.zero() };
    let mut acc = [[s.splat(0.0); G]; T];
    for sub in subs {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (affine, at) = source.begin(s, sub);
            let x = x.add(sub * INT8_WORDS * T);
            let mut products = [[s.splat(0.0); G]; T];
            for half in 0..halves {
                let sums = if R::HALVES { SUMS + 1 + half } else { SUMS };
                let mut ints = [[s.splat_ints(0); G]; T];
                if zero != 0 {
                    for (t, ints) in ints.iter_mut().enumerate() {
                        *ints = [s.splat_ints(-zero * *x.add(sums * T + t) as i32); G];
                    }
                }
                for run in (half * lines..(half + 1) * lines).step_by(room) {
                    let mut partial = array!(t < T => array!(g < G => s.partial(ints[t][g])));
                    for line in run..run + room {
                        let w = array!(g < G => source.line(s, at[g], line));
                        for (t, partial) in partial.iter_mut().enumerate() {
                            let x = *x.add(line * T + t);
                            for g in 0..G {
                                partial[g] = if R::SIGNED {
                                    s.dot_signed(partial[g], w[g], x)
                                } else {
                                    s.dot(partial[g], w[g], x)
                                };
                            }
                        }
                    }
                    for (ints, partial) in ints.iter_mut().zip(partial) {
                        for g in 0..G {
                            ints[g] = s.fold(ints[g], partial[g]);
                        }
                    }
                }
                for (products, ints) in products.iter_mut().zip(ints) {
                    for g in 0..G {
                        let (scale, value) = (affine[g].scale[half], s.ints_to_f(ints[g]));
                        products[g] =
                            if half == 0 { s.mul(value, scale) } else { s.mul_add(value, scale, products[g]) };
                    }
                }
            }
            for (t, acc) in acc.iter_mut().enumerate() {
                let scale = s.splat(f32::from_bits(*x.add(SCALE * T + t)));
                for g in 0..G {
                    acc[g] = s.mul_add(products[t][g], scale, acc[g]);
                    if R::OFFSETS {
                        for half in 0..halves {
                            let sums = if R::HALVES { SCALED_SUMS + 1 + half } else { SCALED_SUMS };
                            let sum = s.splat(f32::from_bits(*x.add(sums * T + t)));
                            acc[g] = s.mul_add(affine[g].offset[half], sum, acc[g]);
                        }
                    }
                }
            }
        }
    }
    acc
}
