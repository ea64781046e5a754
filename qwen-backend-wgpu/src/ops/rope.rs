//! The rotation of queries and keys by their positions.

use qwen_core::Result;
use qwen_core::backend::Rope;

use crate::executor::{WgpuBackend, words};
use crate::ops::store_kv::check_heads;
use crate::shader::Shader;

pub(crate) fn rope(b: &mut WgpuBackend, op: Rope<'_, WgpuBackend>) -> Result<()> {
    let Rope { qkv, cos_sin, heads, rows, .. } = op;
    let op = "rope";
    check_heads(b, op, &heads)?;
    b.need(op, "qkv", &qkv.0, &[rows, heads.qkv_size()])?;
    b.need(op, "cos_sin", &cos_sin.0, &[rows, heads.head_dim])?;
    let half_dim = heads.head_dim / 2;
    let pairs = (heads.num_attention_heads + heads.num_key_value_heads) * half_dim;
    for piece in b.pieces(op, rows, &[heads.qkv_size()])? {
        let params = [heads.qkv_size(), half_dim, pairs, piece.start];
        let bindings =
            [qkv.0.array.write(words(&piece, heads.qkv_size())), cos_sin.0.array.read(0..rows * heads.head_dim)];
        b.queue_rows(op, &Shader::new(op), &bindings, &params, (pairs, piece.len()))?;
    }
    Ok(())
}
