//! K/V blocks as bytes: the one layout in which all backends give blocks to the host and take them back.
//!
//! A block of all layers is, for each layer, its keys and then its values, both `[head][position][channel]`: what one
//! head keeps of one position is whole blocks of the layer's encoding, little-endian. So bytes that one device wrote fit
//! every other whose store has the same encodings and sizes.

use std::ops::Range;

use super::layout::KvSpec;
use crate::numerics::encoding::Encoding;

/// What one head of one layer keeps in a block: its keys, or its values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockPart {
    /// The layer within the store.
    pub layer: usize,
    /// The K/V head.
    pub head: usize,
    /// Whether these are the values; otherwise the keys.
    pub is_value: bool,
    /// Their encoding.
    pub encoding: Encoding,
    /// Where they are among the bytes of the block.
    pub bytes: Range<usize>,
}

impl KvSpec {
    /// The parts of a block in the order of its bytes ([`crate::Backend::read_blocks`]). `self` is that of a store: its
    /// sizes fit in memory.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// use qwen_core::backend::KvSpec;
    /// let spec = KvSpec {
    ///     key_encodings: vec![Encoding::F16, Encoding::F32],
    ///     value_encoding: Encoding::F16,
    ///     num_blocks: 8,
    ///     block_size: 32,
    ///     num_key_value_heads: 2,
    ///     head_dim: 64,
    /// };
    /// let parts: Vec<_> = spec.block_parts().collect();
    /// // The first head's keys of the second layer come after all of the first layer.
    /// assert_eq!((parts[4].layer, parts[4].head, parts[4].is_value), (1, 0, false));
    /// assert_eq!(parts[4].bytes, 4 * 32 * 64 * 2..4 * 32 * 64 * 2 + 32 * 64 * 4);
    /// assert_eq!(parts.last().map(|part| part.bytes.end), Some(spec.block_bytes()));
    /// ```
    pub fn block_parts(&self) -> impl Iterator<Item = BlockPart> {
        let heads = self.num_key_value_heads;
        let len = |encoding: Encoding| encoding.bytes(self.block_size.saturating_mul(self.head_dim));
        let mut start = 0usize;
        self.key_encodings.iter().enumerate().flat_map(move |(layer, key)| {
            let before = start;
            let (keys, values) = (len(*key), len(self.value_encoding));
            start = before.saturating_add(heads.saturating_mul(keys.saturating_add(values)));
            let (key, value) = (*key, self.value_encoding);
            (0..2 * heads).map(move |index| {
                let (is_value, head) = (index >= heads, index % heads);
                let (first, len) = if is_value { (before + heads * keys, values) } else { (before, keys) };
                let start = first + head * len;
                let encoding = if is_value { value } else { key };
                BlockPart { layer, head, is_value, encoding, bytes: start..start + len }
            })
        })
    }

    /// Bytes of a block of all layers, as [`crate::Backend::read_blocks`] writes it; `usize::MAX` if they overflow.
    pub fn block_bytes(&self) -> usize {
        let values = self.block_size.saturating_mul(self.num_key_value_heads).saturating_mul(self.head_dim);
        let bytes = |encoding: Encoding| {
            let block = encoding.block();
            (values / block.values).saturating_mul(block.bytes)
        };
        let layer = |key: &Encoding| bytes(*key).saturating_add(bytes(self.value_encoding));
        self.key_encodings.iter().map(layer).fold(0, usize::saturating_add)
    }

    /// What is wrong with a call that moves `blocks` as `len` bytes, if anything is: a block that the store does not have,
    /// or another number of bytes.
    ///
    /// # Errors
    /// The reason, for the backend's own error.
    pub fn check_blocks(&self, blocks: &[u32], len: usize) -> std::result::Result<(), String> {
        if let Some(block) = blocks.iter().find(|block| **block as usize >= self.num_blocks) {
            return Err(format!("block {block} of {} blocks", self.num_blocks));
        }
        match blocks.len().checked_mul(self.block_bytes()) {
            Some(needed) if needed == len => Ok(()),
            _ => Err(format!("{len} bytes for {} blocks of {}", blocks.len(), self.block_bytes())),
        }
    }
}
