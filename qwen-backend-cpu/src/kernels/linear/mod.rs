//! Matrix products: `out[t][r] = sum_k w[r][k] * x[t][k]`, then an [`Epilogue`] over the sums.
//!
//! The columns are divided into spans of [`SPAN`]; each is summed from zero in a register tile, and the spans are added
//! in order. This fixes the order of additions, for one token or a thousand, with any blocking below: a product with
//! one vector and a tile of a prompt agree bit for bit. (Spans also keep the error of long sums small.)
//!
//! A piece is a few units of rows times a block of tokens. Its columns are processed in blocks: while they are
//! multiplied, the units' columns, read from memory once, stay in the L2 cache, and those of each tile of the panel in
//! L1; in between, sums are kept in the thread's scratch. With one token four groups are in flight, to cover the
//! latency of the additions and to read several memory streams.
//!
//! `plain.rs` multiplies 16- and 32-bit weights, `int8.rs` block formats by integer dot products (the arithmetic is in
//! `blocks.rs`), `exact.rs` block formats as f32. Except for a single token's dot products, columns of block formats
//! are unpacked once for all tiles of a block.

mod blocks;
mod exact;
mod int8;
mod plain;

use std::ops::Range;
use std::sync::Arc;

use qwen_core::Encoding;

use super::epilogue::Epilogue;
use super::panel::{Panel, Rounding, Tiles};
use super::scratch::{STAGE, SUMS, Scratch};
use crate::formats::{self, SUB, staged};
use crate::matrix::{Group, MOST_INPUTS, Matrix, UNIT};
use crate::simd::{Kernel, LANES, Simd};

/// Columns of a span, which is summed from zero.
pub(crate) const SPAN: usize = 512;

/// The most tokens of a piece.
const TOKENS: usize = 512;

/// Columns of a block if there are several tiles, a multiple of the span.
const COLS: usize = SPAN;

/// The most bytes of weights per piece, if there are more than two units.
const PIECE_BYTES: usize = 2 << 20;

/// One matrix product.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) w: Arc<Matrix>,
    /// The activations in each form that the matrix needs ([`crate::matrix::Layout::inputs`]).
    pub(crate) panels: [Option<Panel>; MOST_INPUTS],
    /// The tiling of every panel.
    pub(crate) tiles: Tiles,
    pub(crate) epilogue: Epilogue,
    pub(crate) split: Split,
}

/// How a product is divided into pieces.
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
    /// `together` units must stay in one piece.
    pub(crate) fn new(w: &Matrix, all: &Tiles, together: usize, threads: usize) -> Split {
        let tile = all.tokens.div_ceil(all.count);
        let tokens = TOKENS.min(SUMS / (UNIT * together)).min(all.tokens).max(tile);
        let tiles = (tokens / tile).max(1);
        let tokens = tiles * tile;
        let fit = SUMS / (UNIT * tokens);
        let fair = w.layout.units() / (8 * threads);
        let bytes = PIECE_BYTES / (w.layout.bytes / w.layout.units().max(1)).max(1);
        // Pairs of units suit a single token.
        let units = fair.min(bytes).max(2).min(fit).next_multiple_of(if tokens == 1 { 2 } else { 1 });
        let cols = if all.count == 1 { w.layout.padded_cols().next_multiple_of(SPAN) } else { COLS };
        Split { units: (units / together * together).max(together), tiles, cols }
    }
}

/// A piece: units of rows, tiles of tokens, and their sums.
struct Piece {
    units: Range<usize>,
    tiles: Range<usize>,
    /// The first token.
    start: usize,
    tokens: usize,
    /// `[unit][token][32]`
    sums: *mut f32,
    /// [`STAGE`] bytes.
    stage: *mut u8,
}

// A span of two groups as f32 fits, and so does one as lines.
const _: () = assert!(4 * SPAN * UNIT <= STAGE && 2 * SPAN / SUB * staged::BYTES <= STAGE);

/// Store the products of a span for `G` groups and `T` tokens as sums, or add them if the span is not the first.
///
/// # Safety
/// The sums can be accessed.
#[inline(always)]
unsafe fn put<S: Simd, const G: usize, const T: usize>(
    s: S,
    products: [[S::F; G]; T],
    sums: [*mut f32; G],
    first: bool,
) {
    for (t, products) in products.into_iter().enumerate() {
        for g in 0..G {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let p = sums[g].add(t * UNIT);
                s.store(if first { products[g] } else { s.add(s.load(p), products[g]) }, p);
            }
        }
    }
}

impl Linear {
    fn token_blocks(&self) -> usize {
        self.tiles.count.div_ceil(self.split.tiles)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.w.layout.units().div_ceil(self.split.units) * self.token_blocks()
    }

    /// Columns `cols` of all units of a piece: runs of units that are multiplied in the same way, and single groups if
    /// the two of a unit differ.
    ///
    /// # Safety
    /// As [`Kernel::piece`].
    #[inline(always)]
    unsafe fn columns<S: Simd>(&self, s: S, piece: &Piece, cols: Range<usize>) {
        let key = |group: usize| self.w.layout.groups.get(group).map(|group| (group.encoding, group.input));
        let alike = |unit: usize, first: usize| key(2 * unit) == key(first) && key(2 * unit + 1) == key(first);
        let mut unit = piece.units.start;
        while unit < piece.units.end {
            let first = 2 * unit;
            let mut end = unit;
            while end < piece.units.end && alike(end, first) {
                end += 1;
            }
            // SAFETY: guaranteed by the caller.
            unsafe {
                if end > unit {
                    self.groups(s, piece, first..2 * end, cols.clone());
                    unit = end;
                } else {
                    self.groups(s, piece, first..first + 1, cols.clone());
                    self.groups(s, piece, first + 1..first + 2, cols.clone());
                    unit += 1;
                }
            }
        }
    }

    /// Groups that are multiplied in the same way: whole units or a single group.
    ///
    /// # Safety
    /// As [`Kernel::piece`].
    #[inline(always)]
    unsafe fn groups<S: Simd>(&self, s: S, piece: &Piece, groups: Range<usize>, cols: Range<usize>) {
        let Group { encoding, input, .. } = self.w.layout.groups[groups.start];
        let Some(Some(panel)) = self.panels.get(usize::from(input)) else { return };
        let part = Groups { linear: self, piece, panel, encoding, groups: groups.clone(), cols };
        // SAFETY: guaranteed by the caller; the encoding and the panel's rounding name the elements.
        unsafe {
            match (encoding, panel.rounding) {
                (Encoding::Bf16, Rounding::Pairs) => s.call(&plain::Pairs(part)),
                (Encoding::Bf16 | Encoding::F16 | Encoding::F32, _) => s.call(&plain::Full(part)),
                _ => {
                    let whole = groups.len() > 1;
                    for first in groups.step_by(2) {
                        let groups = first..first + if whole { 2 } else { 1 };
                        let part = Groups { groups, cols: part.cols.clone(), ..part };
                        match panel.rounding {
                            Rounding::Int8 => int8::multiply(s, part),
                            _ => exact::multiply(s, part),
                        }
                    }
                }
            }
        }
    }
}

/// Groups of one encoding, and the columns to multiply.
struct Groups<'a> {
    linear: &'a Linear,
    piece: &'a Piece,
    panel: &'a Panel,
    encoding: Encoding,
    groups: Range<usize>,
    cols: Range<usize>,
}

impl Groups<'_> {
    /// The first token of a tile and how many it has.
    fn tile(&self, tile: usize) -> (usize, usize) {
        let start = self.linear.tiles.start(tile);
        (start, self.linear.tiles.start(tile + 1) - start)
    }

    /// Tile `tile` of the panel.
    fn x<X>(&self, tile: usize) -> *const X {
        self.panel.array.ptr().wrapping_add(self.panel.tile(tile)).cast()
    }

    /// The sums of a group from token `token` on.
    fn sums(&self, group: usize, token: usize) -> *mut f32 {
        let piece = self.piece;
        let unit = group / 2 - piece.units.start;
        piece.sums.wrapping_add((unit * piece.tokens + token - piece.start) * UNIT + group % 2 * LANES)
    }

    /// The start of the scales and of the codes of a group in a block format.
    fn scales_and_codes(&self, group: usize) -> (*const u8, *const u8) {
        let scale_bytes =
            formats::group_bytes(self.encoding, self.linear.w.layout.cols).map_or(0, |(scales, _)| scales);
        let scales = self.linear.w.group(group);
        (scales, scales.wrapping_add(scale_bytes))
    }
}

impl Kernel for Linear {
    const DOTS: bool = true;
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        let blocks = self.token_blocks();
        let (first_unit, first_tile) = (piece / blocks * self.split.units, piece % blocks * self.split.tiles);
        let units = first_unit..(first_unit + self.split.units).min(self.w.layout.units());
        let tiles = first_tile..(first_tile + self.split.tiles).min(self.tiles.count);
        let (start, end) = (self.tiles.start(tiles.start), self.tiles.start(tiles.end));
        let (tokens, count) = (end - start, units.len());
        let (sums, stage) = scratch.sums_and_stage(count * tokens * UNIT);
        let piece = Piece { units, tiles, start, tokens, sums: sums.as_mut_ptr(), stage: stage.as_mut_ptr() };
        let cols = self.w.layout.padded_cols();
        let mut from = 0;
        // SAFETY: guaranteed by the caller; only this thread accesses the piece's rows of these tokens.
        unsafe {
            loop {
                let to = (from + self.split.cols).min(cols);
                self.columns(s, &piece, from..to);
                from = to;
                if from >= cols {
                    break;
                }
            }
            self.epilogue.apply(s, &self.w.layout, first_unit, count, start, tokens, sums);
        }
    }
}
