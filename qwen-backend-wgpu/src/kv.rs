//! The layout of the paged K/V store on the device: for each layer slabs of heads, each within the limit of a binding.
//!
//! A slab is `[head][slot][pair]`, a pair of values in one word (f16) or two (f32). Positions of a block are
//! consecutive, so that a head's keys of a block are contiguous. In Q8_0 a head is two planes, `[slot][channel / 4]` words
//! of codes and `[slot][channel / 64]` words of two f16 scales each, so that codes can be read 16 bytes at a time.

use qwen_core::backend::KvSpec;
use qwen_core::numerics::size;
use qwen_core::{Encoding, Error, HumanBytes, Result};

use crate::runtime::array::Array;
use crate::runtime::device::Device;
use crate::shader::Shader;
use crate::weight::max_slab;

/// The encodings that a store may have.
const ENCODINGS: [Encoding; 3] = [Encoding::F32, Encoding::F16, Encoding::Q8_0];

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

/// How the keys or the values of a layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvType {
    F32,
    F16,
    Q8,
}

impl KvType {
    /// The type of an encoding that a store may have.
    fn of(encoding: Encoding) -> Self {
        match encoding {
            Encoding::F16 => KvType::F16,
            Encoding::Q8_0 => KvType::Q8,
            _ => KvType::F32,
        }
    }
}

/// How the keys and the values of a layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvTypes {
    pub(crate) key: KvType,
    pub(crate) value: KvType,
}

impl KvTypes {
    /// Those that are stored pair by pair, by a matrix product as well.
    #[cfg(test)]
    pub(crate) const PAIRS: [Self; 4] = [
        KvTypes { key: KvType::F16, value: KvType::F16 },
        KvTypes { key: KvType::F32, value: KvType::F16 },
        KvTypes { key: KvType::F16, value: KvType::F32 },
        KvTypes { key: KvType::F32, value: KvType::F32 },
    ];

    /// Those with keys or values in blocks of channels.
    #[cfg(test)]
    pub(crate) const BLOCKS: [Self; 5] = [
        KvTypes { key: KvType::Q8, value: KvType::Q8 },
        KvTypes { key: KvType::Q8, value: KvType::F16 },
        KvTypes { key: KvType::Q8, value: KvType::F32 },
        KvTypes { key: KvType::F16, value: KvType::Q8 },
        KvTypes { key: KvType::F32, value: KvType::Q8 },
    ];

    /// Whether keys or values are stored in blocks of channels, so that no single pair can be stored.
    pub(crate) fn has_blocks(self) -> bool {
        self.key == KvType::Q8 || self.value == KvType::Q8
    }

    /// Adds the flags of kernels that write or read such a layer.
    pub(crate) fn flags(self, shader: Shader) -> Shader {
        let shader = shader.flag_if(self.key == KvType::F16, "KEY_F16").flag_if(self.value == KvType::F16, "VALUE_F16");
        shader.flag_if(self.key == KvType::Q8, "KEY_Q8").flag_if(self.value == KvType::Q8, "VALUE_Q8")
    }
}

/// Words of the codes and of the scales of one position of a head in Q8_0.
fn q8_words(head_dim: usize) -> [usize; 2] {
    [head_dim / 4, head_dim.div_ceil(64)]
}

/// Bytes of the keys or the values of one head; `u64::MAX` if they overflow.
fn head_bytes(encoding: Encoding, num_slots: usize, head_dim: usize) -> u64 {
    match KvType::of(encoding) {
        KvType::Q8 => {
            let words = q8_words(head_dim).map(|words| size::bytes(4, &[num_slots, words]));
            // Whole vectors of four words, so that the next head begins with one.
            words[0].saturating_add(words[1]).checked_next_multiple_of(16).unwrap_or(u64::MAX)
        }
        _ => size::bytes(encoding.bytes(1), &[num_slots, head_dim]),
    }
}

/// A plane of a head: where it begins, and words of a block in it, which are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) first_word: usize,
    pub(crate) block_words: usize,
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
        spec.check_encodings("the wgpu backend", &ENCODINGS)?;
        let num_slots = spec.num_slots()?;
        let value_bytes = head_bytes(spec.value_encoding, num_slots, spec.head_dim);
        let layer = |key: &Encoding| {
            let key_bytes = head_bytes(*key, num_slots, spec.head_dim);
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

    /// How layer `layer` is stored.
    pub(crate) fn types(&self, layer: usize) -> KvTypes {
        let key = self.spec.key_encodings.get(layer).map_or(KvType::F32, |key| KvType::of(*key));
        KvTypes { key, value: KvType::of(self.spec.value_encoding) }
    }

    /// Words of the keys or the values of a head.
    pub(crate) fn head_words(&self, encoding: Encoding) -> usize {
        (head_bytes(encoding, self.num_slots, self.spec.head_dim) / 4) as usize
    }

    /// What the keys or the values of a head consist of.
    pub(crate) fn planes(&self, encoding: Encoding) -> Vec<Plane> {
        let KvSpec { block_size, head_dim, .. } = self.spec;
        match KvType::of(encoding) {
            KvType::Q8 => {
                let [codes, scales] = q8_words(head_dim);
                let first_word = self.num_slots * codes;
                let codes = Plane { first_word: 0, block_words: block_size * codes };
                vec![codes, Plane { first_word, block_words: block_size * scales }]
            }
            _ => vec![Plane { first_word: 0, block_words: encoding.bytes(block_size * head_dim) / 4 }],
        }
    }

    /// Bytes of the key and the value of one head at one position.
    pub(crate) fn position_bytes(&self, layer: usize) -> u64 {
        let key = self.spec.key_encodings.get(layer).copied().unwrap_or(Encoding::F32);
        let bytes = |encoding| self.planes(encoding).iter().map(|plane| plane.block_words).sum::<usize>() as u64 * 4;
        (bytes(key) + bytes(self.spec.value_encoding)) / self.spec.block_size.max(1) as u64
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
    fn heads_in_blocks_are_whole_vectors() {
        let layout = |head_dim, num_blocks| {
            let (key_encodings, value_encoding) = (vec![Encoding::F16, Encoding::Q8_0], Encoding::Q8_0);
            let spec = KvSpec { key_encodings, value_encoding, ..spec(num_blocks, 16, 2, head_dim) };
            (StoreLayout::new(&spec, 1 << 27).unwrap(), spec.stored_bytes())
        };
        for (head_dim, position) in [(64, 68), (128, 136), (256, 272)] {
            let (layout, stored) = layout(head_dim, 8);
            assert_eq!((layout.value_bytes, layout.layers[1].1), (128 * position, 128 * position));
            assert_eq!(layout.bytes(), stored);
        }
        // Half a word of scales is left over.
        assert_eq!(layout(32, 8).0.value_bytes, 128 * 36);
        assert_eq!(layout(96, 8).0.value_bytes, 128 * 104);
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
