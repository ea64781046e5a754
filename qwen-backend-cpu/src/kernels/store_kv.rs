//! Keys and values into the paged store (layout: [`crate::kv`]).
//!
//! In the fast precision they are rounded to f16. Qwen2.5's key biases reach hundreds, which f16 holds; a value beyond
//! its largest, 65504, is stored as that, so that damage stays bounded instead of turning into infinities.

use qwen_core::Encoding;
use qwen_core::backend::HeadLayout;

use super::math::load_first;
use super::scratch::Scratch;
use crate::kv::Store;
use crate::memory::Cells;
use crate::simd::{Kernel, LANES, Simd};

/// Store the key and value heads of a token; a piece is a token.
#[derive(Debug)]
pub(crate) struct StoreKv {
    pub(crate) qkv: Cells<f32>,
    pub(crate) slots: Cells<u32>,
    pub(crate) kv: Store,
    pub(crate) layer: usize,
    pub(crate) heads: HeadLayout,
    pub(crate) rows: usize,
}

/// Store `lanes` channels of a key, from channel `channel` on.
///
/// # Safety
/// Nothing else touches the slot.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn store_key<S: Simd>(
    s: S,
    kv: &Store,
    layer: usize,
    head: usize,
    slot: usize,
    channel: usize,
    v: S::F,
    lanes: usize,
) {
    let (block, position) = (slot / kv.spec.block_size, slot % kv.spec.block_size);
    let at = (position / LANES * kv.spec.head_dim + channel) * LANES + position % LANES;
    let keys = kv.keys(layer, block, head);
    // SAFETY: the slot lies within the block, and `lanes` channels within the head.
    unsafe {
        if kv.spec.key_encodings[layer] == Encoding::F16 {
            let mut values = [0u16; LANES];
            s.store_f16(v, values.as_mut_ptr());
            let out = keys.cast::<u16>().add(at);
            for (i, value) in values.iter().enumerate().take(lanes) {
                *out.add(i * LANES) = *value;
            }
        } else {
            let mut values = [0f32; LANES];
            s.store(v, values.as_mut_ptr());
            let out = keys.cast::<f32>().add(at);
            for (i, value) in values.iter().enumerate().take(lanes) {
                *out.add(i * LANES) = *value;
            }
        }
    }
}

/// Store sixteen channels of a value, from channel `channel` on, padding included.
///
/// # Safety
/// Nothing else touches the slot.
#[inline(always)]
pub(crate) unsafe fn store_value<S: Simd>(
    s: S,
    kv: &Store,
    layer: usize,
    head: usize,
    slot: usize,
    channel: usize,
    v: S::F,
) {
    let (block, position) = (slot / kv.spec.block_size, slot % kv.spec.block_size);
    let at = (channel / LANES * kv.spec.block_size + position) * LANES;
    let values = kv.values(layer, block, head);
    // SAFETY: the slot lies within the block, and the channels within the padded head.
    unsafe {
        if kv.spec.value_encoding == Encoding::F16 {
            s.store_f16(v, values.cast::<u16>().add(at));
        } else {
            s.store(v, values.cast::<f32>().add(at));
        }
    }
}

impl Kernel for StoreKv {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, row: usize, _: &mut Scratch) {
        let dim = self.heads.head_dim;
        // SAFETY: operations that write the inputs are over; slots of a step are distinct.
        unsafe {
            let slot = self.slots.slice(row, 1)[0] as usize;
            if slot >= self.kv.spec.num_blocks * self.kv.spec.block_size {
                return;
            }
            let at = row * self.heads.qkv_size() + self.heads.q_size();
            let x = self.qkv.slice(at, 2 * self.heads.kv_size()).as_ptr();
            for head in 0..self.heads.num_key_value_heads {
                let (k, v) = (x.add(head * dim), x.add(self.heads.kv_size() + head * dim));
                for i in (0..dim).step_by(LANES) {
                    let lanes = LANES.min(dim - i);
                    let key = load_first(s, k.add(i), lanes);
                    store_key(s, &self.kv, self.layer, head, slot, i, key, lanes);
                    store_value(s, &self.kv, self.layer, head, slot, i, load_first(s, v.add(i), lanes));
                }
            }
        }
    }
}
