//! The interface between the transformer and a device: the [`Backend`] trait, its plain data and its operations.
//!
//! A backend holds weights and runs a decoder-only transformer's kernels. It does not know about checkpoints, sequences
//! or text; the transformer above it ([`crate::model`]) does not know about devices. The *base operations* have to be
//! written for a new device; the *fused operations* have default bodies built from the base ones (the free functions of
//! [`composed`]), to be overridden one at a time where it makes the device faster. The conformance suite compares each
//! override with its composed form and both with [`crate::backend::reference`]. docs/writing-a-backend.md is the guide.
//!
//! - `adapter.rs`: which GPU is asked for;
//! - `layout.rs`, `matrix.rs`: shapes and stored matrices, plain data that the whole crate imports;
//! - `ops.rs`: one struct of arguments for each operation;
//! - `composed.rs`: the fused operations in terms of the base ones;
//! - `footprint.rs`: how much memory a model takes on a device, known before anything is loaded;
//! - `interrupt.rs`: the flag that stops a step;
//! - `kv_blocks.rs`: the layout in which K/V leaves a device and comes back;
//! - `planes/`, `runs.rs`: for GPU backends, how rows in block formats are laid out, and matrices of several parts;
//! - `recorder.rs`, `partials.rs`: for GPU backends, when a step is recorded and replayed, and the sizes of split-KV
//!   attention. Integers only.
//!
//! # Rules
//!
//! - **Nothing allocates in a step.** Buffers are allocated at load for the largest step ([`Backend::prepare`] gets its
//!   sizes); an operation is told how many of their rows are in use.
//! - **Operations outside of a step** run when they are issued: tests issue them, and the search for a non-finite
//!   value.
//! - **What changes between steps is data**, written into buffers before [`Backend::step`]. Only the [`StepKey`] may
//!   determine control flow, so that a backend may record a step and replay it.
//! - **Operations enqueue; only reads and [`Backend::synchronize`] wait.** An error may surface at the next wait; it
//!   names the operation that caused it.
//! - **Padding**: rows from the last entry of `cu_seqlens_q` on belong to no sequence. They have [`PAD_SLOT`] as their
//!   slot, write no K/V, and their results are never read.
//! - **Determinism**: same inputs, same bits, whatever the number of threads. Where docs/numerics.md guarantees
//!   batch-invariance, a row's result depends only on the row and its sequence.
//! - **Threads**: a backend is `Send`, not `Sync`: one thread at a time calls it. [`Interrupt`] is the only part that
//!   another thread may touch.

mod adapter;
pub mod collective;
pub mod composed;
mod footprint;
pub mod host;
mod interrupt;
mod kv_blocks;
pub(crate) mod layout;
mod limits;
mod matrix;
mod ops;
pub mod partials;
pub mod planes;
pub mod recorder;
pub mod reference;
mod runs;

pub use adapter::{AdapterChoice, CapabilitySet};
pub use footprint::{Footprint, StoredSizes};
pub use interrupt::Interrupt;
pub use kv_blocks::BlockPart;
pub use layout::{DeviceInfo, HeadLayout, KvSpec, ModelShape, NON_FINITE, PAD_SLOT, StepKey};
pub use limits::Limits;
pub use matrix::{MatrixPart, ReadBytes, RowReader, WeightRole, WeightShape, WeightView};
pub use ops::{
    Add, AddRows, AllReduce, Argmax, Embed, GateUpSilu, GatherRows, Linear, LinearAdd, Norm, PagedAttention,
    QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepInputs, StoreKv,
};
pub use runs::WeightRun;

use crate::backend::collective::Collective;
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// A device that holds weights and runs a decoder-only transformer's kernels.
///
/// All buffers are dense and row-major. `rows` counts the leading rows that an operation computes; buffers may be
/// longer. An output never shares memory with an input unless it is one `&mut` argument.
pub trait Backend: Send + Sized + 'static {
    /// Activations: f32 values on the device.
    type Buffer: Send + std::fmt::Debug;
    /// Step inputs: u32 values on the device.
    type Indices: Send + std::fmt::Debug;
    /// One matrix, packed at load in the layout that this device's kernels need.
    type Weight: Send + std::fmt::Debug;
    /// The paged K/V store of a range of layers.
    type Kv: Send + std::fmt::Debug;

    /// The device behind this backend.
    fn info(&self) -> DeviceInfo;

    /// How much memory the parts of a model take on this device. Default: their stored sizes.
    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(StoredSizes)
    }

    // ---- memory ----

    /// Called once with the sizes of the largest step, before a model is loaded: a backend allocates the workspace of
    /// [`Footprint::workspace_bytes`] here. Default: nothing.
    ///
    /// # Errors
    /// When the device lacks the memory.
    fn prepare(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        let _ = (limits, shape);
        Ok(())
    }

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
    /// The encoding in which a store keeps what was asked for in `encoding`. Default: the same. A device that stores more
    /// bits than asked for says so here, since [`Backend::read_blocks`] gives all of them.
    fn stored_encoding(&self, encoding: Encoding) -> Encoding {
        encoding
    }
    /// Copy whole blocks of all layers to `out`, which has [`KvSpec::block_bytes`] for each of `blocks`, one after
    /// another, in the layout of [`KvSpec::block_parts`], in the encodings of [`Backend::stored_encoding`]; waits for what
    /// was queued. Outside of steps.
    ///
    /// # Errors
    /// For a block that the store does not have, and another number of bytes ([`KvSpec::check_blocks`]).
    fn read_blocks(&mut self, kv: &Self::Kv, blocks: &[u32], out: &mut [u8]) -> Result<()>;
    /// The contrary of [`Backend::read_blocks`]: attention over what was written has the very same bits. Outside of steps.
    ///
    /// # Errors
    /// As [`Backend::read_blocks`].
    fn write_blocks(&mut self, kv: &mut Self::Kv, blocks: &[u32], bytes: &[u8]) -> Result<()>;
    /// Let go of dropped buffers and weights that are only kept for the sake of later steps. Outside of steps, after some
    /// were dropped. Default: nothing, for a backend that keeps none.
    fn trim(&mut self) {}
    /// Wait for everything queued.
    fn synchronize(&mut self) -> Result<()>;

    // ---- base operations ----

    /// `out[t] = table[ids[t]]`, decoded. An id outside of the table gives zeros.
    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()>;

    /// `out[t] = w x[t] + bias`.
    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()>;

    /// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight` (Zhang and Sennrich 2019).
    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()>;

    /// Rotate the query and key heads of `qkv` in place (Su et al. 2021, pairs half a head apart).
    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()>;

    /// Store the key and value heads of `qkv` at their slots of a layer.
    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()>;

    /// Causal attention of the query heads of `qkv` over the stored K/V.
    ///
    /// The token with index `i` of the `n` tokens that sequence `s` has in this step sees the positions
    /// `0 ..= context_lens[s] - n + i`. Scores are scaled by `1 / sqrt(head_dim)`.
    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()>;

    /// `out[t] = silu(gate[t]) * up[t]`.
    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()>;

    /// `x += y`.
    fn add(&mut self, op: Add<'_, Self>) -> Result<()>;

    /// `out[i] = x[indices[i]]`.
    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()>;

    // ---- fused operations, composed of the base ones unless a backend does better ----

    /// The index of the largest of each row's first `valid` values, the lowest one among equals; [`NON_FINITE`] for a
    /// row with a NaN or an infinity among them.
    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        composed::argmax(self, op)
    }

    /// `out[indices[i]] += scale * x[i]`. An index outside of `out` adds nothing.
    fn add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        composed::add_rows(self, op)
    }

    /// `qkv = w x + bias` of the normed `x`, queries and keys rotated, keys and values stored.
    ///
    /// Afterwards the query heads of `qkv` are rotated; its key and value heads are unspecified.
    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        composed::qkv_rope_store(self, op)
    }

    /// `out = silu(gate x) * (up x)` of the normed `x`, for a matrix loaded as [`WeightRole::GateUp`].
    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        composed::gate_up_silu(self, op)
    }

    /// `residual += w x`, summed over the ranks where there are several.
    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        composed::linear_add(self, op)
    }

    /// Replace the first values of a buffer by their sum over all ranks of a group, the same bits on each rank.
    fn all_reduce(&mut self, op: AllReduce<'_, Self>) -> Result<()> {
        composed::all_reduce(self, op)
    }

    /// Whether `group` moves activations directly from device to device ([`Backend::send`], [`Backend::receive`]),
    /// without the host.
    fn supports_p2p(&self, group: &dyn Collective) -> bool {
        let _ = group;
        false
    }

    /// Send the first `len` values of `x` to rank `to` of `group`, which calls [`Backend::receive`].
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] unless [`Backend::supports_p2p`].
    fn send(&mut self, x: &Self::Buffer, len: usize, to: usize, group: &dyn Collective) -> Result<()> {
        let _ = (x, len, to, group);
        Err(no_p2p())
    }

    /// Receive the first `len` values of `x` from rank `from` of `group`, which calls [`Backend::send`].
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] unless [`Backend::supports_p2p`].
    fn receive(&mut self, x: &mut Self::Buffer, len: usize, from: usize, group: &dyn Collective) -> Result<()> {
        let _ = (x, len, from, group);
        Err(no_p2p())
    }

    // ---- steps ----

    /// Shapes of steps to run once at load, on padding only, so that the work of a first run (compiling kernels,
    /// recording steps) does not delay the first answer.
    fn warmup_shapes(&self) -> Vec<StepKey> {
        Vec::new()
    }

    /// The shape that a step of shape `key` is padded to.
    fn padded(&self, key: StepKey) -> StepKey {
        key
    }

    /// Run one step: `body` issues its operations. A backend may record what `body` issues for a key and replay it for
    /// the next step with an equal key instead of calling `body` again, but not with [`StepKey::adapters`], whose
    /// operations differ from step to step.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `interrupt` was raised: the step may have run in part, and its K/V is ignored.
    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()>;
}

fn no_p2p() -> Error {
    Error::unsupported("moving activations from device to device", "the device has no connection to others")
}
