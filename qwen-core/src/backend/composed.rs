//! The fused operations of [`Backend`] in terms of its base operations.
//!
//! They are free functions, so that a backend that overrides one can still run the composed form for comparison.

use super::{
    Add, AddRows, AllReduce, Argmax, Backend, GateUpSilu, Linear, LinearAdd, NON_FINITE, Norm, QkvRopeStore, RmsNorm,
    Rope, SiluAndMul, StoreKv,
};
use crate::error::Result;
use crate::numerics::size;

/// The composed form of [`Backend::argmax`]: reads the rows back and searches on the host.
pub fn argmax<B: Backend>(b: &mut B, op: Argmax<'_, B>) -> Result<()> {
    let Argmax { x, out, width, valid, rows } = op;
    let mut values = size::zeros("rows", &[rows, width])?;
    b.read(x, &mut values)?;
    let mut ids = size::zeros("rows", &[rows])?;
    for (row, id) in ids.iter_mut().enumerate() {
        *id = argmax_row(&values[row * width..][..valid.min(width)]);
    }
    b.write_indices(out, &ids)
}

/// The composed form of [`Backend::add_rows`]: through the host.
pub fn add_rows<B: Backend>(b: &mut B, op: AddRows<'_, B>) -> Result<()> {
    let AddRows { x, indices, scale, out, out_rows, width, rows } = op;
    let mut values = size::zeros("rows", &[rows, width])?;
    let mut sums = size::zeros("out_rows", &[out_rows, width])?;
    let mut to = size::zeros("rows", &[rows])?;
    b.read(x, &mut values)?;
    b.read(out, &mut sums)?;
    b.read_indices(indices, &mut to)?;
    for (row, values) in to.iter().zip(values.chunks_exact(width.max(1))) {
        let sums = sums.chunks_exact_mut(width.max(1)).nth(*row as usize).unwrap_or_default();
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += scale * value);
    }
    b.write(out, &sums)
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

/// The input of an operation that begins with a norm: the normed rows if there is a `norm`, else `x` itself.
///
/// For backends whose fused operation takes normed rows.
pub fn normed<'a, B: Backend>(
    b: &mut B,
    norm: Option<Norm<'a, B>>,
    x: &'a B::Buffer,
    rows: usize,
) -> Result<&'a B::Buffer> {
    let Some(Norm { weight, eps, hidden_size, normed }) = norm else { return Ok(x) };
    b.rms_norm(RmsNorm { x, weight, eps, hidden_size, out: normed, rows })?;
    Ok(normed)
}

/// The composed form of [`Backend::qkv_rope_store`].
pub fn qkv_rope_store<B: Backend>(b: &mut B, op: QkvRopeStore<'_, B>) -> Result<()> {
    let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows } = op;
    let x = normed(b, norm, x, rows)?;
    b.linear(Linear { x, w, bias: Some(bias), out: qkv, rows })?;
    b.rope(Rope { qkv, cos_sin: &inputs.cos_sin, heads, rows })?;
    b.store_kv(StoreKv { qkv, slot_mapping: &inputs.slot_mapping, kv, layer, heads, rows })
}

/// The composed form of [`Backend::gate_up_silu`].
pub fn gate_up_silu<B: Backend>(b: &mut B, op: GateUpSilu<'_, B>) -> Result<()> {
    let GateUpSilu { norm, x, w, scratch, out, intermediate_size, rows } = op;
    let x = normed(b, norm, x, rows)?;
    b.linear(Linear { x, w, bias: None, out: scratch, rows })?;
    b.silu_and_mul(SiluAndMul { gate_up: scratch, out, intermediate_size, rows })
}

/// The composed form of [`Backend::linear_add`].
pub fn linear_add<B: Backend>(b: &mut B, op: LinearAdd<'_, B>) -> Result<()> {
    let LinearAdd { x, w, group, scratch, residual, hidden_size, rows } = op;
    let len = size::values("rows", &[rows, hidden_size])?;
    b.linear(Linear { x, w, bias: None, out: scratch, rows })?;
    if let Some(group) = group {
        b.all_reduce(AllReduce { x: scratch, len, group })?;
    }
    b.add(Add { x: residual, y: scratch, len })
}

/// The composed form of [`Backend::all_reduce`]: through the host.
pub fn all_reduce<B: Backend>(b: &mut B, op: AllReduce<'_, B>) -> Result<()> {
    let AllReduce { x, len, group } = op;
    let mut values = size::zeros("len", &[len])?;
    b.read(x, &mut values)?;
    group.all_reduce(&mut values)?;
    b.write(x, &values)
}
