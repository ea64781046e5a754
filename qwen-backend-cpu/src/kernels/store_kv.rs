//! Writes keys and values to the paged store (layout: [`crate::kv`]).
//!
//! Rounding to f16: Qwen2.5's key biases reach several hundred, which f16 can hold; values beyond its largest, 65504,
//! are clamped to it, so that the error stays bounded instead of becoming infinite. Blocks of signed bytes are those of
//! [`q8::round`], on every instruction set.

use qwen_core::Encoding;
use qwen_core::backend::HeadLayout;
use qwen_core::numerics::encoding::q8;

use super::math::load_first;
use super::scratch::Scratch;
use crate::kv::{Store, TILE, TILE_CHANNELS, TILE_CODES};
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

/// Store the key and value heads of a token; a piece is a token.
#[derive(Debug)]
pub(crate) struct StoreKv {
    pub(crate) qkv: Array<f32>,
    pub(crate) slots: Array<u32>,
    pub(crate) kv: Store,
    pub(crate) layer: usize,
    pub(crate) heads: HeadLayout,
    pub(crate) rows: usize,
}

/// Store the key of a head. `at` gives the position of channels: sixteen of them from a multiple of 16 on, 32 from a
/// multiple of 32 on, or as many as are left.
///
/// # Safety
/// Those channels can be read, and nothing else accesses the slot.
#[inline(always)]
pub(crate) unsafe fn store_key<S: Simd>(
    s: S,
    kv: &Store,
    layer: usize,
    head: usize,
    slot: usize,
    at: impl Fn(usize) -> *const f32,
) {
    let (dim, encoding) = (kv.spec.head_dim, kv.spec.key_encodings[layer]);
    let (block, position) = (slot / kv.spec.block_size, slot % kv.spec.block_size);
    let (group, lane) = (position / LANES, position % LANES);
    let keys = kv.keys(layer, block, head);
    // SAFETY: guaranteed by the caller; the slot lies within the block, and the channels within the head.
    unsafe {
        if encoding == Encoding::Q8_0 {
            for i in (0..dim).step_by(TILE_CHANNELS) {
                let (scale, codes) = q8::round(&*at(i).cast());
                let tile = keys.add((group * dim + i) / TILE_CHANNELS * TILE);
                *tile.cast::<u16>().add(lane) = scale.to_bits();
                scatter(&codes, tile.add(TILE_CODES + lane).cast());
            }
            return;
        }
        for i in (0..dim).step_by(LANES) {
            let n = LANES.min(dim - i);
            let v = load(s, at(i), n);
            let first = (group * dim + i) * LANES + lane;
            if encoding == Encoding::F16 {
                let mut values = [0u16; LANES];
                s.store_f16(v, values.as_mut_ptr());
                scatter(&values[..n], keys.cast::<u16>().add(first));
            } else {
                let mut values = [0f32; LANES];
                s.store(v, values.as_mut_ptr());
                scatter(&values[..n], keys.cast::<f32>().add(first));
            }
        }
    }
}

/// Scatter the channels of one position into lines of sixteen positions.
///
/// # Safety
/// An element of each of `values.len()` lines can be written, the first at `out`.
#[inline(always)]
unsafe fn scatter<T: Copy>(values: &[T], out: *mut T) {
    for (i, value) in values.iter().enumerate() {
        // SAFETY: guaranteed by the caller.
        unsafe { *out.add(i * LANES) = *value }
    }
}

/// Store the value of a head, padding included. `at` as in [`store_key`].
///
/// # Safety
/// As [`store_key`].
#[inline(always)]
pub(crate) unsafe fn store_value<S: Simd>(
    s: S,
    kv: &Store,
    layer: usize,
    head: usize,
    slot: usize,
    at: impl Fn(usize) -> *const f32,
) {
    let (dim, size, encoding) = (kv.spec.head_dim, kv.spec.block_size, kv.spec.value_encoding);
    let (block, position) = (slot / size, slot % size);
    let values = kv.values(layer, block, head);
    // SAFETY: guaranteed by the caller; the slot lies within the block, and the channels within the padded head.
    unsafe {
        if encoding == Encoding::Q8_0 {
            let lane = position % LANES;
            for i in (0..dim).step_by(TILE_CHANNELS) {
                let (scale, codes) = q8::round(&*at(i).cast());
                let tile = values.add((i / TILE_CHANNELS * size + position) / LANES * TILE);
                *tile.cast::<u16>().add(lane) = scale.to_bits();
                for (half, codes) in codes.as_chunks::<LANES>().0.iter().enumerate() {
                    *tile.add(TILE_CODES + (half * LANES + lane) * LANES).cast::<[i8; LANES]>() = *codes;
                }
            }
            return;
        }
        for i in (0..dim).step_by(LANES) {
            let v = load(s, at(i), LANES.min(dim - i));
            let first = (i / LANES * size + position) * LANES;
            if encoding == Encoding::F16 {
                s.store_f16(v, values.cast::<u16>().add(first));
            } else {
                s.store(v, values.cast::<f32>().add(first));
            }
        }
    }
}

/// The first `n` of sixteen values, then zeros.
///
/// # Safety
/// `n` values can be read at `p`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe { if n == LANES { s.load(p) } else { load_first(s, p, n) } }
}

impl Kernel for StoreKv {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, row: usize, _: &mut Scratch) {
        let dim = self.heads.head_dim;
        // SAFETY: operations that write the inputs are done; slots of a step are distinct.
        unsafe {
            let slot = self.slots.slice(row, 1)[0] as usize;
            if slot >= self.kv.spec.num_blocks * self.kv.spec.block_size {
                return;
            }
            let at = row * self.heads.qkv_size() + self.heads.q_size();
            let x = self.qkv.slice(at, 2 * self.heads.kv_size()).as_ptr();
            for head in 0..self.heads.num_key_value_heads {
                let (k, v) = (x.add(head * dim), x.add(self.heads.kv_size() + head * dim));
                store_key(s, &self.kv, self.layer, head, slot, |i| k.add(i));
                store_value(s, &self.kv, self.layer, head, slot, |i| v.add(i));
            }
        }
    }
}
