//! The arguments of each operation of [`Backend`]: one struct per operation, with its name.
//!
//! Backends destructure them with `..`, so that adding an argument later does not break them. All buffers are
//! dense and row-major; `rows` counts the leading rows that the operation computes, and buffers may be longer.

use super::{Backend, HeadLayout, StepKey};
use crate::backend::collective::Collective;

/// The inputs of a step on the device. Written before [`Backend::step`], constant within it.
#[derive(Debug)]
pub struct StepInputs<B: Backend> {
    /// `[num_tokens]` token ids.
    pub input_ids: B::Indices,
    /// `[num_tokens, head_dim]`: the cosines of a token's position, then its sines, `head_dim / 2` each.
    pub cos_sin: B::Buffer,
    /// `[num_tokens]` where a token's K/V goes: `block * block_size + offset`, or [`super::PAD_SLOT`].
    pub slot_mapping: B::Indices,
    /// `[num_seqs + 1]` prefix sums of the tokens of each sequence. Padding sequences repeat the last entry.
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

/// The arguments of [`Backend::embed`].
#[derive(Debug)]
pub struct Embed<'a, B: Backend> {
    /// `[rows]` token ids.
    pub ids: &'a B::Indices,
    /// The embedding table, loaded as [`super::WeightRole::Embedding`].
    pub table: &'a B::Weight,
    /// `[rows, table.cols]` output.
    pub out: &'a mut B::Buffer,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::linear`].
#[derive(Debug)]
pub struct Linear<'a, B: Backend> {
    /// `[rows, w.cols]` activations.
    pub x: &'a B::Buffer,
    /// The matrix.
    pub w: &'a B::Weight,
    /// `[w.rows]` added to each row of the product.
    pub bias: Option<&'a B::Buffer>,
    /// `[rows, w.rows]` output.
    pub out: &'a mut B::Buffer,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::rms_norm`].
#[derive(Debug)]
pub struct RmsNorm<'a, B: Backend> {
    /// `[rows, hidden_size]` activations.
    pub x: &'a B::Buffer,
    /// `[hidden_size]` the norm's weight.
    pub weight: &'a B::Buffer,
    /// Added to the mean square.
    pub eps: f32,
    /// Values of a row.
    pub hidden_size: usize,
    /// `[rows, hidden_size]` output.
    pub out: &'a mut B::Buffer,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::rope`].
#[derive(Debug)]
pub struct Rope<'a, B: Backend> {
    /// `[rows, qkv_size]`: the query and key heads are rotated in place.
    pub qkv: &'a mut B::Buffer,
    /// `[rows, head_dim]` as in [`StepInputs::cos_sin`].
    pub cos_sin: &'a B::Buffer,
    /// The heads side by side in a row.
    pub heads: HeadLayout,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::store_kv`].
#[derive(Debug)]
pub struct StoreKv<'a, B: Backend> {
    /// `[rows, qkv_size]` whose key and value heads are stored.
    pub qkv: &'a B::Buffer,
    /// `[rows]` as in [`StepInputs::slot_mapping`].
    pub slot_mapping: &'a B::Indices,
    /// Where keys and values go.
    pub kv: &'a mut B::Kv,
    /// The layer of `kv`.
    pub layer: usize,
    /// The heads side by side in a row.
    pub heads: HeadLayout,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::paged_attention`].
#[derive(Debug)]
pub struct PagedAttention<'a, B: Backend> {
    /// `[num_tokens, qkv_size]` whose query heads attend.
    pub qkv: &'a B::Buffer,
    /// The stored keys and values.
    pub kv: &'a B::Kv,
    /// The layer of `kv`.
    pub layer: usize,
    /// The heads side by side in a row.
    pub heads: HeadLayout,
    /// Lengths and block tables.
    pub inputs: &'a StepInputs<B>,
    /// `[num_tokens, q_size]` output.
    pub out: &'a mut B::Buffer,
    /// The shape of the step.
    pub key: StepKey,
}

/// The arguments of [`Backend::silu_and_mul`].
#[derive(Debug)]
pub struct SiluAndMul<'a, B: Backend> {
    /// `[rows, 2 * intermediate_size]`: each row is `[gate | up]`.
    pub gate_up: &'a B::Buffer,
    /// `[rows, intermediate_size]` output.
    pub out: &'a mut B::Buffer,
    /// Values of a gate, and of an up.
    pub intermediate_size: usize,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::add`].
#[derive(Debug)]
pub struct Add<'a, B: Backend> {
    /// What is added to.
    pub x: &'a mut B::Buffer,
    /// What is added.
    pub y: &'a B::Buffer,
    /// Values.
    pub len: usize,
}

/// The arguments of [`Backend::add_rows`].
#[derive(Debug)]
pub struct AddRows<'a, B: Backend> {
    /// `[rows, width]` what is added.
    pub x: &'a B::Buffer,
    /// `[rows]` numbers of rows of `out`, each at most once.
    pub indices: &'a B::Indices,
    /// What `x` is multiplied with.
    pub scale: f32,
    /// `[out_rows, width]` what is added to.
    pub out: &'a mut B::Buffer,
    /// Rows of `out`.
    pub out_rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Rows to add.
    pub rows: usize,
}

/// The arguments of [`Backend::gather_rows`].
#[derive(Debug)]
pub struct GatherRows<'a, B: Backend> {
    /// Rows of `width` values.
    pub x: &'a B::Buffer,
    /// `[rows]` numbers of rows of `x`.
    pub indices: &'a B::Indices,
    /// `[rows, width]` output.
    pub out: &'a mut B::Buffer,
    /// Values of a row.
    pub width: usize,
    /// Rows to take.
    pub rows: usize,
}

/// The arguments of [`Backend::argmax`].
#[derive(Debug)]
pub struct Argmax<'a, B: Backend> {
    /// `[rows, width]` values.
    pub x: &'a B::Buffer,
    /// `[rows]` output.
    pub out: &'a mut B::Indices,
    /// Values of a row.
    pub width: usize,
    /// The leading values of a row that may be chosen.
    pub valid: usize,
    /// Rows.
    pub rows: usize,
}

/// A norm that a fused operation applies to its input first.
#[derive(Debug)]
pub struct Norm<'a, B: Backend> {
    /// `[hidden_size]` its weight.
    pub weight: &'a B::Buffer,
    /// Added to the mean square.
    pub eps: f32,
    /// Values of a row.
    pub hidden_size: usize,
    /// `[rows, hidden_size]` scratch for the normed rows if the norm runs as a separate operation; unspecified
    /// afterwards.
    pub normed: &'a mut B::Buffer,
}

/// The arguments of [`Backend::qkv_rope_store`].
#[derive(Debug)]
pub struct QkvRopeStore<'a, B: Backend> {
    /// The norm of `x`, where `x` is not normed yet.
    pub norm: Option<Norm<'a, B>>,
    /// `[rows, hidden_size]` activations.
    pub x: &'a B::Buffer,
    /// The stacked projections, loaded as [`super::WeightRole::Qkv`].
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

/// The arguments of [`Backend::gate_up_silu`].
#[derive(Debug)]
pub struct GateUpSilu<'a, B: Backend> {
    /// The norm of `x`, where `x` is not normed yet.
    pub norm: Option<Norm<'a, B>>,
    /// `[rows, w.cols]` activations.
    pub x: &'a B::Buffer,
    /// The stacked projections, loaded as [`super::WeightRole::GateUp`].
    pub w: &'a B::Weight,
    /// `[rows, 2 * intermediate_size]`, or nothing where [`super::Footprint::fuses_gate_up`].
    pub scratch: &'a mut B::Buffer,
    /// `[rows, intermediate_size]` output.
    pub out: &'a mut B::Buffer,
    /// Values of a gate, and of an up.
    pub intermediate_size: usize,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::linear_add`].
#[derive(Debug)]
pub struct LinearAdd<'a, B: Backend> {
    /// `[rows, w.cols]` activations.
    pub x: &'a B::Buffer,
    /// The matrix.
    pub w: &'a B::Weight,
    /// The ranks over which the product is summed, if the columns of the matrix are split over ranks.
    pub group: Option<&'a dyn Collective>,
    /// `[rows, hidden_size]` scratch for the product if it is computed as a separate operation; unspecified afterwards.
    pub scratch: &'a mut B::Buffer,
    /// `[rows, hidden_size]` what is added to.
    pub residual: &'a mut B::Buffer,
    /// Rows of the matrix: values of a row of the residual.
    pub hidden_size: usize,
    /// Tokens.
    pub rows: usize,
}

/// The arguments of [`Backend::all_reduce`].
#[derive(Debug)]
pub struct AllReduce<'a, B: Backend> {
    /// Replaced by its sum over the ranks.
    pub x: &'a mut B::Buffer,
    /// The leading values of `x` that are summed.
    pub len: usize,
    /// The ranks.
    pub group: &'a dyn Collective,
}
