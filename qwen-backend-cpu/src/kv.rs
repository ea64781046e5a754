//! The paged K/V store of a range of layers.
//!
//! Keys are stored with sixteen positions in the lanes, values with sixteen channels of a head; both are then read like
//! a packed weight matrix ([`crate::matrix`]), since the scores and the weighted sums are matrix products:
//!
//! ```text
//! [layer][block][K/V head] { K [position / 16][channel][16 positions],  V [channel / 16][position][16 channels] }
//! ```
//!
//! A head whose width is not a multiple of 16 has padding channels in V. Elements are f32 or f16 (for keys per layer,
//! see [`KvSpec::key_encodings`]); values beyond the largest f16 are clamped to it (see [`crate::kernels::store_kv`]).
//!
//! In Q8_0, whose heads are whole blocks of 32 channels, the blocks of sixteen positions are a tile of [`TILE`] bytes: their
//! sixteen scales, then the codes, in K with the positions in the lanes, in V with the channels:
//!
//! ```text
//! K [position / 16][channel / 32] { f16 [16 positions],  i8 [32 channels][16 positions] }
//! V [channel / 32][position / 16] { f16 [16 positions],  i8 [2 halves of the channels][16 positions][16 channels] }
//! ```

use std::sync::Arc;

use qwen_core::backend::{BlockPart, KvSpec};
use qwen_core::numerics::encoding::q8;
use qwen_core::{Encoding, Error, Result};

use crate::memory::Array;
use crate::simd::LANES;

/// Channels of a tile of Q8_0.
pub(crate) const TILE_CHANNELS: usize = q8::VALUES;

/// The start of the codes in a tile: after sixteen scales.
pub(crate) const TILE_CODES: usize = 2 * LANES;

/// Bytes of a tile: sixteen blocks.
pub(crate) const TILE: usize = q8::BYTES * LANES;

/// The supported encodings.
const ENCODINGS: [Encoding; 3] = [Encoding::F32, Encoding::F16, Encoding::Q8_0];

/// A K/V store as held by operations.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) spec: Arc<KvSpec>,
    // The first byte of each layer.
    layers: Arc<[usize]>,
    // Storage units: f16 elements, halves of f32 elements, or two bytes of a tile.
    pub(crate) array: Array<u16>,
}

/// Channels of a head in V, with padding.
pub(crate) fn padded_dim(spec: &KvSpec) -> usize {
    spec.head_dim.next_multiple_of(LANES)
}

/// Bytes of a block of one K/V head: its keys and its values. `spec` has to be one of an existing store.
fn head_bytes(spec: &KvSpec, key: Encoding) -> usize {
    key.bytes(spec.block_size * spec.head_dim) + spec.value_encoding.bytes(spec.block_size * padded_dim(spec))
}

/// Bytes of a store; `u64::MAX` if they overflow.
///
/// # Errors
/// [`Error::Unsupported`] for encodings without kernels, and for heads that are not whole blocks.
pub(crate) fn bytes(spec: &KvSpec) -> Result<u64> {
    spec.check_encodings("the CPU backend", &ENCODINGS)?;
    Ok(spec.key_encodings.iter().fold(0u64, |bytes, key| bytes.saturating_add(layer_bytes(spec, *key))))
}

/// Bytes of a layer, as above.
fn layer_bytes(spec: &KvSpec, key: Encoding) -> u64 {
    let padded_dim = spec.head_dim.checked_next_multiple_of(LANES).unwrap_or(usize::MAX);
    spec.heads_bytes(key, spec.head_dim).saturating_add(spec.heads_bytes(spec.value_encoding, padded_dim))
}

impl Store {
    pub(crate) fn new(spec: &KvSpec, owner: u64) -> Result<Store> {
        if spec.block_size == 0 || !spec.block_size.is_multiple_of(LANES) {
            return Err(Error::argument("block_size", format!("{} is not a multiple of {LANES}", spec.block_size)));
        }
        if spec.num_key_value_heads == 0 || spec.head_dim == 0 {
            let heads = format!("{} K/V heads of {} channels", spec.num_key_value_heads, spec.head_dim);
            return Err(Error::argument("num_key_value_heads", format!("{heads} hold nothing")));
        }
        // Slot numbers must fit in 32 bits, even for a store without layers.
        spec.layer_values()?;
        let Some(bytes) = usize::try_from(bytes(spec)?).ok().filter(|bytes| *bytes <= isize::MAX as usize) else {
            let shape = format!("{} layers of {} blocks", spec.num_layers(), spec.num_blocks);
            return Err(Error::argument("num_blocks", format!("{shape} exceed what memory can address")));
        };
        let mut end = 0;
        // At most the total, which fits in a usize.
        let first = |key: &Encoding| {
            let first = end;
            end += layer_bytes(spec, *key) as usize;
            first
        };
        let layers = spec.key_encodings.iter().map(first).collect();
        Ok(Store { spec: Arc::new(spec.clone()), layers, array: Array::zeroed(bytes / 2, owner)? })
    }

    /// The keys of K/V head `head` in block `block` of layer `layer`.
    #[inline(always)]
    pub(crate) fn keys(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let spec = &self.spec;
        assert!(block < spec.num_blocks && head < spec.num_key_value_heads);
        let within = (block * spec.num_key_value_heads + head) * head_bytes(spec, spec.key_encodings[layer]);
        self.array.ptr().cast::<u8>().wrapping_add(self.layers[layer] + within)
    }

    /// The values of the same.
    #[inline(always)]
    pub(crate) fn values(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let keys = self.spec.key_encodings[layer].bytes(self.spec.block_size * self.spec.head_dim);
        self.keys(layer, block, head).wrapping_add(keys)
    }

    /// Copy a block of all layers to `out`, in the layout of [`KvSpec::block_parts`].
    ///
    /// # Safety
    /// Nothing else accesses the store meanwhile.
    pub(crate) unsafe fn read_block(&self, block: usize, out: &mut [u8]) {
        for part in self.spec.block_parts() {
            // SAFETY: guaranteed by the caller.
            let stored = unsafe { self.part(&part, block) };
            let out = &mut out[part.bytes.clone()];
            self.for_each_run(&part, |at, from, len| out[at..at + len].copy_from_slice(&stored[from..from + len]));
        }
    }

    /// The contrary of [`Store::read_block`].
    ///
    /// # Safety
    /// As [`Store::read_block`].
    pub(crate) unsafe fn write_block(&self, block: usize, bytes: &[u8]) {
        for part in self.spec.block_parts() {
            // SAFETY: guaranteed by the caller.
            let stored = unsafe { self.part(&part, block) };
            let bytes = &bytes[part.bytes.clone()];
            self.for_each_run(&part, |at, to, len| stored[to..to + len].copy_from_slice(&bytes[at..at + len]));
        }
    }

    /// What one head keeps in a block.
    ///
    /// # Safety
    /// Nothing else accesses it during the slice's lifetime.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, part: &BlockPart, block: usize) -> &mut [u8] {
        let (spec, &BlockPart { layer, head, .. }) = (&self.spec, part);
        let (start, width) = match part.is_value {
            true => (self.values(layer, block, head), padded_dim(spec)),
            false => (self.keys(layer, block, head), spec.head_dim),
        };
        // SAFETY: `keys` and `values` are this long for each head of each block; the caller has exclusive access.
        unsafe { std::slice::from_raw_parts_mut(start, part.encoding.bytes(spec.block_size * width)) }
    }

    /// Call `run` with where bytes are in the layout of blocks on the host, where they are stored, and how many.
    fn for_each_run(&self, part: &BlockPart, mut run: impl FnMut(usize, usize, usize)) {
        let (dim, size) = (self.spec.head_dim, self.spec.block_size);
        if part.encoding == Encoding::Q8_0 {
            for position in 0..size {
                let lane = position % LANES;
                for i in (0..dim).step_by(TILE_CHANNELS) {
                    let at = (position * dim + i) / TILE_CHANNELS * q8::BYTES;
                    let tile = TILE
                        * match part.is_value {
                            true => (i / TILE_CHANNELS * size + position) / LANES,
                            false => (position / LANES * dim + i) / TILE_CHANNELS,
                        };
                    run(at, tile + 2 * lane, 2);
                    let codes = tile + TILE_CODES;
                    match part.is_value {
                        true => (0..TILE_CHANNELS / LANES).for_each(|half| {
                            run(at + 2 + half * LANES, codes + (half * LANES + lane) * LANES, LANES);
                        }),
                        false => (0..TILE_CHANNELS).for_each(|code| run(at + 2 + code, codes + code * LANES + lane, 1)),
                    }
                }
            }
            return;
        }
        let bytes = part.encoding.bytes(1);
        for position in 0..size {
            let (group, lane) = (position / LANES, position % LANES);
            match part.is_value {
                true => (0..dim).step_by(LANES).for_each(|i| {
                    let stored = (i / LANES * size + position) * LANES;
                    run((position * dim + i) * bytes, stored * bytes, LANES.min(dim - i) * bytes);
                }),
                false => (0..dim).for_each(|i| {
                    let stored = (group * dim + i) * LANES + lane;
                    run((position * dim + i) * bytes, stored * bytes, bytes);
                }),
            }
        }
    }

    /// Copy whole blocks of all layers.
    ///
    /// # Safety
    /// Nothing else accesses the store meanwhile.
    pub(crate) unsafe fn copy_blocks(&self, pairs: &[(u32, u32)]) {
        let spec = &self.spec;
        for (layer, key) in self.layers.iter().zip(&spec.key_encodings) {
            let block = spec.num_key_value_heads * head_bytes(spec, *key) / 2;
            for &(from, to) in pairs {
                if from != to {
                    let at = |index: u32| layer / 2 + index as usize * block;
                    // SAFETY: two different blocks; the caller guarantees that nothing else accesses them.
                    let (from, to) =
                        unsafe { (self.array.slice(at(from), block), self.array.slice_mut(at(to), block)) };
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
