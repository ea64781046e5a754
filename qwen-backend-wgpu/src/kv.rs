//! How the paged K/V store lies on the device: for each layer slabs of heads, each within the limit of a binding.
//!
//! A slab is `[head][slot][pair]`, a pair of values in one word (f16) or two (f32). Positions of a block follow each
//! other, so that a head's keys of a block are one stretch of memory.

use qwen_core::backend::KvSpec;
use qwen_core::{Encoding, Error, Result};

use crate::gpu::{Array, Gpu};
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
}

/// Whether keys and values of a layer are f16; else they are f32.
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

    /// The flags of kernels that write or read such a layer.
    pub(crate) fn flags(self, shader: Shader) -> Shader {
        shader.flag_if(self.key_f16, "KEY_F16").flag_if(self.value_f16, "VALUE_F16")
    }
}

impl Store {
    pub(crate) fn new(gpu: &mut Gpu, spec: &KvSpec) -> Result<Self> {
        let mut layers = Vec::with_capacity(spec.num_layers());
        for (layer, key_encoding) in spec.key_encodings.iter().enumerate() {
            let most = heads_per_slab(spec, *key_encoding, max_slab(&gpu.limits))?;
            let mut slabs = Vec::new();
            for first_head in (0..spec.num_key_value_heads).step_by(most) {
                let heads = most.min(spec.num_key_value_heads - first_head);
                let words = |encoding| heads * head_bytes(spec, encoding) as usize / 4;
                slabs.push(Slab {
                    first_head,
                    heads,
                    keys: gpu.array(&format!("keys of layer {layer}"), words(*key_encoding))?,
                    values: gpu.array(&format!("values of layer {layer}"), words(spec.value_encoding))?,
                });
            }
            layers.push(slabs);
        }
        Ok(Store { spec: spec.clone(), layers })
    }

    /// How layer `layer` lies in memory.
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

    /// Positions of all blocks.
    pub(crate) fn num_slots(&self) -> usize {
        self.spec.num_blocks * self.spec.block_size
    }
}

pub(crate) fn head_bytes(spec: &KvSpec, encoding: Encoding) -> u64 {
    encoding.bytes(spec.num_blocks * spec.block_size * spec.head_dim) as u64
}

/// Heads whose keys, and whose values, can be bound.
///
/// # Errors
/// [`Error::Unsupported`] when not even one can.
pub(crate) fn heads_per_slab(spec: &KvSpec, key_encoding: Encoding, max_binding: u64) -> Result<usize> {
    let wider = head_bytes(spec, key_encoding).max(head_bytes(spec, spec.value_encoding)).max(1);
    match (max_binding / wider) as usize {
        0 => {
            let slots = spec.num_blocks * spec.block_size;
            let fit = max_binding / (wider / slots.max(1) as u64).max(1);
            let reason = format!("the device binds {max_binding} bytes: {fit} positions of a head at most");
            Err(Error::unsupported(format!("K/V of {slots} positions"), reason))
        }
        heads => Ok(heads.min(spec.num_key_value_heads.max(1))),
    }
}
