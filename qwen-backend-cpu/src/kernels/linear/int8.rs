//! Products with block formats by integer dot products.

use std::ops::Range;

use super::super::tile::by_tokens;
use super::blocks::{self, Apart, Packed};
use super::{Groups, SPAN, put};
use crate::formats::{Form, Format, SUB, staged, with_format};
use crate::simd::{Dot, Part, Simd, array};

/// Multiply groups of one block format with activations that were rounded to int8.
///
/// # Safety
/// As [`Part::run`].
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(s: S, part: Groups<'_>) {
    let form = Form::of(part.encoding);
    let part = &part;
    // SAFETY: guaranteed by the caller.
    unsafe {
        // A single group next to another encoding is rare enough to use the path for many tokens.
        if part.piece.tokens == 1 && !form.staged && part.groups.len() == 2 {
            return with_format!(part.encoding, format => s.call(&Single { part, format }), else ());
        }
        for from in part.cols.clone().step_by(SPAN) {
            let subs = from / SUB..(from + SPAN).min(part.cols.end) / SUB;
            with_format!(part.encoding, format => s.call(&Stage { part, format, subs: subs.clone() }), else ());
            macro_rules! apart {
                ($bits:literal, $signed:literal, $halves:literal, $offsets:literal) => {
                    s.call(&Tiles::<$bits, $signed, $halves, $offsets> { part, subs, zero: form.zero })
                };
            }
            match (form.bits, form.signed, form.halves, form.offsets) {
                (_, true, false, false) => apart!(8, true, false, false),
                (_, true, false, true) => apart!(8, true, false, true),
                (_, true, true, _) => apart!(8, true, true, false),
                (0..=4, _, false, false) => apart!(4, false, false, false),
                (0..=4, _, false, true) => apart!(4, false, false, true),
                (0..=4, _, true, false) => apart!(4, false, true, false),
                (0..=4, _, true, true) => apart!(4, false, true, true),
                (5, _, _, false) => apart!(5, false, false, false),
                (5, _, _, true) => apart!(5, false, false, true),
                _ => apart!(6, false, true, false),
            }
        }
    }
}

/// Evaluate an expression with the first group and the number of groups at once: both of a unit if registers allow it,
/// otherwise one after the other.
macro_rules! groups_at_once {
    ($simd:ty, $part:expr, |$first:ident, $count:ident| $call:expr) => {
        if const { <$simd>::GROUPS == 2 } && $part.groups.len() == 2 {
            const $count: usize = 2;
            let $first = $part.groups.start;
            $call
        } else {
            for $first in $part.groups.clone() {
                const $count: usize = 1;
                $call
            }
        }
    };
}
pub(super) use groups_at_once;

/// A single token, directly from the packed codes.
struct Single<'a, F> {
    part: &'a Groups<'a>,
    format: F,
}

impl<F: Format> Part for Single<'_, F> {
    const DOT: Dot = Dot::Int8;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        let part = self.part;
        let first = part.groups.start;
        // SAFETY: groups, columns and the tile are those of the matrix and the panel.
        unsafe {
            if const { S::GROUPS == 2 } {
                self.groups::<S, 2>(s, first);
            } else {
                self.groups::<S, 1>(s, first);
                self.groups::<S, 1>(s, first + 1);
            }
        }
    }
}

impl<F: Format> Single<'_, F> {
    /// # Safety
    /// As [`Part::run`].
    #[inline(always)]
    unsafe fn groups<S: Simd, const G: usize>(&self, s: S, first: usize) {
        let part = self.part;
        let (mut scales, mut codes, mut sums) =
            ([std::ptr::null(); G], [std::ptr::null(); G], [std::ptr::null_mut(); G]);
        for g in 0..G {
            (scales[g], codes[g]) = part.scales_and_codes(first + g);
            sums[g] = part.sums(first + g, part.piece.start);
        }
        let source = Packed { format: self.format, scales, codes };
        let x = part.x(part.piece.tiles.start);
        for from in part.cols.clone().step_by(SPAN) {
            let subs = from / SUB..(from + SPAN).min(part.cols.end) / SUB;
            // SAFETY: guaranteed by the caller.
            unsafe { put(s, blocks::accumulate::<S, _, G, 1>(s, &source, x, subs), sums, from == 0) }
        }
    }
}

/// The unpacked sub-blocks of a group.
fn apart(part: &Groups<'_>, group: usize) -> *mut u8 {
    part.piece.stage.wrapping_add((group - part.groups.start) * SPAN / SUB * staged::BYTES)
}

/// Unpacks sub-blocks.
struct Stage<'a, F> {
    part: &'a Groups<'a>,
    format: F,
    subs: Range<usize>,
}

impl<F: Format> Part for Stage<'_, F> {
    const DOT: Dot = Dot::Int8;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        for group in self.part.groups.clone() {
            let (scales, codes) = self.part.scales_and_codes(group);
            for sub in self.subs.clone() {
                let out = apart(self.part, group).wrapping_add((sub - self.subs.start) * staged::BYTES);
                // SAFETY: the group has the sub-block; a span of two groups fits in the stage.
                unsafe { staged::stage(s, self.format, scales, codes, sub, out) }
            }
        }
    }
}

/// Multiplies unpacked sub-blocks with all tiles. The parameters are those of [`Apart`].
struct Tiles<'a, const BITS: i32, const SIGNED: bool, const HALVES: bool, const OFFSETS: bool> {
    part: &'a Groups<'a>,
    subs: Range<usize>,
    zero: i32,
}

impl<const BITS: i32, const SIGNED: bool, const HALVES: bool, const OFFSETS: bool> Part
    for Tiles<'_, BITS, SIGNED, HALVES, OFFSETS>
{
    const DOT: Dot = Dot::Int8;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        let part = self.part;
        // SAFETY: groups, columns and tiles are those of the matrix and the panel.
        unsafe { groups_at_once!(S, part, |first, G| self.groups::<S, G>(s, first)) }
    }
}

impl<const BITS: i32, const SIGNED: bool, const HALVES: bool, const OFFSETS: bool>
    Tiles<'_, BITS, SIGNED, HALVES, OFFSETS>
{
    /// # Safety
    /// As [`Part::run`].
    #[inline(always)]
    unsafe fn groups<S: Simd, const G: usize>(&self, s: S, first: usize) {
        let part = self.part;
        let at = array!(g < G => apart(part, first + g).cast_const());
        let source = Apart::<G, BITS, SIGNED, HALVES, OFFSETS> { first: self.subs.start, at, zero: self.zero };
        for tile in part.piece.tiles.clone() {
            let (start, n) = part.tile(tile);
            let sums = array!(g < G => part.sums(first + g, start));
            // SAFETY: guaranteed by the caller.
            unsafe {
                by_tokens!(n, S::INT8_TOKENS, T => {
                    let products = blocks::accumulate::<S, _, G, T>(s, &source, part.x(tile), self.subs.clone());
                    put(s, products, sums, self.subs.start == 0);
                });
            }
        }
    }
}
