//! The index of each row's largest value.

use qwen_core::Result;
use qwen_core::backend::Argmax;

use crate::executor::{KernelCall, WgpuBackend, words};
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;

pub(crate) fn argmax(b: &mut WgpuBackend, op: Argmax<'_, WgpuBackend>) -> Result<()> {
    let Argmax { x, out, width, valid, rows, .. } = op;
    let op = "argmax";
    b.need(op, "x", &x.0, &[rows, width])?;
    b.need(op, "out", &out.words, &[rows])?;
    out.largest.write_by_kernel();
    for piece in b.pieces(op, rows, &[width])? {
        let bindings = [x.0.array.read(words(&piece, width)), out.words.array.write(0..rows)];
        let params = b.params(op, &[width, valid.min(width), piece.start])?;
        let grid = Grid::fixed([piece.len(), 1, 1]);
        let (shader, cost) = (Shader::new(op), Cost::default());
        b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost })?;
    }
    Ok(())
}
