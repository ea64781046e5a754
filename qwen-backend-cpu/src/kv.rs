//! The paged K/V store of a range of layers.
//!
//! Keys lie with sixteen positions in the lanes, values with sixteen of a head's channels; both are then read like a
//! packed weight matrix ([`crate::matrix`]), the scores and the weighted sums being matrix products:
//!
//! ```text
//! [layer][block][K/V head] { K [position / 16][channel][16 positions],  V [channel / 16][position][16 channels] }
//! ```
//!
//! A head whose width is no multiple of 16 has padding channels in V. Elements are f32, or f16 in the fast precision
//! (keys by layer, see [`KvSpec::key_encodings`]);
//! values beyond the largest f16 are stored as that (see [`crate::kernels::store_kv`]).

use std::sync::Arc;

use qwen_core::backend::KvSpec;
use qwen_core::{Encoding, Error, Result};

use crate::memory::Cells;
use crate::simd::LANES;

/// A K/V store as operations hold it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) spec: Arc<KvSpec>,
    // The first byte of each layer.
    layers: Arc<[usize]>,
    // f16 elements, or halves of f32 elements.
    pub(crate) cells: Cells<u16>,
}

/// Channels of a head in V, with padding.
pub(crate) fn padded_dim(spec: &KvSpec) -> usize {
    spec.head_dim.next_multiple_of(LANES)
}

/// Bytes of a block of one K/V head: its keys and its values. Of a spec whose `bytes` are known to be few enough.
fn head_bytes(spec: &KvSpec, key: Encoding) -> usize {
    key.bytes(spec.block_size * spec.head_dim) + spec.value_encoding.bytes(spec.block_size * padded_dim(spec))
}

/// Bytes of a store, and where each layer begins.
///
/// # Errors
/// [`Error::InvalidArgument`] when it exceeds the address space, with or without layers.
fn layout(spec: &KvSpec) -> Result<(usize, Vec<usize>)> {
    let layer_bytes = |key: Encoding| {
        let padded_dim = spec.head_dim.checked_next_multiple_of(LANES)?;
        let keys = spec.head_dim.checked_mul(key.bytes(1))?;
        let position = padded_dim.checked_mul(spec.value_encoding.bytes(1))?.checked_add(keys)?;
        let blocks = spec.num_blocks.checked_mul(spec.num_key_value_heads)?;
        blocks.checked_mul(spec.block_size)?.checked_mul(position)
    };
    let all = || {
        let mut end = layer_bytes(Encoding::F32).map(|_| 0usize)?;
        let mut layers = Vec::with_capacity(spec.num_layers());
        for key in &spec.key_encodings {
            layers.push(end);
            end = end.checked_add(layer_bytes(*key)?)?;
        }
        (end <= isize::MAX as usize).then_some((end, layers))
    };
    all().ok_or_else(|| {
        let KvSpec { num_blocks, block_size, num_key_value_heads, head_dim, .. } = spec;
        let layers = spec.num_layers();
        let shape = format!("{layers} layers of {num_blocks} x {block_size} x {num_key_value_heads} x {head_dim}");
        Error::argument("kv", format!("a K/V store of {shape} exceeds the address space"))
    })
}

/// Bytes of a store.
///
/// # Errors
/// As `layout`.
pub(crate) fn bytes(spec: &KvSpec) -> Result<usize> {
    Ok(layout(spec)?.0)
}

impl Store {
    pub(crate) fn new(spec: &KvSpec, owner: u64) -> Result<Store> {
        if spec.block_size == 0 || !spec.block_size.is_multiple_of(LANES) {
            return Err(Error::argument("block_size", format!("{} is not a multiple of {LANES}", spec.block_size)));
        }
        if spec.num_key_value_heads == 0 || spec.head_dim == 0 {
            let heads = format!("{} K/V heads of {} channels", spec.num_key_value_heads, spec.head_dim);
            return Err(Error::argument("kv", format!("{heads} hold nothing")));
        }
        let encodings = spec.key_encodings.iter().chain([&spec.value_encoding]);
        if let Some(encoding) = encodings.into_iter().find(|e| !matches!(e, Encoding::F32 | Encoding::F16)) {
            let reason = "the CPU backend stores F32 or F16";
            return Err(Error::unsupported(format!("a K/V store of {encoding}"), reason));
        }
        let (bytes, layers) = layout(spec)?;
        Ok(Store { spec: Arc::new(spec.clone()), layers: layers.into(), cells: Cells::zeroed(bytes / 2, owner)? })
    }

    /// The keys of K/V head `head` in block `block` of layer `layer`.
    #[inline(always)]
    pub(crate) fn keys(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let spec = &self.spec;
        assert!(block < spec.num_blocks && head < spec.num_key_value_heads);
        let within = (block * spec.num_key_value_heads + head) * head_bytes(spec, spec.key_encodings[layer]);
        self.cells.ptr().cast::<u8>().wrapping_add(self.layers[layer] + within)
    }

    /// The values of the same.
    #[inline(always)]
    pub(crate) fn values(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let keys = self.spec.key_encodings[layer].bytes(self.spec.block_size * self.spec.head_dim);
        self.keys(layer, block, head).wrapping_add(keys)
    }

    /// Copy whole blocks of all layers.
    ///
    /// # Safety
    /// Nothing else touches the store meanwhile.
    pub(crate) unsafe fn copy_blocks(&self, pairs: &[(u32, u32)]) {
        let spec = &self.spec;
        for (layer, key) in self.layers.iter().zip(&spec.key_encodings) {
            let block = spec.num_key_value_heads * head_bytes(spec, *key) / 2;
            for &(from, to) in pairs {
                if from != to {
                    let at = |index: u32| layer / 2 + index as usize * block;
                    // SAFETY: two different blocks; the caller vouches that nothing else touches them.
                    let (from, to) =
                        unsafe { (self.cells.slice(at(from), block), self.cells.slice_mut(at(to), block)) };
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
