//! The layout of the paged K/V store on the GPU: for each layer an array of keys and one of values, both
//! `[head][slot][head_dim]`. Positions of a block are consecutive, so that a head's keys of a block are contiguous. In
//! Q8_0 the codes of all heads are followed by the scales of all heads, `[head][slot][head_dim / 32]`.

use qwen_core::backend::KvSpec;
use qwen_core::numerics::encoding::q8;
use qwen_core::{Encoding, Error, Result};

use crate::driver::Array;
use crate::gpu::Gpu;
use crate::sizes::{kernel_size, product, taken_bytes};

/// The K/V store of a range of layers.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) spec: KvSpec,
    num_slots: usize,
    pub(crate) layers: Vec<Layer>,
}

/// Keys and values of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) key_type: KvType,
    pub(crate) value_type: KvType,
}

/// How keys or values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvType {
    F32,
    F16,
    Q8,
}

impl KvType {
    fn of(encoding: Encoding) -> Result<Self> {
        match encoding {
            Encoding::F32 => Ok(KvType::F32),
            Encoding::F16 => Ok(KvType::F16),
            Encoding::Q8_0 => Ok(KvType::Q8),
            _ => Err(Error::unsupported(format!("a K/V store in {encoding}"), "CUDA kernels do not store it")),
        }
    }

    /// Its number in kernel parameters.
    pub(crate) fn code(self) -> u32 {
        match self {
            KvType::F32 => 0,
            KvType::F16 => 2,
            KvType::Q8 => 3,
        }
    }

    /// Bytes of a unit of channels, and how many channels that is.
    fn unit(self) -> (usize, usize) {
        match self {
            KvType::F32 => (4, 1),
            KvType::F16 => (2, 1),
            KvType::Q8 => (q8::BYTES, q8::VALUES),
        }
    }

    /// Bytes of each plane of a unit: an array has the first one of all units, then the second.
    pub(crate) fn planes(self) -> &'static [usize] {
        match self {
            KvType::F32 => &[4],
            KvType::F16 => &[2],
            KvType::Q8 => &[q8::VALUES, q8::BYTES - q8::VALUES],
        }
    }
}

impl Store {
    pub(crate) fn new(gpu: &mut Gpu, spec: &KvSpec) -> Result<Self> {
        let sizes = StoreSizes::new(spec)?;
        let value_type = KvType::of(spec.value_encoding)?;
        let mut layers = Vec::with_capacity(spec.num_layers());
        for (layer, key_encoding) in spec.key_encodings.iter().enumerate() {
            let key_type = KvType::of(*key_encoding)?;
            layers.push(Layer {
                keys: gpu.array(&format!("keys of layer {layer}"), sizes.array_bytes(key_type)?)?,
                values: gpu.array(&format!("values of layer {layer}"), sizes.array_bytes(value_type)?)?,
                key_type,
                value_type,
            });
        }
        Ok(Store { spec: spec.clone(), num_slots: sizes.num_slots, layers })
    }

    /// Positions of all blocks, as a kernel parameter.
    pub(crate) fn num_slots(&self) -> u32 {
        // Below `u32::MAX`, see `StoreSizes`.
        self.num_slots as u32
    }

    /// The factors of the bytes of a layer's keys, or of its values.
    pub(crate) fn array_bytes(&self, of: KvType) -> [usize; 4] {
        let (bytes, channels) = of.unit();
        [bytes, self.spec.num_key_value_heads, self.num_slots, self.spec.head_dim / channels]
    }

    /// For each plane of a layer's keys or values, where it begins in the array, and bytes of a head's part of a block.
    pub(crate) fn planes(&self, of: KvType) -> impl Iterator<Item = (usize, usize)> {
        let units = self.spec.head_dim / of.unit().1;
        let (all, block) = (self.spec.num_key_value_heads * self.num_slots * units, self.spec.block_size * units);
        let mut first = 0;
        of.planes().iter().map(move |bytes| {
            let at = first;
            first += bytes * all;
            (at, bytes * block)
        })
    }

    /// Whether keys or values of a layer are in blocks of channels, which no product can store.
    pub(crate) fn has_blocks(&self, layer: usize) -> bool {
        let in_blocks = |layer: &Layer| layer.key_type == KvType::Q8 || layer.value_type == KvType::Q8;
        self.layers.get(layer).is_some_and(in_blocks)
    }
}

/// The sizes of a store that kernels can index.
struct StoreSizes {
    num_slots: usize,
    /// The number of values in a layer's keys, and in its values.
    values: usize,
}

impl StoreSizes {
    fn new(spec: &KvSpec) -> Result<Self> {
        spec.check_encodings("the CUDA backend", &[Encoding::F32, Encoding::F16, Encoding::Q8_0])?;
        let KvSpec { num_blocks, block_size, num_key_value_heads, head_dim, .. } = *spec;
        if block_size == 0 || !block_size.is_multiple_of(16) {
            return Err(Error::unsupported(
                format!("a block size of {block_size}"),
                "blocks of a multiple of 16 positions",
            ));
        }
        let store = format!("a K/V store of {num_blocks} blocks of {block_size} positions");
        let num_slots = product(&store, &[num_blocks, block_size])?;
        // The highest number is the padding slot.
        if u32::try_from(num_slots).is_err() || num_slots == u32::MAX as usize {
            return Err(Error::unsupported(store, format!("kernels number {} positions at most", u32::MAX - 1)));
        }
        let values = product(&store, &[num_slots, num_key_value_heads, head_dim])?;
        // `copy_blocks` counts the bytes of a head's part of a block, at most four bytes per value.
        let block_bytes = product(&store, &[block_size, head_dim, KvType::F32.unit().0])?;
        if [num_key_value_heads, block_bytes].into_iter().any(|size| kernel_size(size).is_none()) {
            let reason = format!("{num_key_value_heads} heads of {head_dim} values have no number in kernels");
            return Err(Error::unsupported(store, reason));
        }
        Ok(StoreSizes { num_slots, values })
    }

    fn array_bytes(&self, of: KvType) -> Result<usize> {
        let (bytes, channels) = of.unit();
        product("the keys or values of a layer", &[self.values / channels, bytes])
    }
}

/// Bytes of all arrays of a store, with the list of blocks to copy.
///
/// # Errors
/// [`Error::Unsupported`] when kernels cannot index its slots or elements.
pub(crate) fn kv_bytes(spec: &KvSpec) -> Result<u64> {
    let sizes = StoreSizes::new(spec)?;
    let taken = |encoding: Encoding| Ok(taken_bytes(sizes.array_bytes(KvType::of(encoding)?)?));
    let mut total = taken_bytes(pairs_bytes(spec)?);
    for key in &spec.key_encodings {
        let layer: Result<u64> = Ok(taken(*key)?.saturating_add(taken(spec.value_encoding)?));
        total = total.saturating_add(layer?);
    }
    Ok(total)
}

/// Bytes of the list of blocks to copy: each block is the target of at most one copy.
pub(crate) fn pairs_bytes(spec: &KvSpec) -> Result<usize> {
    product("pairs of blocks", &[spec.num_blocks, 2, 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(num_blocks: usize, block_size: usize, num_key_value_heads: usize, head_dim: usize) -> KvSpec {
        KvSpec {
            key_encodings: vec![Encoding::F32, Encoding::F16],
            value_encoding: Encoding::F16,
            num_blocks,
            block_size,
            num_key_value_heads,
            head_dim,
        }
    }

    #[test]
    fn a_store_takes_its_arrays_and_the_pairs_of_blocks() {
        assert_eq!(kv_bytes(&spec(4, 16, 2, 64)).unwrap(), (4 * 16 * 2 * 64) * (4 + 2 + 2 + 2) + 4 * 8);
        assert_eq!(kv_bytes(&spec(0, 16, 2, 64)).unwrap(), 5 * 16);
        let (key_encodings, value_encoding) = (vec![Encoding::Q8_0], Encoding::Q8_0);
        let in_blocks = KvSpec { key_encodings, value_encoding, ..spec(4, 16, 2, 96) };
        assert_eq!(kv_bytes(&in_blocks).unwrap(), 2 * (4 * 16 * 2 * 3 * 34) + 4 * 8);
    }

    #[test]
    fn stores_without_a_number_are_refused() {
        let huge = [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX - 15, usize::MAX];
        for size in huge {
            for spec in [spec(size, 16, 2, 64), spec(4, size, 2, 64), spec(4, 16, size, 64), spec(4, 16, 2, size)] {
                let error = kv_bytes(&spec).unwrap_err();
                assert!(matches!(error, Error::Unsupported { .. }), "{spec:?}: {error}");
            }
        }
        // The last slot is one below the padding slot.
        assert!(kv_bytes(&spec(1 << 28, 16, 0, 64)).is_err());
        assert!(kv_bytes(&spec((1 << 28) - 1, 16, 0, 64)).is_ok());
    }
}
