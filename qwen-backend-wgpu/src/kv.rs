//! The layout of the paged K/V store on the device: for each layer slabs of heads, each within the limit of a binding.
//!
//! A slab is `[head][slot][pair]`, a pair of values in one word (f16) or two (f32). Positions of a block are
//! consecutive, so that a head's keys of a block are contiguous.

use qwen_core::backend::KvSpec;
use qwen_core::numerics::size;
use qwen_core::{Encoding, Error, HumanBytes, Result};

use crate::runtime::array::Array;
use crate::runtime::device::Device;
use crate::shader::Shader;
use crate::weight::max_slab;

/// The heads of a layer that one pair of arrays holds.
#[derive(Debug)]
pub(crate) struct Slab {
    pub(crate) first_head: usize,
    pub(crate) heads: usize,
    pub(crate) keys: Array,
    pub(crate) values: Array,
}

/// The K/V store of a range of layers.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) spec: KvSpec,
    pub(crate) layers: Vec<Vec<Slab>>,
    /// Positions of all blocks.
    pub(crate) num_slots: usize,
}

/// Whether the keys and the values of a layer are f16; otherwise they are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvTypes {
    pub(crate) key_f16: bool,
    pub(crate) value_f16: bool,
}

impl KvTypes {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [
        KvTypes { key_f16: true, value_f16: true },
        KvTypes { key_f16: false, value_f16: true },
        KvTypes { key_f16: true, value_f16: false },
        KvTypes { key_f16: false, value_f16: false },
    ];

    /// Adds the flags of kernels that write or read such a layer.
    pub(crate) fn flags(self, shader: Shader) -> Shader {
        shader.flag_if(self.key_f16, "KEY_F16").flag_if(self.value_f16, "VALUE_F16")
    }
}

/// How a K/V store is split into slabs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreLayout {
    /// Per layer: heads of a slab, bytes of the keys of a head.
    layers: Vec<(usize, u64)>,
    /// Bytes of the values of a head.
    value_bytes: u64,
    num_key_value_heads: usize,
    num_slots: usize,
}

impl StoreLayout {
    /// The layout on a device that binds `max_binding` bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for encodings without kernels and when the keys or the values of one head cannot be bound,
    /// [`Error::InvalidArgument`] when a slot number exceeds 32 bits.
    pub(crate) fn new(spec: &KvSpec, max_binding: u64) -> Result<Self> {
        spec.check_encodings("the wgpu backend", &[Encoding::F32, Encoding::F16])?;
        let num_slots = spec.num_slots()?;
        let head_bytes = |encoding: Encoding| size::bytes(encoding.bytes(1), &[num_slots, spec.head_dim]);
        let value_bytes = head_bytes(spec.value_encoding);
        let layer = |key: &Encoding| {
            let key_bytes = head_bytes(*key);
            let heads = heads_per_slab(num_slots, key_bytes.max(value_bytes), max_binding)?;
            Ok((heads.min(spec.num_key_value_heads.max(1)), key_bytes))
        };
        let layers = spec.key_encodings.iter().map(layer).collect::<Result<_>>()?;
        Ok(StoreLayout { layers, value_bytes, num_key_value_heads: spec.num_key_value_heads, num_slots })
    }

    /// Pairs of arrays, of keys and of values.
    pub(crate) fn num_slabs(&self) -> usize {
        let slabs = self.layers.iter().map(|(heads, _)| self.num_key_value_heads.div_ceil(*heads));
        slabs.fold(0, usize::saturating_add)
    }

    /// Bytes of all keys and values; `u64::MAX` if they overflow.
    pub(crate) fn bytes(&self) -> u64 {
        let heads = self.num_key_value_heads as u64;
        let layer = |(_, key_bytes): &(usize, u64)| key_bytes.saturating_add(self.value_bytes).saturating_mul(heads);
        self.layers.iter().map(layer).fold(0, u64::saturating_add)
    }
}

/// The number of heads whose keys and values can be bound: each takes at most `head_bytes` per head.
fn heads_per_slab(num_slots: usize, head_bytes: u64, max_binding: u64) -> Result<usize> {
    match usize::try_from(max_binding / head_bytes.max(1)).unwrap_or(usize::MAX) {
        0 => {
            let fit = max_binding / (head_bytes / num_slots.max(1) as u64).max(1);
            let reason = format!("the device binds {}: {fit} positions of a head at most", HumanBytes(max_binding));
            Err(Error::unsupported(format!("K/V of {num_slots} positions"), reason))
        }
        heads => Ok(heads),
    }
}

impl Store {
    /// A store, all zero.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device cannot hold such a store, [`Error::OutOfMemory`] when it is larger than its
    /// memory.
    pub(crate) fn new(device: &Device, spec: &KvSpec) -> Result<Self> {
        let layout = StoreLayout::new(spec, max_slab(&device.limits))?;
        let num_slots = layout.num_slots;
        if num_slots == 0 || spec.head_dim == 0 || spec.num_key_value_heads == 0 {
            return Err(Error::unsupported("a K/V store without a position or a head", format!("it is {spec:?}")));
        }
        device.check_memory("the K/V store", layout.bytes())?;
        let mut layers = Vec::with_capacity(spec.num_layers());
        for (layer, (heads_per_slab, key_bytes)) in layout.layers.iter().enumerate() {
            let mut slabs = Vec::new();
            for first_head in (0..spec.num_key_value_heads).step_by(*heads_per_slab) {
                let heads = (*heads_per_slab).min(spec.num_key_value_heads - first_head);
                let words = |head_bytes: u64| (heads as u64).saturating_mul(head_bytes).div_ceil(4);
                slabs.push(Slab {
                    first_head,
                    heads,
                    keys: device.array(&format!("keys of layer {layer}"), words(*key_bytes))?,
                    values: device.array(&format!("values of layer {layer}"), words(layout.value_bytes))?,
                });
            }
            layers.push(slabs);
        }
        Ok(Store { spec: spec.clone(), layers, num_slots })
    }

    /// The memory layout of layer `layer`.
    pub(crate) fn types(&self, layer: usize) -> KvTypes {
        KvTypes {
            key_f16: self.spec.key_encodings.get(layer) == Some(&Encoding::F16),
            value_f16: self.spec.value_encoding == Encoding::F16,
        }
    }

    /// Bytes of the key and the value of one head at one position.
    pub(crate) fn position_bytes(&self, layer: usize) -> u64 {
        let key = self.spec.key_encodings.get(layer).copied().unwrap_or(Encoding::F32);
        (key.bytes(self.spec.head_dim) + self.spec.value_encoding.bytes(self.spec.head_dim)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(num_blocks: usize, block_size: usize, num_key_value_heads: usize, head_dim: usize) -> KvSpec {
        let (key_encodings, value_encoding) = (vec![Encoding::F32, Encoding::F16], Encoding::F16);
        KvSpec { key_encodings, value_encoding, num_blocks, block_size, num_key_value_heads, head_dim }
    }

    #[test]
    fn a_store_is_cut_by_heads_within_the_limit() {
        let spec = spec(64, 16, 8, 128);
        let layout = StoreLayout::new(&spec, 2 * 4 * 1024 * 128).unwrap();
        assert_eq!(layout.layers, [(2, 4 * 1024 * 128), (4, 2 * 1024 * 128)]);
        assert_eq!((layout.num_slabs(), layout.bytes()), (4 + 2, spec.stored_bytes()));
        let error = StoreLayout::new(&spec, 4 * 1000 * 128).unwrap_err().to_string();
        assert!(error.contains("K/V of 1024 positions") && error.contains("1000 positions of a head"), "{error}");
    }

    #[test]
    fn sizes_beyond_every_memory_do_not_wrap() {
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            let wrapping =
                [spec(huge, 16, 2, 64), spec(4, huge, 2, 64), spec(4, 16, 2, huge), spec(huge, huge, huge, huge)];
            for spec in wrapping {
                let refusal = StoreLayout::new(&spec, (2 << 30) - 4);
                let refused = matches!(refusal, Err(Error::Unsupported { .. } | Error::InvalidArgument { .. }));
                assert!(refused, "{spec:?}: {refusal:?}");
            }
            // Heads are split into slabs: any number of them is planned in constant time.
            let layout = StoreLayout::new(&spec(4, 16, huge, 64), (2 << 30) - 4).unwrap();
            assert!(layout.bytes() >= huge as u64 && layout.num_slabs() > 1 << 10);
        }
    }
}
