//! The plain data of the backend interface: the K/V store's sizes, head layouts, the shape of a step. Stored matrices
//! are in `matrix.rs`.
//!
//! Nothing here knows the trait or a device. Every other part of the crate may import it.

use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::precision::Precision;
use crate::numerics::size;

/// The slot of a padding token: it is not stored.
pub const PAD_SLOT: u32 = u32::MAX;

/// What [`crate::Backend::argmax`] writes for a row that holds a NaN or an infinity.
pub const NON_FINITE: u32 = u32::MAX;

/// A device, as a backend describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// A name for logs and errors, e.g. `cpu (avx512-bf16, 2 threads)`.
    pub name: String,
    /// What the kernels may round.
    pub precision: Precision,
    /// Bytes that are still free on the device, if known.
    pub memory_available: Option<u64>,
}

/// The K/V store of a range of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// The encoding of the keys of each layer in this store: F32, F16, or Q8_0 in blocks along a head. Layers with
    /// large key biases use more bits than the others (see [`crate::model::spec::ModelSpec::kv`]).
    pub key_encodings: Vec<Encoding>,
    /// The encoding of the values, the same in all layers.
    pub value_encoding: Encoding,
    /// Blocks of each layer.
    pub num_blocks: usize,
    /// Positions of a block; a multiple of 16.
    pub block_size: usize,
    /// K/V heads (of this rank).
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvSpec {
    /// Layers in this store.
    pub fn num_layers(&self) -> usize {
        self.key_encodings.len()
    }

    /// Whether the store has layer `layer` with the K/V heads of `heads`, and the query heads divide evenly among them.
    pub fn serves(&self, layer: usize, heads: &HeadLayout) -> bool {
        layer < self.num_layers()
            && self.num_key_value_heads == heads.num_key_value_heads
            && self.head_dim == heads.head_dim
            && heads.num_attention_heads > 0
            && heads.num_attention_heads.is_multiple_of(heads.num_key_value_heads)
    }

    /// Positions of each layer: the slots that tokens are stored at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when slot numbers do not fit in a u32 below [`PAD_SLOT`].
    pub fn num_slots(&self) -> Result<usize> {
        let slots = size::checked("num_blocks", 1, &[self.num_blocks, self.block_size])?;
        if slots >= PAD_SLOT as usize {
            let reason =
                format!("{} blocks of {} positions exceed the numbers of slots", self.num_blocks, self.block_size);
            return Err(Error::argument("num_blocks", reason));
        }
        Ok(slots)
    }

    /// Keys of one layer, and values of one layer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when memory cannot address them.
    pub fn layer_values(&self) -> Result<usize> {
        size::values("num_blocks", &[self.num_slots()?, self.num_key_value_heads, self.head_dim])
    }

    /// Bytes of all encoded keys and values; `u64::MAX` if they overflow.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = |encoding| self.heads_bytes(encoding, self.head_dim);
        let layers = self.key_encodings.iter().map(|key| bytes(*key).saturating_add(bytes(self.value_encoding)));
        layers.fold(0, u64::saturating_add)
    }

    /// Bytes of the keys of one layer, or of its values, with heads of `width` values: a head and its padding in a
    /// layout. `u64::MAX` if they overflow or a head is not whole blocks.
    pub fn heads_bytes(&self, encoding: Encoding, width: usize) -> u64 {
        let block = encoding.block();
        if !width.is_multiple_of(block.values) {
            return u64::MAX;
        }
        let KvSpec { num_blocks, block_size, num_key_value_heads, .. } = *self;
        size::bytes(block.bytes, &[num_blocks, block_size, num_key_value_heads, width / block.values])
    }

    /// Refuse a store in an encoding that `device` has no kernels for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the encoding, the supported ones, and what to do; also if heads are not whole
    /// blocks.
    pub fn check_encodings(&self, device: &str, supported: &[Encoding]) -> Result<()> {
        for encoding in self.key_encodings.iter().chain([&self.value_encoding]) {
            if !supported.contains(encoding) {
                let names: Vec<String> = supported.iter().map(Encoding::to_string).collect();
                let reason = format!("{device} stores {}: set `kv_encoding` to one of them", names.join(" or "));
                return Err(Error::unsupported(format!("a K/V store in {encoding}"), reason));
            }
            let block = encoding.block().values;
            if !self.head_dim.is_multiple_of(block) {
                let what = format!("a K/V store in {encoding} with heads of {} values", self.head_dim);
                let reason = format!("a head must be whole blocks of {block}: set `kv_encoding` to F16");
                return Err(Error::unsupported(what, reason));
            }
        }
        Ok(())
    }
}

/// The heads in a row of the q|k|v buffer, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads (of this rank).
    pub num_attention_heads: usize,
    /// K/V heads (of this rank); each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; rotary pairs are (i, i + head_dim / 2).
    pub head_dim: usize,
}

impl HeadLayout {
    /// Values of all query heads of a token.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Values of all key heads of a token, and of all value heads.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Values of a row of the q|k|v buffer.
    pub fn qkv_size(&self) -> usize {
        self.q_size() + 2 * self.kv_size()
    }
}

/// The padded shape of a step. Two steps with the same key run the same operations on the same buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// Rows of the activations.
    pub num_tokens: usize,
    /// Sequences in the batch.
    pub num_seqs: usize,
    /// Rows of logits.
    pub num_logits: usize,
    /// The largest number of tokens that one sequence has in this step: 1 lets a backend take its decode kernels.
    pub max_seqlen_q: usize,
    /// Whether the hidden states after the final norm are wanted.
    pub hidden: bool,
    /// Whether some of its sequences have a low-rank adapter. Which one, and for which rows, differs between steps of one
    /// key, and so do their operations: such a step cannot be replayed.
    pub adapters: bool,
}

/// The sizes of a model, or of one rank's part of it, that determine how much memory a step needs on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP (of this rank).
    pub intermediate_size: usize,
    /// Rows of the embedding table: the length of a row of logits.
    pub vocab_size: usize,
    /// Heads (of this rank).
    pub heads: HeadLayout,
}

impl ModelShape {
    /// Values of the widest row of activations, except logits.
    pub fn widest_row(&self) -> usize {
        self.widest_input().max(self.heads.qkv_size())
    }

    /// Values of the widest row that a matrix is multiplied with.
    pub fn widest_input(&self) -> usize {
        self.intermediate_size.max(self.hidden_size).max(self.heads.q_size())
    }
}
