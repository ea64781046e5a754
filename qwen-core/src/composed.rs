//! The fused operations of [`Backend`] in terms of its base operations.
//!
//! They are free functions, so that a backend that overrides one can still run the composed form to compare with.

use crate::backend::{Backend, NON_FINITE, Norm, QkvRopeStore};
use crate::collective::Collective;
use crate::error::Result;

/// The composed form of [`Backend::argmax`]: reads the rows back and searches on the host.
pub fn argmax<B: Backend>(
    b: &mut B,
    x: &B::Buffer,
    out: &mut B::Indices,
    width: usize,
    valid: usize,
    rows: usize,
) -> Result<()> {
    let mut values = vec![0.0; rows * width];
    b.read(x, &mut values)?;
    let ids: Vec<u32> = values.chunks_exact(width).map(|row| argmax_row(row.get(..valid).unwrap_or(row))).collect();
    b.write_indices(out, &ids)
}

/// The index of the largest value, the lowest one among equals, or [`NON_FINITE`].
pub fn argmax_row(row: &[f32]) -> u32 {
    let mut best = 0;
    let mut max = f32::NEG_INFINITY;
    let mut finite = true;
    for (i, &value) in row.iter().enumerate() {
        finite &= value.is_finite();
        if value > max {
            max = value;
            best = i;
        }
    }
    if finite { best as u32 } else { NON_FINITE }
}

/// The composed form of [`Backend::add_rms_norm`].
#[allow(clippy::too_many_arguments)]
pub fn add_rms_norm<B: Backend>(
    b: &mut B,
    residual: &mut B::Buffer,
    y: &B::Buffer,
    weight: &B::Buffer,
    eps: f32,
    out: &mut B::Buffer,
    hidden_size: usize,
    rows: usize,
) -> Result<()> {
    b.add(residual, y, rows * hidden_size)?;
    b.rms_norm(residual, weight, eps, out, hidden_size, rows)
}

/// The composed form of [`Backend::qkv_rope_store`].
pub fn qkv_rope_store<B: Backend>(b: &mut B, op: QkvRopeStore<'_, B>) -> Result<()> {
    b.linear(op.x, op.w, Some(op.bias), op.qkv, op.rows)?;
    b.rope(op.qkv, &op.inputs.cos_sin, op.heads, op.rows)?;
    b.store_kv(op.qkv, &op.inputs.slot_mapping, op.kv, op.layer, op.heads, op.rows)
}

/// The composed form of [`Backend::gate_up_silu`].
pub fn gate_up_silu<B: Backend>(
    b: &mut B,
    x: &B::Buffer,
    w: &B::Weight,
    scratch: &mut B::Buffer,
    out: &mut B::Buffer,
    intermediate_size: usize,
    rows: usize,
) -> Result<()> {
    b.linear(x, w, None, scratch, rows)?;
    b.silu_and_mul(scratch, out, intermediate_size, rows)
}

/// The composed form of [`Backend::norm_qkv_rope_store`].
pub fn norm_qkv_rope_store<B: Backend>(b: &mut B, norm: Norm<'_, B>, op: QkvRopeStore<'_, B>) -> Result<()> {
    b.rms_norm(op.x, norm.weight, norm.eps, norm.normed, norm.hidden_size, op.rows)?;
    b.qkv_rope_store(QkvRopeStore { x: norm.normed, ..op })
}

/// The composed form of [`Backend::norm_gate_up_silu`].
#[allow(clippy::too_many_arguments)]
pub fn norm_gate_up_silu<B: Backend>(
    b: &mut B,
    norm: Norm<'_, B>,
    x: &B::Buffer,
    w: &B::Weight,
    scratch: &mut B::Buffer,
    out: &mut B::Buffer,
    intermediate_size: usize,
    rows: usize,
) -> Result<()> {
    b.rms_norm(x, norm.weight, norm.eps, norm.normed, norm.hidden_size, rows)?;
    b.gate_up_silu(norm.normed, w, scratch, out, intermediate_size, rows)
}

/// The composed form of [`Backend::linear_add`].
pub fn linear_add<B: Backend>(
    b: &mut B,
    x: &B::Buffer,
    w: &B::Weight,
    scratch: &mut B::Buffer,
    residual: &mut B::Buffer,
    hidden_size: usize,
    rows: usize,
) -> Result<()> {
    b.linear(x, w, None, scratch, rows)?;
    b.add(residual, scratch, rows * hidden_size)
}

/// The composed form of [`Backend::all_reduce`]: over the host.
pub fn all_reduce<B: Backend>(b: &mut B, x: &mut B::Buffer, len: usize, group: &dyn Collective) -> Result<()> {
    let mut values = vec![0.0; len];
    b.read(x, &mut values)?;
    group.all_reduce(&mut values)?;
    b.write(x, &values)
}
