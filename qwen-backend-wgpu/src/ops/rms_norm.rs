//! The norm of each row, as a separate kernel. Products of few rows norm them themselves: see [`crate::ops::product`].

use qwen_core::Result;
use qwen_core::backend::RmsNorm;

use crate::executor::{KernelCall, WgpuBackend, words};
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;

pub(crate) fn rms_norm(b: &mut WgpuBackend, op: RmsNorm<'_, WgpuBackend>) -> Result<()> {
    let RmsNorm { x, weight, eps, hidden_size, out, rows, .. } = op;
    let op = "rms_norm";
    b.need(op, "x", &x.0, &[rows, hidden_size])?;
    b.need(op, "weight", &weight.0, &[hidden_size])?;
    b.need(op, "out", &out.0, &[rows, hidden_size])?;
    let mut params = b.params(op, &[hidden_size])?;
    params.push(eps.to_bits());
    for piece in b.pieces(op, rows, &[hidden_size])? {
        let at = words(&piece, hidden_size);
        let bindings = [x.0.array.read(at.clone()), weight.0.array.read(0..hidden_size), out.0.array.write(at.clone())];
        let grid = Grid::fixed([piece.len(), 1, 1]);
        let (shader, cost) = (Shader::new(op), Cost::default());
        b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost })?;
    }
    Ok(())
}
