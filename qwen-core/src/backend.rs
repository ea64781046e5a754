//! The seam between the transformer and a device: the [`Backend`] trait and the plain data that its calls take.
//!
//! A backend holds weights and runs a decoder-only transformer's kernels. It knows no checkpoints, no sequences and no
//! text; the transformer above it ([`crate::model`]) knows no device. The *base operations* have to be written for a
//! new device; the *fused operations* have bodies built from the base ones (the free functions of [`crate::composed`]),
//! to be overridden one at a time where the device gains by it. The conformance suite compares each override with its
//! composed form and both with [`crate::reference`]. docs/writing-a-backend.md walks through it.
//!
//! # Rules
//!
//! - **Nothing allocates in a step.** Buffers are made at load for the largest step; an operation is told how many rows
//!   of them count.
//! - **Operations outside of a step** run as they come: tests and the search for a non-finite value issue them so.
//! - **What changes between steps is data**, written into buffers before [`Backend::step`]. Only the [`StepKey`] may
//!   shape control flow, so that a backend may record a step and replay it.
//! - **Operations enqueue; only reads and [`Backend::synchronize`] wait.** An error may surface at the next wait; it
//!   names the operation that queued it.
//! - **Padding**: rows at or beyond the last `cu_seqlens_q` belong to no sequence. They have [`PAD_SLOT`] as their slot,
//!   write no K/V, and what is computed for them is never read.
//! - **Determinism**: same inputs, same bits, whatever the number of threads. Where docs/numerics.md promises
//!   batch-invariance, a row's result depends on nothing but the row and its sequence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dtype::{Encoding, Precision};
use crate::error::{Error, Result};
use crate::footprint::{Footprint, StoredSizes};
use crate::{collective::Collective, composed};

/// The slot of a padding token: it is not stored.
pub const PAD_SLOT: u32 = u32::MAX;

/// What [`Backend::argmax`] writes for a row that holds a NaN or an infinity.
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
        let start = self.encoding.bytes(row * self.stride);
        self.data.get(start..start + self.encoding.bytes(self.cols)).unwrap_or_default()
    }

    /// `rows` rows from `first` on, of `cols` columns from `first_col` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the rectangle does not lie within this one.
    pub fn cut(&self, first: usize, rows: usize, first_col: usize, cols: usize) -> Result<Self> {
        if first + rows > self.rows || first_col + cols > self.cols {
            return Err(Error::argument(
                "cut",
                format!("rows {first}+{rows}, columns {first_col}+{cols} of a {} x {} matrix", self.rows, self.cols),
            ));
        }
        let start = self.encoding.bytes(first * self.stride + first_col);
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
    /// Rows of all parts together (output features).
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
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
    /// Rows of all parts together.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Bytes of the parts as the files have them.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|(encoding, rows)| encoding.bytes(rows * self.cols) as u64).sum()
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

    /// Bytes of all keys and values in their element types.
    pub fn stored_bytes(&self) -> u64 {
        let layer = self.num_blocks * self.block_size * self.num_key_value_heads * self.head_dim;
        let bytes = |key: &Encoding| key.bytes(layer) + self.value_encoding.bytes(layer);
        self.key_encodings.iter().map(bytes).sum::<usize>() as u64
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
    /// Whether the step ends in [`Backend::argmax`] instead of logits for the host.
    pub greedy: bool,
}

/// The inputs of a step that lie on the device. Written before [`Backend::step`], constant within it.
#[derive(Debug)]
pub struct StepInputs<B: Backend> {
    /// `[num_tokens]` token ids.
    pub input_ids: B::Indices,
    /// `[num_tokens, head_dim]`: the cosines of a token's position, then its sines, `head_dim / 2` each.
    pub cos_sin: B::Buffer,
    /// `[num_tokens]` where a token's K/V goes: `block * block_size + offset`, or [`PAD_SLOT`].
    pub slot_mapping: B::Indices,
    /// `[num_seqs + 1]` prefix sums of the tokens of each sequence. Padding sequences repeat the last sum.
    pub cu_seqlens_q: B::Indices,
    /// `[num_seqs]` positions of each sequence that hold K/V at the end of this step.
    pub context_lens: B::Indices,
    /// `[num_seqs, max_blocks_per_seq]` the blocks of each sequence in order of position.
    pub block_tables: B::Indices,
    /// Row length of `block_tables`.
    pub max_blocks_per_seq: usize,
    /// `[num_logits]` the rows whose logits are wanted.
    pub logits_indices: B::Indices,
}

/// A flag by which another thread stops a step. Cheap to clone; all clones are one flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Ask for the step to end early.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Take the request back.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the step should end.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A device that holds weights and runs a decoder-only transformer's kernels.
///
/// All buffers are dense and row-major. `rows` counts the leading rows that an operation treats; buffers may be longer.
/// An output never shares memory with an input unless it is one `&mut` argument.
pub trait Backend: Send + Sized + 'static {
    /// Activations: f32 values on the device.
    type Buffer: Send + std::fmt::Debug;
    /// Step inputs: u32 values on the device.
    type Indices: Send + std::fmt::Debug;
    /// One matrix, packed at load in the layout that this device's kernels want.
    type Weight: Send + std::fmt::Debug;
    /// The paged K/V store of a range of layers.
    type Kv: Send + std::fmt::Debug;

    /// The device behind this backend.
    fn info(&self) -> DeviceInfo;

    /// What the parts of a model take on this device. Default: their stored sizes.
    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(StoredSizes)
    }

    // ---- memory ----

    /// A buffer of `len` f32 values, all zero.
    fn alloc(&mut self, len: usize) -> Result<Self::Buffer>;
    /// A buffer of `len` u32 values, all zero.
    fn alloc_indices(&mut self, len: usize) -> Result<Self::Indices>;
    /// Pack a matrix. Encodings that the device cannot hold are converted without loss, or refused by name.
    fn load(&mut self, view: &WeightView<'_>) -> Result<Self::Weight>;
    /// A K/V store, all zero.
    fn kv(&mut self, spec: &KvSpec) -> Result<Self::Kv>;
    /// Copy `src` to the beginning of `dst`.
    fn write(&mut self, dst: &mut Self::Buffer, src: &[f32]) -> Result<()>;
    /// Copy `src` to the beginning of `dst`.
    fn write_indices(&mut self, dst: &mut Self::Indices, src: &[u32]) -> Result<()>;
    /// Copy the beginning of `src` to `dst`; waits for what was queued.
    fn read(&mut self, src: &Self::Buffer, dst: &mut [f32]) -> Result<()>;
    /// Copy the beginning of `src` to `dst`; waits for what was queued.
    fn read_indices(&mut self, src: &Self::Indices, dst: &mut [u32]) -> Result<()>;
    /// Copy whole blocks of all layers, each `(from, to)`; for copy on write. Outside of steps.
    fn copy_blocks(&mut self, kv: &mut Self::Kv, pairs: &[(u32, u32)]) -> Result<()>;
    /// Wait for everything queued.
    fn synchronize(&mut self) -> Result<()>;

    // ---- base operations ----

    /// `out[t] = table[ids[t]]`, decoded. An id outside of the table gives zeros.
    fn embed(&mut self, ids: &Self::Indices, table: &Self::Weight, out: &mut Self::Buffer, rows: usize) -> Result<()>;

    /// `out[t] = w x[t] + bias`: `x` is `[rows, w.cols]`, `out` `[rows, w.rows]`.
    fn linear(
        &mut self,
        x: &Self::Buffer,
        w: &Self::Weight,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
        rows: usize,
    ) -> Result<()>;

    /// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight` over rows of `hidden_size` values (Zhang and Sennrich 2019).
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        out: &mut Self::Buffer,
        hidden_size: usize,
        rows: usize,
    ) -> Result<()>;

    /// Rotate the query and key heads of `qkv` in place (Su et al. 2021, pairs half a head apart).
    fn rope(&mut self, qkv: &mut Self::Buffer, cos_sin: &Self::Buffer, heads: HeadLayout, rows: usize) -> Result<()>;

    /// Store the key and value heads of `qkv` at their slots of layer `layer`.
    fn store_kv(
        &mut self,
        qkv: &Self::Buffer,
        slot_mapping: &Self::Indices,
        kv: &mut Self::Kv,
        layer: usize,
        heads: HeadLayout,
        rows: usize,
    ) -> Result<()>;

    /// Causal attention of the query heads of `qkv` over the stored K/V: `out` is `[num_tokens, q_size]`.
    ///
    /// The token with index `i` of the `n` tokens that sequence `s` has in this step sees the positions
    /// `0 ..= context_lens[s] - n + i`. Scores are scaled by `1 / sqrt(head_dim)`.
    #[allow(clippy::too_many_arguments)]
    fn paged_attention(
        &mut self,
        qkv: &Self::Buffer,
        kv: &Self::Kv,
        layer: usize,
        heads: HeadLayout,
        inputs: &StepInputs<Self>,
        out: &mut Self::Buffer,
        key: StepKey,
    ) -> Result<()>;

    /// `out[t] = silu(gate[t]) * up[t]` where a row of `gate_up` is `[gate | up]`, `intermediate_size` values each.
    fn silu_and_mul(
        &mut self,
        gate_up: &Self::Buffer,
        out: &mut Self::Buffer,
        intermediate_size: usize,
        rows: usize,
    ) -> Result<()>;

    /// `x += y` over the first `len` values.
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, len: usize) -> Result<()>;

    /// `out[i] = x[indices[i]]` over rows of `width` values.
    fn gather_rows(
        &mut self,
        x: &Self::Buffer,
        indices: &Self::Indices,
        out: &mut Self::Buffer,
        width: usize,
        rows: usize,
    ) -> Result<()>;

    // ---- fused operations, composed of the base ones unless a backend does better ----

    /// The index of the largest of each row's first `valid` values, the lowest one among equals; [`NON_FINITE`] for a
    /// row with a NaN or an infinity among them. `x` is `[rows, width]`.
    fn argmax(
        &mut self,
        x: &Self::Buffer,
        out: &mut Self::Indices,
        width: usize,
        valid: usize,
        rows: usize,
    ) -> Result<()> {
        composed::argmax(self, x, out, width, valid, rows)
    }

    /// `residual += y`, then `out = rms_norm(residual)`.
    #[allow(clippy::too_many_arguments)]
    fn add_rms_norm(
        &mut self,
        residual: &mut Self::Buffer,
        y: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        out: &mut Self::Buffer,
        hidden_size: usize,
        rows: usize,
    ) -> Result<()> {
        composed::add_rms_norm(self, residual, y, weight, eps, out, hidden_size, rows)
    }

    /// `qkv = w x + bias`, queries and keys rotated, keys and values stored.
    ///
    /// Afterwards the query heads of `qkv` are rotated; its key and value heads are unspecified.
    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        composed::qkv_rope_store(self, op)
    }

    /// `out = silu(gate x) * (up x)` for a matrix loaded as [`WeightRole::GateUp`].
    ///
    /// `scratch` holds `[rows, 2 * intermediate_size]`, or nothing where [`Footprint::fuses_gate_up`].
    fn gate_up_silu(
        &mut self,
        x: &Self::Buffer,
        w: &Self::Weight,
        scratch: &mut Self::Buffer,
        out: &mut Self::Buffer,
        intermediate_size: usize,
        rows: usize,
    ) -> Result<()> {
        composed::gate_up_silu(self, x, w, scratch, out, intermediate_size, rows)
    }

    /// [`Backend::qkv_rope_store`] of `rms_norm(op.x)`.
    fn norm_qkv_rope_store(&mut self, norm: Norm<'_, Self>, op: QkvRopeStore<'_, Self>) -> Result<()> {
        composed::norm_qkv_rope_store(self, norm, op)
    }

    /// [`Backend::gate_up_silu`] of `rms_norm(x)`.
    #[allow(clippy::too_many_arguments)]
    fn norm_gate_up_silu(
        &mut self,
        norm: Norm<'_, Self>,
        x: &Self::Buffer,
        w: &Self::Weight,
        scratch: &mut Self::Buffer,
        out: &mut Self::Buffer,
        intermediate_size: usize,
        rows: usize,
    ) -> Result<()> {
        composed::norm_gate_up_silu(self, norm, x, w, scratch, out, intermediate_size, rows)
    }

    /// `residual += w x`. `scratch` holds as many values as the residual.
    fn linear_add(
        &mut self,
        x: &Self::Buffer,
        w: &Self::Weight,
        scratch: &mut Self::Buffer,
        residual: &mut Self::Buffer,
        hidden_size: usize,
        rows: usize,
    ) -> Result<()> {
        composed::linear_add(self, x, w, scratch, residual, hidden_size, rows)
    }

    /// Replace the first `len` values of `x` by their sum over all ranks of `group`, the same bits on each rank.
    fn all_reduce(&mut self, x: &mut Self::Buffer, len: usize, group: &dyn Collective) -> Result<()> {
        composed::all_reduce(self, x, len, group)
    }

    /// Whether `group` hands activations from device to device ([`Backend::send`], [`Backend::receive`]), so that stages
    /// need no host between them.
    fn hands_over(&self, group: &dyn Collective) -> bool {
        let _ = group;
        false
    }

    /// Give the first `len` values of `x` to rank `to` of `group`, which calls [`Backend::receive`].
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] unless [`Backend::hands_over`] says so.
    fn send(&mut self, x: &Self::Buffer, len: usize, to: usize, group: &dyn Collective) -> Result<()> {
        let _ = (x, len, to, group);
        Err(no_handover())
    }

    /// Take the first `len` values of `x` from rank `from` of `group`, which calls [`Backend::send`].
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] unless [`Backend::hands_over`] says so.
    fn receive(&mut self, x: &mut Self::Buffer, len: usize, from: usize, group: &dyn Collective) -> Result<()> {
        let _ = (x, len, from, group);
        Err(no_handover())
    }

    // ---- steps ----

    /// Shapes of steps to run once at load, on padding alone: so that what their first run makes (kernels compiled,
    /// steps recorded) is not made in somebody's first answer.
    fn first_steps(&self) -> Vec<StepKey> {
        Vec::new()
    }

    /// The shape that a step of shape `key` is padded to.
    fn padded(&self, key: StepKey) -> StepKey {
        key
    }

    /// Run one step: `body` issues its operations. A backend may record what `body` issues for a key and replay it for
    /// the next step with an equal key instead of calling `body` again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `interrupt` was raised: the step may have run in part, and its K/V does not count.
    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()>;
}

/// The norm of the operations that begin with one.
#[derive(Debug)]
pub struct Norm<'a, B: Backend> {
    /// `[hidden_size]` its weight.
    pub weight: &'a B::Buffer,
    /// Added to the mean square.
    pub eps: f32,
    /// Values of a row.
    pub hidden_size: usize,
    /// `[rows, hidden_size]` where the normed rows go if the norm runs on its own; unspecified afterwards.
    pub normed: &'a mut B::Buffer,
}

/// The arguments of [`Backend::qkv_rope_store`].
#[derive(Debug)]
pub struct QkvRopeStore<'a, B: Backend> {
    /// `[rows, hidden_size]` normed activations; in [`Backend::norm_qkv_rope_store`] those to be normed.
    pub x: &'a B::Buffer,
    /// The stacked projections.
    pub w: &'a B::Weight,
    /// `[qkv_size]` their biases.
    pub bias: &'a B::Buffer,
    /// Positions and slots.
    pub inputs: &'a StepInputs<B>,
    /// The heads side by side in a row.
    pub heads: HeadLayout,
    /// `[rows, qkv_size]` output.
    pub qkv: &'a mut B::Buffer,
    /// Where keys and values go.
    pub kv: &'a mut B::Kv,
    /// The layer of `kv`.
    pub layer: usize,
    /// Tokens.
    pub rows: usize,
}

fn no_handover() -> Error {
    Error::unsupported("handing activations from device to device", "the device has no way of its own to others")
}
