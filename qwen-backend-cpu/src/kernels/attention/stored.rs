//! The layout of the keys and values of a block (see [`crate::kv`]), and their products with queries and weights.
//!
//! Plain elements are a matrix as [`crate::kernels::tile`] takes it. In Q8_0 a tile is sixteen scales and the codes of
//! 16 x 32 values: codes are multiplied as f32, and scales are applied
//!
//! ```text
//! scores    sum_b scale[b][position] * (sum_c code[b][c][position] * q[32 b + c])      blocks b and channels c in sequence
//! values    sum_p code[p][channel] * (scale[p] * weight[p])                            positions p in sequence
//! ```
//!
//! once per 32 products of a key, and once per 32 channels of a value. Nothing depends on the number of tokens or
//! groups.

use std::marker::PhantomData;

use super::AHEAD;
use super::geometry::SPAN;
use crate::kernels::tile::{Codes, Weights, accumulate};
use crate::kv::{TILE, TILE_CHANNELS, TILE_CODES};
use crate::simd::{LANES, Simd, array};

/// Keys, or values, of one head in one block.
pub(super) trait Stored<S: Simd> {
    /// Bytes of the keys of sixteen positions with `dim` channels.
    fn group_bytes(dim: usize) -> usize;

    /// The products of `T` queries, `dim` apart, with the keys of `G` groups of sixteen positions.
    ///
    /// # Safety
    /// All those keys and queries can be read.
    unsafe fn score<const G: usize, const T: usize>(
        s: S,
        keys: [*const u8; G],
        q: *const f32,
        dim: usize,
    ) -> [[S::F; G]; T];

    /// `acc` plus `lines` values of a block of `size` positions, from position `within` on, a multiple of sixteen:
    /// sixteen channels from `16 * group` on, and the next sixteen where `G` is 2. The weights of rows are at `x`,
    /// [`SPAN`] apart.
    ///
    /// # Safety
    /// All those values and, in whole vectors, weights can be read.
    #[allow(clippy::too_many_arguments)]
    unsafe fn weigh<const G: usize, const T: usize>(
        s: S,
        acc: [[S::F; G]; T],
        values: *const u8,
        size: usize,
        group: usize,
        within: usize,
        x: *const f32,
        lines: usize,
    ) -> [[S::F; G]; T];
}

/// Elements of one type, decoded one by one.
pub(super) struct Plain<W>(PhantomData<W>);

impl<S: Simd, W: Weights<S, X = f32>> Stored<S> for Plain<W> {
    #[inline(always)]
    fn group_bytes(dim: usize) -> usize {
        dim * W::LINE
    }

    #[inline(always)]
    unsafe fn score<const G: usize, const T: usize>(
        s: S,
        keys: [*const u8; G],
        q: *const f32,
        dim: usize,
    ) -> [[S::F; G]; T] {
        // SAFETY: guaranteed by the caller.
        unsafe { accumulate::<S, W, G, T, AHEAD>(s, [[s.splat(0.0); G]; T], keys, q, 1, dim, dim) }
    }

    #[inline(always)]
    unsafe fn weigh<const G: usize, const T: usize>(
        s: S,
        acc: [[S::F; G]; T],
        values: *const u8,
        size: usize,
        group: usize,
        within: usize,
        x: *const f32,
        lines: usize,
    ) -> [[S::F; G]; T] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let first = values.add((group * size + within) * W::LINE);
            let w = array!(g < G => first.add(g * size * W::LINE));
            accumulate::<S, W, G, T, 0>(s, acc, w, x, 1, SPAN, lines)
        }
    }
}

/// Blocks of signed bytes.
pub(super) struct Blocks;

impl<S: Simd> Stored<S> for Blocks {
    #[inline(always)]
    fn group_bytes(dim: usize) -> usize {
        dim / TILE_CHANNELS * TILE
    }

    #[inline(always)]
    unsafe fn score<const G: usize, const T: usize>(
        s: S,
        keys: [*const u8; G],
        q: *const f32,
        dim: usize,
    ) -> [[S::F; G]; T] {
        let zero = [[s.splat(0.0); G]; T];
        let mut sums = zero;
        for block in 0..dim / TILE_CHANNELS {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let tiles = array!(g < G => keys[g].add(block * TILE));
                let codes = array!(g < G => tiles[g].add(TILE_CODES));
                let q = q.add(block * TILE_CHANNELS);
                let products = accumulate::<S, Codes, G, T, AHEAD>(s, zero, codes, q, 1, dim, TILE_CHANNELS);
                for g in 0..G {
                    let scales = s.load_f16(tiles[g].cast());
                    for t in 0..T {
                        sums[t][g] = s.mul_add(products[t][g], scales, sums[t][g]);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn weigh<const G: usize, const T: usize>(
        s: S,
        mut acc: [[S::F; G]; T],
        values: *const u8,
        size: usize,
        group: usize,
        within: usize,
        x: *const f32,
        lines: usize,
    ) -> [[S::F; G]; T] {
        // SAFETY: guaranteed by the caller; a tile has the codes of two groups of channels, the first of which is even.
        unsafe {
            let row = values.add((group / 2 * size + within) / LANES * TILE);
            for done in (0..lines).step_by(LANES) {
                let tile = row.add(done / LANES * TILE);
                let scales = s.load_f16(tile.cast());
                let mut scaled = [[0.0f32; LANES]; T];
                for (t, scaled) in scaled.iter_mut().enumerate() {
                    s.store(s.mul(s.load(x.add(t * SPAN + done)), scales), scaled.as_mut_ptr());
                }
                let first = tile.add(TILE_CODES + group % 2 * LANES * LANES);
                let codes = array!(g < G => first.add(g * LANES * LANES));
                let x = scaled.as_ptr().cast();
                acc = accumulate::<S, Codes, G, T, 0>(s, acc, codes, x, 1, LANES, LANES.min(lines - done));
            }
        }
        acc
    }
}
