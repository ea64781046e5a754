//! Activations in the layout that register tiles read, rounded if the product rounds.
//!
//! ```text
//! Full    [tile][cols][tokens of the tile]                    f32
//! Pairs   [tile][cols / 2][tokens of the tile][2 columns]     bf16
//! Int8    [tile][cols / 32][16 words][tokens of the tile]     see below
//! ```
//!
//! Columns are padded with zeros to an even number. The tokens of a step are divided into tiles of nearly equal size.
//! The 16 words of a token for 32 columns as int8 are
//!
//! ```text
//! 0..8     four signed bytes each, in -127..=127
//! 8        their scale as f32: the largest magnitude over 127, NaN where a value is not finite
//! 9..12    sums of the bytes as i32: of all, of the first half, of the second half
//! 12..15   the same times the scale as f32
//! ```

use std::sync::Arc;

use crate::formats::SUB;
use crate::memory::Array;
use crate::simd::{Kernel, Simd};

/// Columns to pack for all tokens of a tile at a time.
const RUN: usize = 64;

/// Words of a token for 32 columns as int8.
pub(crate) const INT8_WORDS: usize = 16;

/// The words after the bytes: scale and sums.
pub(crate) const SCALE: usize = 8;
pub(crate) const SUMS: usize = 9;
pub(crate) const SCALED_SUMS: usize = 12;

/// How tokens are divided into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub(crate) tokens: usize,
    pub(crate) count: usize,
}

impl Tiles {
    /// The smallest number of tiles of at most `most` tokens.
    pub(crate) fn new(tokens: usize, most: usize) -> Tiles {
        Tiles { tokens, count: tokens.div_ceil(most) }
    }

    /// The first token of tile `i`; for the one after the last, the number of tokens.
    #[inline(always)]
    pub(crate) fn start(&self, i: usize) -> usize {
        let (each, more) = (self.tokens / self.count, self.tokens % self.count);
        i * each + i.min(more)
    }
}

/// How activations are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Not rounded.
    Full,
    /// To pairs of bf16.
    Pairs,
    /// To bytes with a scale per 32.
    Int8,
}

/// Activations packed for a matrix product.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    pub(crate) array: Array<u32>,
    /// Its start in the array.
    pub(crate) start: usize,
    pub(crate) tiles: Tiles,
    /// Columns including padding.
    pub(crate) cols: usize,
    pub(crate) rounding: Rounding,
}

impl Panel {
    /// The size of a panel in 32-bit words.
    pub(crate) fn words(tokens: usize, padded_cols: usize, rounding: Rounding) -> usize {
        match rounding {
            Rounding::Full => tokens * padded_cols,
            Rounding::Pairs => tokens * padded_cols / 2,
            Rounding::Int8 => tokens * (padded_cols / SUB * INT8_WORDS),
        }
    }

    /// The first word of tile `i`.
    #[inline(always)]
    pub(crate) fn tile(&self, i: usize) -> usize {
        self.start + Panel::words(self.tiles.start(i), self.cols, self.rounding)
    }
}

/// Pack rows of `x` into a panel.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) x: Array<f32>,
    /// Columns of `x`.
    pub(crate) cols: usize,
    /// The column of `x` for each column of the panel, if they are reordered.
    pub(crate) column_order: Option<Arc<[u32]>>,
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

    /// Columns `from..from + out.len()` of the panel for token `token`.
    ///
    /// # Safety
    /// Operations that write `x` are done.
    #[inline(always)]
    unsafe fn columns<'a>(&'a self, token: usize, from: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match &self.column_order {
                None => self.x.slice(token * self.cols + from, buffer.len()),
                Some(order) => {
                    let x = self.x.slice(token * self.cols, self.cols);
                    buffer.iter_mut().zip(&order[from..]).for_each(|(out, &col)| *out = x[col as usize]);
                    buffer
                }
            }
        }
    }
}

/// The nearest bf16, ties to even; NaNs stay NaNs.
#[inline(always)]
pub(crate) fn to_bf16(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if v.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// The words of 32 columns as int8.
#[inline(always)]
pub(crate) fn to_int8(x: &[f32; SUB]) -> [u32; INT8_WORDS] {
    let mut words = [0; INT8_WORDS];
    // The bits of magnitudes order like the magnitudes, with NaNs above all.
    let most = x.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
    if most >= f32::INFINITY.to_bits() {
        words[SCALE] = f32::NAN.to_bits();
        // Zero times NaN is NaN, so that offsets become NaN too.
        words[SCALED_SUMS..][..3].fill(f32::NAN.to_bits());
        return words;
    }
    let most = f32::from_bits(most);
    // Below this the quotient overflows; such values are negligible.
    if most < 1e-30 {
        return words;
    }
    let (scale, inverse) = (most / 127.0, 127.0 / most);
    let mut bytes = [0i8; SUB];
    for (byte, x) in bytes.iter_mut().zip(x) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits, ties to even.
        *byte = (x * inverse + 12_582_912.0).to_bits() as i8;
    }
    let half = |bytes: &[i8]| bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
    let (first, second) = (half(&bytes[..SUB / 2]), half(&bytes[SUB / 2..]));
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(bytes.map(|byte| byte as u8));
    }
    words[SCALE] = scale.to_bits();
    for (i, sum) in [first + second, first, second].into_iter().enumerate() {
        words[SUMS + i] = sum as u32;
        words[SCALED_SUMS + i] = (sum as f32 * scale).to_bits();
    }
    words
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
        let words = Panel::words(tokens, len, panel.rounding);
        let at = panel.tile(tile) + Panel::words(tokens, first, panel.rounding);
        // SAFETY: pieces are disjoint parts of the panel; operations that write `x` are done.
        let out = unsafe { panel.array.slice_mut(at, words) };
        let real = len.min(self.cols.saturating_sub(first));
        if panel.rounding == Rounding::Int8 {
            for (block, out) in out.chunks_exact_mut(tokens * INT8_WORDS).enumerate() {
                for t in 0..tokens {
                    let mut x = [0.0; SUB];
                    // SAFETY: as above; columns of block formats are whole blocks.
                    let columns = unsafe { self.columns(start + t, first + block * SUB, &mut x) };
                    let columns: &[f32; SUB] = columns.try_into().unwrap_or(&[0.0; SUB]);
                    for (out, word) in out[t..].iter_mut().step_by(tokens).zip(to_int8(columns)) {
                        *out = word;
                    }
                }
            }
            return;
        }
        let mut buffer = [0.0; RUN];
        // Short runs of columns, so that the lines being filled stay in cache while looping over the tokens.
        for from in (0..len).step_by(RUN) {
            let to = (from + RUN).min(real);
            for t in 0..tokens {
                let buffer = &mut buffer[..to.saturating_sub(from)];
                // SAFETY: as above.
                let x = unsafe { self.columns(start + t, first + from, buffer) };
                if panel.rounding == Rounding::Pairs {
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
        if panel.rounding == Rounding::Full && real < len {
            out[real * tokens..].fill(0);
        }
    }
}
