//! How the paged K/V store lies on the card: for each layer an array of keys and one of values, both
//! `[head][slot][head_dim]`. Positions of a block follow each other, so that a head's keys of a block are one stretch
//! of memory.

use qwen_core::backend::KvSpec;
use qwen_core::{Encoding, Error, Result};

use crate::driver::Array;
use crate::gpu::{Gpu, taken_bytes};
use crate::kernel::Element;

/// The K/V store of a range of layers.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) spec: KvSpec,
    pub(crate) layers: Vec<Layer>,
}

/// Keys and values of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) key_element: Element,
    pub(crate) value_element: Element,
}

impl Store {
    pub(crate) fn new(gpu: &mut Gpu, spec: &KvSpec) -> Result<Self> {
        kv_bytes(spec)?;
        let value_element = element(spec.value_encoding)?;
        let mut layers = Vec::with_capacity(spec.num_layers());
        for (layer, key_encoding) in spec.key_encodings.iter().enumerate() {
            let key_element = element(*key_encoding)?;
            let values = layer_values(spec);
            layers.push(Layer {
                keys: gpu.array(&format!("keys of layer {layer}"), key_element.bytes(values))?,
                values: gpu.array(&format!("values of layer {layer}"), value_element.bytes(values))?,
                key_element,
                value_element,
            });
        }
        Ok(Store { spec: spec.clone(), layers })
    }

    /// Positions of all blocks.
    pub(crate) fn num_slots(&self) -> usize {
        self.spec.num_blocks * self.spec.block_size
    }

    /// Values of a layer's keys, and of its values.
    pub(crate) fn layer_values(&self) -> usize {
        layer_values(&self.spec)
    }
}

fn layer_values(spec: &KvSpec) -> usize {
    spec.num_blocks * spec.block_size * spec.num_key_value_heads * spec.head_dim
}

fn element(encoding: Encoding) -> Result<Element> {
    match Element::of(encoding) {
        Some(element @ (Element::F32 | Element::F16)) => Ok(element),
        _ => Err(Error::unsupported(format!("a K/V store in {encoding}"), "CUDA kernels store F32 and F16")),
    }
}

/// Bytes of all arrays of a store, with the list of blocks to copy.
///
/// # Errors
/// [`Error::Unsupported`] when its slots or elements have no number in the kernels.
pub(crate) fn kv_bytes(spec: &KvSpec) -> Result<u64> {
    if spec.block_size == 0 || !spec.block_size.is_multiple_of(16) {
        let reason = "blocks of a multiple of 16 positions";
        return Err(Error::unsupported(format!("a block size of {}", spec.block_size), reason));
    }
    // The last number is the slot of padding.
    if spec.num_blocks as u64 * spec.block_size as u64 >= u64::from(u32::MAX) {
        let reason = format!("kernels number {} positions at most", u32::MAX);
        return Err(Error::unsupported(format!("{} blocks of {}", spec.num_blocks, spec.block_size), reason));
    }
    let values = layer_values(spec);
    let bytes = |encoding: Encoding| Ok(taken_bytes(element(encoding)?.bytes(values)));
    let layers: Result<u64> = spec.key_encodings.iter().map(|key| Ok(bytes(*key)? + bytes(spec.value_encoding)?)).sum();
    Ok(layers? + taken_bytes(pairs_bytes(spec)))
}

/// Bytes of the list of blocks to copy, which has each block at most once as a target.
pub(crate) fn pairs_bytes(spec: &KvSpec) -> usize {
    8 * spec.num_blocks
}
