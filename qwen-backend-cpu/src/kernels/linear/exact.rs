//! Products with exactly decoded block formats and f32 activations.

use std::ops::Range;

use super::super::tile::{self, by_tokens};
use super::int8::groups_at_once;
use super::{Groups, SPAN, put};
use crate::formats::{Format, SUB, staged, with_format};
use crate::simd::{Dot, LANES, Part, Simd};

/// Multiply groups of one block format with activations that were not rounded.
///
/// # Safety
/// As [`Part::run`].
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(s: S, part: Groups<'_>) {
    let part = &part;
    for from in part.cols.clone().step_by(SPAN) {
        let cols = from..(from + SPAN).min(part.cols.end);
        // SAFETY: guaranteed by the caller.
        unsafe {
            with_format!(part.encoding, format => s.call(&Decode { part, format, cols: cols.clone() }), else ());
            s.call(&Tiles { part, cols });
        }
    }
}

/// The decoded columns of a group: `[columns of a span][16 rows]`.
fn decoded(part: &Groups<'_>, group: usize) -> *mut f32 {
    part.piece.stage.cast::<f32>().wrapping_add((group - part.groups.start) * SPAN * LANES)
}

/// Decodes columns.
struct Decode<'a, F> {
    part: &'a Groups<'a>,
    format: F,
    cols: Range<usize>,
}

impl<F: Format> Part for Decode<'_, F> {
    const DOT: Dot = Dot::None;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        for group in self.part.groups.clone() {
            let (scales, codes) = self.part.scales_and_codes(group);
            for col in self.cols.clone().step_by(SUB) {
                let out = decoded(self.part, group).wrapping_add((col - self.cols.start) * LANES);
                // SAFETY: the group has the sub-block; a span of two groups fits in the stage.
                unsafe { staged::values(s, self.format, scales, codes, col / SUB, out) }
            }
        }
    }
}

/// Multiplies decoded columns with all tiles.
struct Tiles<'a> {
    part: &'a Groups<'a>,
    cols: Range<usize>,
}

impl Part for Tiles<'_> {
    const DOT: Dot = Dot::None;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        let part = self.part;
        // SAFETY: groups, columns and tiles are those of the matrix and the panel.
        unsafe { groups_at_once!(S, part, |first, G| self.groups::<S, G>(s, first)) }
    }
}

impl Tiles<'_> {
    /// # Safety
    /// As [`Part::run`].
    #[inline(always)]
    unsafe fn groups<S: Simd, const G: usize>(&self, s: S, first: usize) {
        let part = self.part;
        for tile in part.piece.tiles.clone() {
            let (start, n) = part.tile(tile);
            let (mut at, mut sums) = ([std::ptr::null(); G], [std::ptr::null_mut(); G]);
            for g in 0..G {
                (at[g], sums[g]) = (decoded(part, first + g).cast::<u8>().cast_const(), part.sums(first + g, start));
            }
            // SAFETY: guaranteed by the caller.
            unsafe {
                by_tokens!(n, S::TOKENS, T => {
                    let zero = [[s.splat(0.0); G]; T];
                    let x = part.x::<f32>(tile).add(self.cols.start * T);
                    let products = tile::accumulate::<S, tile::F32, G, T, 0>(s, zero, at, x, T, 1, self.cols.len());
                    put(s, products, sums, self.cols.start == 0);
                });
            }
        }
    }
}
