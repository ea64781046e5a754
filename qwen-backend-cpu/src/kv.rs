//! The paged K/V store of a range of layers.
//!
//! Keys lie with sixteen positions in the lanes, values with sixteen of a head's channels; both are then read like a
//! packed weight matrix ([`crate::matrix`]), the scores and the weighted sums being matrix products:
//!
//! ```text
//! [layer][block][K/V head] { K [position / 16][channel][16 positions],  V [channel / 16][position][16 channels] }
//! ```
//!
//! A head whose width is no multiple of 16 has padding channels in V. Elements are f32, or f16 in the fast precision;
//! values beyond the largest f16 are stored as that (see [`crate::kernels::store_kv`]).

use qwen_core::backend::KvSpec;
use qwen_core::{Encoding, Error, Result};

use crate::memory::Cells;
use crate::simd::LANES;

/// A K/V store as operations hold it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) spec: KvSpec,
    // f16 elements, or halves of f32 elements.
    pub(crate) cells: Cells<u16>,
}

/// Channels of a head in V, with padding.
pub(crate) fn padded_dim(spec: &KvSpec) -> usize {
    spec.head_dim.next_multiple_of(LANES)
}

/// Elements of a block of one K/V head: its keys and its values.
fn head_elements(spec: &KvSpec) -> usize {
    spec.block_size * (spec.head_dim + padded_dim(spec))
}

/// Bytes of a store.
pub(crate) fn bytes(spec: &KvSpec) -> usize {
    spec.encoding.bytes(spec.num_layers * spec.num_blocks * spec.num_key_value_heads * head_elements(spec))
}

impl Store {
    pub(crate) fn new(spec: &KvSpec, owner: u64) -> Result<Store> {
        if spec.block_size == 0 || !spec.block_size.is_multiple_of(LANES) {
            return Err(Error::argument("block_size", format!("{} is not a multiple of {LANES}", spec.block_size)));
        }
        if !matches!(spec.encoding, Encoding::F32 | Encoding::F16) {
            let reason = "the CPU backend stores F32 or F16";
            return Err(Error::unsupported(format!("a K/V store of {}", spec.encoding), reason));
        }
        Ok(Store { spec: *spec, cells: Cells::zeroed(bytes(spec) / 2, owner)? })
    }

    /// The keys of K/V head `head` in block `block` of layer `layer`.
    #[inline(always)]
    pub(crate) fn keys(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let spec = &self.spec;
        assert!(layer < spec.num_layers && block < spec.num_blocks && head < spec.num_key_value_heads);
        let index = (layer * spec.num_blocks + block) * spec.num_key_value_heads + head;
        self.cells.ptr().cast::<u8>().wrapping_add(spec.encoding.bytes(index * head_elements(spec)))
    }

    /// The values of the same.
    #[inline(always)]
    pub(crate) fn values(&self, layer: usize, block: usize, head: usize) -> *mut u8 {
        let keys = self.spec.encoding.bytes(self.spec.block_size * self.spec.head_dim);
        self.keys(layer, block, head).wrapping_add(keys)
    }

    /// Copy whole blocks of all layers.
    ///
    /// # Safety
    /// Nothing else touches the store meanwhile.
    pub(crate) unsafe fn copy_blocks(&self, pairs: &[(u32, u32)]) {
        let spec = &self.spec;
        let block = spec.encoding.bytes(spec.num_key_value_heads * head_elements(spec)) / 2;
        for layer in 0..spec.num_layers {
            for &(from, to) in pairs {
                if from != to {
                    let at = |index: u32| (layer * spec.num_blocks + index as usize) * block;
                    // SAFETY: two different blocks; the caller vouches that nothing else touches them.
                    let (from, to) =
                        unsafe { (self.cells.slice(at(from), block), self.cells.slice_mut(at(to), block)) };
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
