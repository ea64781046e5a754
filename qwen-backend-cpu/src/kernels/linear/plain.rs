//! Products with f32, f16 and bf16, by register tiles.

use super::super::tile::{self, Weights, by_tokens};
use super::{Groups, SPAN, put};
use crate::matrix::UNIT;
use crate::simd::{Dot, LANES, Part, Simd};
use qwen_core::Encoding;

/// Prefetch distance for weights that come from memory, in bytes.
const AHEAD: usize = 1536;

/// With f32 activations.
pub(super) struct Full<'a>(pub(super) Groups<'a>);

impl Part for Full<'_> {
    const DOT: Dot = Dot::None;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        // SAFETY: guaranteed by the caller; the encoding names the elements.
        unsafe {
            match self.0.encoding {
                Encoding::Bf16 => multiply::<S, tile::Bf16>(s, &self.0),
                Encoding::F16 => multiply::<S, tile::F16>(s, &self.0),
                _ => multiply::<S, tile::F32>(s, &self.0),
            }
        }
    }
}

/// With activations that were rounded to pairs of bf16.
pub(super) struct Pairs<'a>(pub(super) Groups<'a>);

impl Part for Pairs<'_> {
    const DOT: Dot = Dot::Bf16;

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S) {
        // SAFETY: guaranteed by the caller, who created the panel for it.
        unsafe { multiply::<S, tile::Bf16Dot>(s, &self.0) }
    }
}

/// # Safety
/// As [`Part::run`], and the elements of the groups and the panel are those of `W`.
#[inline(always)]
unsafe fn multiply<S: Simd, W: Weights<S>>(s: S, part: &Groups<'_>) {
    for tile in part.piece.tiles.clone() {
        let (start, n) = part.tile(tile);
        let mut group = part.groups.start;
        while group < part.groups.end {
            let block = Block {
                w: part.linear.w.group(group),
                group: part.linear.w.layout.groups[group].bytes,
                x: part.x(tile),
                from: part.cols.start,
                to: part.cols.end,
                sums: part.sums(group, start),
                unit: part.piece.tokens * UNIT,
            };
            // SAFETY: groups, tile and columns lie within the matrix, the panel and the sums.
            unsafe {
                match part.groups.end - group {
                    4.. if n == 1 && part.piece.tokens == 1 => {
                        block.single_pair::<S, W>(s);
                        group += 4;
                    }
                    2.. => {
                        by_tokens!(n, S::TOKENS, T => block.tile::<S, W, T>(s));
                        group += 2;
                    }
                    _ => {
                        by_tokens!(n, S::TOKENS, T => block.spans::<S, W, 1, T, AHEAD>(s, [block.w], [block.sums]));
                        group += 1;
                    }
                }
            }
        }
    }
}

/// A unit of rows, a tile of tokens and a range of columns.
struct Block<X> {
    /// The first group of the unit.
    w: *const u8,
    /// Bytes to the next group.
    group: usize,
    /// The tile of the panel.
    x: *const X,
    from: usize,
    to: usize,
    /// Sums of the tile: `[token][32]`.
    sums: *mut f32,
    /// The stride, in floats, to the same sum of the next unit.
    unit: usize,
}

impl<X: Copy> Block<X> {
    /// # Safety
    /// Everything that the fields refer to can be accessed; `G` groups from `first` on belong to the unit.
    #[inline(always)]
    unsafe fn spans<S, W, const G: usize, const T: usize, const FETCH: usize>(
        &self,
        s: S,
        w: [*const u8; G],
        sums: [*mut f32; G],
    ) where
        S: Simd,
        W: Weights<S, X = X>,
    {
        let mut from = self.from;
        loop {
            let to = (from + SPAN).min(self.to);
            // SAFETY: guaranteed by the caller.
            unsafe {
                let mut at = w;
                for at in &mut at {
                    *at = at.add(from / W::COLS * W::LINE);
                }
                let x = self.x.add(from / W::COLS * W::STEP * T);
                let zero = [[s.splat(0.0); G]; T];
                let products = tile::accumulate::<S, W, G, T, FETCH>(s, zero, at, x, T, 1, (to - from) / W::COLS);
                put(s, products, sums, from == 0);
            }
            from = to;
            if from >= self.to {
                break;
            }
        }
    }

    /// # Safety
    /// As `spans`.
    #[inline(always)]
    unsafe fn tile<S: Simd, W: Weights<S, X = X>, const T: usize>(&self, s: S) {
        // SAFETY: guaranteed by the caller; a unit has two groups.
        unsafe {
            let second = self.w.add(self.group);
            let (low, high) = (self.sums, self.sums.add(LANES));
            if S::GROUPS == 2 {
                self.spans::<S, W, 2, T, AHEAD>(s, [self.w, second], [low, high]);
            } else {
                self.spans::<S, W, 1, T, AHEAD>(s, [self.w], [low]);
                self.spans::<S, W, 1, T, AHEAD>(s, [second], [high]);
            }
        }
    }

    /// One token, this unit and the next.
    ///
    /// # Safety
    /// As `spans`, for both units.
    #[inline(always)]
    unsafe fn single_pair<S: Simd, W: Weights<S, X = X>>(&self, s: S) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let w = [self.w, self.w.add(self.group), self.w.add(2 * self.group), self.w.add(3 * self.group)];
            let next = self.sums.add(self.unit);
            let sums = [self.sums, self.sums.add(LANES), next, next.add(LANES)];
            self.spans::<S, W, 4, 1, AHEAD>(s, w, sums);
        }
    }
}
