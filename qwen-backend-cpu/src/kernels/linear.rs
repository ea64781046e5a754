//! Matrix products: `out[t][r] = sum_k w[r][k] * x[t][k]`, then what [`Epilogue`] does with the sums.
//!
//! The columns are cut into spans of [`SPAN`]; each is summed from zero in a register tile and the spans are added in
//! order. That is the whole order of additions, for one token or a thousand, in every blocking below: a product with one
//! vector and a tile of a prompt agree bit for bit. (Spans also keep the error of long sums small.)
//!
//! A piece is a few units of rows times a block of tokens. Its columns are taken in blocks: the block's part of the
//! units, read from memory once, stays in the second-level cache, and that of each tile of the panel in the first,
//! while they meet; sums wait in the thread's scratch in between. With one token four groups are in flight, to cover the
//! latency of the additions and to give the memory several streams.

use std::sync::Arc;

use super::epilogue::Epilogue;
use super::panel::Panel;
use super::scratch::{SUMS, Scratch};
use super::tile::{self, Weights, by_tokens};
use crate::matrix::{Matrix, UNIT};
use crate::simd::{Kernel, LANES, Simd};

/// Columns that are summed from zero.
pub(crate) const SPAN: usize = 512;

/// The most tokens of a piece.
const TOKENS: usize = 512;

/// Columns of a block where there are several tiles, a multiple of the span.
const COLS: usize = SPAN;

/// Bytes of weights of a piece, at most, where there are more than two units.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes that weights are fetched ahead where they come from memory.
const AHEAD: usize = 1536;

/// One matrix product.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) w: Arc<Matrix>,
    pub(crate) panel: Panel,
    pub(crate) epilogue: Epilogue,
    pub(crate) split: Split,
}

/// How a product is cut into pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    /// Units of a piece.
    units: usize,
    /// Tiles of a piece.
    tiles: usize,
    /// Columns of a block, a multiple of the span.
    cols: usize,
}

impl Split {
    /// `together` units may not be parted.
    pub(crate) fn new(w: &Matrix, panel: &Panel, together: usize, threads: usize) -> Split {
        let tile = panel.tiles.tokens.div_ceil(panel.tiles.count);
        let tokens = TOKENS.min(SUMS / (UNIT * together)).min(panel.tiles.tokens).max(tile);
        let tiles = (tokens / tile).max(1);
        let tokens = tiles * tile;
        let fit = SUMS / (UNIT * tokens);
        let fair = w.layout.units() / (8 * threads);
        let bytes = PIECE_BYTES / (2 * w.layout.group_bytes()).max(1);
        // Pairs of units suit a single token.
        let units = fair.min(bytes).max(2).min(fit).next_multiple_of(if tokens == 1 { 2 } else { 1 });
        let cols = if panel.tiles.count == 1 { panel.cols.next_multiple_of(SPAN) } else { COLS };
        Split { units: (units / together * together).max(together), tiles, cols }
    }
}

impl Linear {
    fn token_blocks(&self) -> usize {
        self.panel.tiles.count.div_ceil(self.split.tiles)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.w.layout.units().div_ceil(self.split.units) * self.token_blocks()
    }

    /// # Safety
    /// As [`Kernel::piece`], and the elements of the matrix and the panel are those of `W`.
    #[inline(always)]
    unsafe fn block<S: Simd, W: Weights<S>>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        let tiles = &self.panel.tiles;
        let blocks = self.token_blocks();
        let (first_unit, first_tile) = (piece / blocks * self.split.units, piece % blocks * self.split.tiles);
        let units = self.split.units.min(self.w.layout.units() - first_unit);
        let last_tile = (first_tile + self.split.tiles).min(tiles.count);
        let (start, end) = (tiles.start(first_tile), tiles.start(last_tile));
        let tokens = end - start;
        let group = self.w.layout.group_bytes();
        let cols = self.panel.cols;
        let sums = scratch.floats(units * tokens * UNIT);
        let mut from = 0;
        loop {
            let to = (from + self.split.cols).min(cols);
            for tile in first_tile..last_tile {
                let at = tiles.start(tile);
                let n = tiles.start(tile + 1) - at;
                // SAFETY: the tile lies within the panel.
                let x = unsafe { self.panel.cells.ptr().add(self.panel.tile(tile)) }.cast();
                let mut unit = 0;
                while unit < units {
                    let block = Block {
                        w: self.w.group(2 * (first_unit + unit)),
                        group,
                        x,
                        from,
                        to,
                        sums: sums[(unit * tokens + at - start) * UNIT..].as_mut_ptr(),
                        unit: tokens * UNIT,
                    };
                    // SAFETY: units, tile and columns lie within the matrix, the panel and the sums.
                    unsafe {
                        if n == 1 && tokens == 1 && unit + 1 < units {
                            block.single_pair::<S, W>(s);
                            unit += 2;
                        } else {
                            by_tokens!(n, S::TOKENS, T => block.tile::<S, W, T>(s));
                            unit += 1;
                        }
                    }
                }
            }
            from = to;
            if from >= cols {
                break;
            }
        }
        // SAFETY: the piece's rows of these tokens are this thread's alone.
        unsafe { self.epilogue.apply(s, &self.w.layout, first_unit, units, start, tokens, sums) }
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
    /// Floats to the same sum of the next unit.
    unit: usize,
}

impl<X: Copy> Block<X> {
    /// # Safety
    /// All that the fields name can be accessed; `G` groups from `first` on belong to the unit.
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
            // SAFETY: passed on to the caller.
            unsafe {
                let mut at = w;
                for at in &mut at {
                    *at = at.add(from / W::COLS * W::LINE);
                }
                let x = self.x.add(from / W::COLS * W::STEP * T);
                let zero = [[s.splat(0.0); G]; T];
                let acc = tile::accumulate::<S, W, G, T, FETCH>(s, zero, at, x, T, 1, (to - from) / W::COLS);
                for (t, acc) in acc.into_iter().enumerate() {
                    for g in 0..G {
                        let p = sums[g].add(t * UNIT);
                        s.store(if from == 0 { acc[g] } else { s.add(s.load(p), acc[g]) }, p);
                    }
                }
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
        // SAFETY: passed on to the caller; a unit has two groups.
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
        // SAFETY: passed on to the caller.
        unsafe {
            let w = [self.w, self.w.add(self.group), self.w.add(2 * self.group), self.w.add(3 * self.group)];
            let next = self.sums.add(self.unit);
            let sums = [self.sums, self.sums.add(LANES), next, next.add(LANES)];
            self.spans::<S, W, 4, 1, AHEAD>(s, w, sums);
        }
    }
}

/// A product of bf16 pairs.
pub(crate) struct Dot<'a>(pub(crate) &'a Linear);

impl Kernel for Dot<'_> {
    const BF16_DOT: bool = true;
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        // SAFETY: passed on to the caller, who made the panel for it.
        unsafe { self.0.block::<S, tile::Bf16Dot>(s, piece, scratch) }
    }
}

/// A product of f32 values with decoded weights.
pub(crate) struct Full<'a>(pub(crate) &'a Linear);

impl Kernel for Full<'_> {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        // SAFETY: passed on to the caller; the encoding names the elements.
        unsafe {
            match self.0.w.layout.encoding {
                qwen_core::Encoding::Bf16 => self.0.block::<S, tile::Bf16>(s, piece, scratch),
                qwen_core::Encoding::F16 => self.0.block::<S, tile::F16>(s, piece, scratch),
                _ => self.0.block::<S, tile::F32>(s, piece, scratch),
            }
        }
    }
}
