//! Activations as register tiles read them: `[tile][column][token]`, rounded to bf16 pairs where the dot product of
//! those is used.
//!
//! ```text
//! f32    [tile][cols][tokens of the tile]
//! bf16   [tile][cols / 2][tokens of the tile][2 columns]
//! ```
//!
//! Columns are padded with zeros to an even number. The tokens of a step are cut into tiles of nearly equal size.

use crate::memory::Cells;
use crate::simd::{Kernel, Simd};

/// Columns that are packed for all tokens of a tile before the next.
const RUN: usize = 64;

/// How tokens are cut into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub(crate) tokens: usize,
    pub(crate) count: usize,
}

impl Tiles {
    /// As few tiles of at most `most` tokens as will do.
    pub(crate) fn new(tokens: usize, most: usize) -> Tiles {
        Tiles { tokens, count: tokens.div_ceil(most) }
    }

    /// The first token of tile `i`; the number of tokens for the one after the last.
    #[inline(always)]
    pub(crate) fn start(&self, i: usize) -> usize {
        let (each, more) = (self.tokens / self.count, self.tokens % self.count);
        i * each + i.min(more)
    }
}

/// Activations packed for a matrix product.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    pub(crate) cells: Cells<u32>,
    pub(crate) tiles: Tiles,
    /// Columns with padding.
    pub(crate) cols: usize,
    /// Whether elements are pairs of bf16 instead of f32.
    pub(crate) bf16: bool,
}

impl Panel {
    /// Words of 32 bits that a panel takes.
    pub(crate) fn words(tokens: usize, padded_cols: usize, bf16: bool) -> usize {
        tokens * padded_cols / if bf16 { 2 } else { 1 }
    }

    /// The first word of tile `i`.
    #[inline(always)]
    pub(crate) fn tile(&self, i: usize) -> usize {
        Panel::words(self.tiles.start(i), self.cols, self.bf16)
    }
}

/// Pack rows of `x` into a panel.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) x: Cells<f32>,
    /// Columns of `x`.
    pub(crate) cols: usize,
    pub(crate) panel: Panel,
}

impl Pack {
    /// Columns of a piece.
    fn run(&self) -> usize {
        (8192 / self.panel.tiles.tokens.div_ceil(self.panel.tiles.count)).next_multiple_of(512)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.panel.tiles.count * self.panel.cols.div_ceil(self.run())
    }
}

/// The nearest bf16, ties to even; NaNs stay NaNs.
#[inline(always)]
pub(crate) fn to_bf16(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if v.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

impl Kernel for Pack {
    type Scratch = super::scratch::Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, _: S, piece: usize, _: &mut Self::Scratch) {
        let panel = &self.panel;
        let runs = panel.cols.div_ceil(self.run());
        let (tile, first) = (piece / runs, piece % runs * self.run());
        let (start, end) = (panel.tiles.start(tile), panel.tiles.start(tile + 1));
        let tokens = end - start;
        let len = self.run().min(panel.cols - first);
        let words = Panel::words(tokens, len, panel.bf16);
        // SAFETY: pieces are disjoint parts of the panel; operations that write `x` are over.
        let out = unsafe { panel.cells.slice_mut(panel.tile(tile) + Panel::words(tokens, first, panel.bf16), words) };
        let real = len.min(self.cols.saturating_sub(first));
        // Columns in short runs, so that the lines being filled stay in the cache while the tokens take turns.
        for from in (0..len).step_by(RUN) {
            let to = (from + RUN).min(real);
            for t in 0..tokens {
                // SAFETY: as above.
                let x = unsafe { self.x.slice((start + t) * self.cols + first + from, to - from) };
                if panel.bf16 {
                    let mut pairs = [0u32; RUN / 2];
                    for (pair, x) in pairs.iter_mut().zip(x.chunks_exact(2)) {
                        *pair = to_bf16(x[0]) | to_bf16(x[1]) << 16;
                    }
                    if let [last] = x.chunks_exact(2).remainder() {
                        pairs[x.len() / 2] = to_bf16(*last);
                    }
                    let lines = out[from / 2 * tokens..].chunks_exact_mut(tokens);
                    lines.zip(&pairs[..x.len().div_ceil(2)]).for_each(|(line, pair)| line[t] = *pair);
                } else {
                    let lines = out[from * tokens..].chunks_exact_mut(tokens);
                    lines.zip(x).for_each(|(line, x)| line[t] = x.to_bits());
                }
            }
        }
        if !panel.bf16 && real < len {
            out[real * tokens..].fill(0);
        }
    }
}
