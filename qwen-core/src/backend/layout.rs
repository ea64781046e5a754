//! The plain data of the seam: shapes, matrices as stored, the K/V store's sizes, the shape of a step.
//!
//! Nothing here knows the trait or a device. Every other part of the crate may import it.

use crate::dtype::{Encoding, Precision};
use crate::error::{Error, Result};
use crate::size;

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
    /// Bytes that may still be taken on the device, where that is known.
    pub memory_available: Option<u64>,
}

/// One stored matrix of a checkpoint, row-major, or a rectangle cut out of it.
#[derive(Debug, Clone, Copy)]
pub struct MatrixPart<'a> {
    /// How its elements lie in `data`.
    pub encoding: Encoding,
    /// Rows of the rectangle (output features).
    pub rows: usize,
    /// Columns of the rectangle (input features).
    pub cols: usize,
    /// Elements from one row of `data` to the next.
    pub stride: usize,
    /// The bytes, beginning at the rectangle's first element.
    pub data: &'a [u8],
}

impl<'a> MatrixPart<'a> {
    /// A whole matrix of `rows` x `cols`.
    pub fn whole(encoding: Encoding, rows: usize, cols: usize, data: &'a [u8]) -> Self {
        MatrixPart { encoding, rows, cols, stride: cols, data }
    }

    /// The bytes of row `row`.
    ///
    /// An empty slice when `data` is shorter than its shape says.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let within = || {
            let size = self.encoding.bytes(1);
            let start = row.checked_mul(self.stride)?.checked_mul(size)?;
            self.data.get(start..start.checked_add(self.cols.checked_mul(size)?)?)
        };
        within().unwrap_or_default()
    }

    /// `rows` rows from `first` on, of `cols` columns from `first_col` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the rectangle does not lie within this one.
    pub fn cut(&self, first: usize, rows: usize, first_col: usize, cols: usize) -> Result<Self> {
        let inside = |first: usize, len: usize, all: usize| first <= all && len <= all - first;
        let start = first.checked_mul(self.stride).and_then(|start| start.checked_add(first_col));
        let start = start.and_then(|start| start.checked_mul(self.encoding.bytes(1)));
        let (true, true, Some(start)) = (inside(first, rows, self.rows), inside(first_col, cols, self.cols), start)
        else {
            return Err(Error::argument(
                "cut",
                format!("rows {first}+{rows}, columns {first_col}+{cols} of a {} x {} matrix", self.rows, self.cols),
            ));
        };
        Ok(MatrixPart { rows, cols, data: self.data.get(start..).unwrap_or_default(), ..*self })
    }
}

/// What a matrix is for, so that a backend may choose a layout that suits its fused operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightRole {
    /// The token embedding, which a tied model also uses as its output head.
    Embedding,
    /// The query, key and value projections, stacked in this order.
    Qkv,
    /// The gate and up projections of the MLP, stacked in this order.
    GateUp,
    /// Any other projection.
    Linear,
}

/// A matrix to load: one or more stored matrices with the same number of columns, stacked by rows.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// The name for errors, e.g. `model.layers.3.self_attn.qkv_proj`.
    pub name: &'a str,
    /// What it is for.
    pub role: WeightRole,
    /// The stored matrices, top to bottom.
    pub parts: &'a [MatrixPart<'a>],
}

impl WeightView<'_> {
    /// Rows of all parts together (output features); `usize::MAX` where there are more.
    pub fn rows(&self) -> usize {
        self.parts.iter().fold(0, |rows, part| rows.saturating_add(part.rows))
    }

    /// Columns (input features).
    pub fn cols(&self) -> usize {
        self.parts.first().map_or(0, |part| part.cols)
    }
}

/// The shape of a matrix to load, known from headers alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShape {
    /// What it is for.
    pub role: WeightRole,
    /// Encoding and rows of each part.
    pub parts: Vec<(Encoding, usize)>,
    /// Columns of all parts.
    pub cols: usize,
}

impl WeightShape {
    /// Rows of all parts together; `usize::MAX` where there are more.
    pub fn rows(&self) -> usize {
        self.parts.iter().fold(0, |all, (_, rows)| all.saturating_add(*rows))
    }

    /// Bytes of the parts as the files have them; `u64::MAX` where a u64 does not hold them.
    pub fn stored_bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|(encoding, rows)| size::bytes(encoding.bytes(1), &[*rows, self.cols]));
        parts.fold(0, u64::saturating_add)
    }
}

/// The K/V store of a range of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Element type of the keys of each layer that this store serves. Layers whose key biases are large keep f32 where
    /// the others round (see [`crate::model::spec::ModelSpec::kv`]).
    pub key_encodings: Vec<Encoding>,
    /// Element type of the values.
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
    /// Layers that this store serves.
    pub fn num_layers(&self) -> usize {
        self.key_encodings.len()
    }

    /// Positions of each layer: the slots that tokens are stored at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a slot number does not fit in a u32 beside [`PAD_SLOT`].
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

    /// Bytes of all keys and values in their element types; `u64::MAX` where a u64 does not hold them.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = |encoding: Encoding| {
            size::bytes(encoding.bytes(1), &[self.num_blocks, self.block_size, self.num_key_value_heads, self.head_dim])
        };
        let layers = self.key_encodings.iter().map(|key| bytes(*key).saturating_add(bytes(self.value_encoding)));
        layers.fold(0, u64::saturating_add)
    }
}

/// The heads that lie side by side in a row of the q|k|v buffer.
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
}

/// The sizes of a model, or of one rank's part of it, that decide what a step takes on a device.
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
    /// Values of the widest row of activations, logits aside.
    pub fn widest_row(&self) -> usize {
        self.widest_input().max(self.heads.qkv_size())
    }

    /// Values of the widest row that a matrix is multiplied with.
    pub fn widest_input(&self) -> usize {
        self.intermediate_size.max(self.hidden_size).max(self.heads.q_size())
    }
}
