//! Scaled rows added to rows by index.

use qwen_core::Result;
use qwen_core::backend::AddRows;

use crate::executor::{KernelCall, WgpuBackend, words};
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;

pub(crate) fn add_rows(b: &mut WgpuBackend, op: AddRows<'_, WgpuBackend>) -> Result<()> {
    let AddRows { x, indices, scale, out, out_rows, width, rows, .. } = op;
    let op = "add_rows";
    b.need(op, "x", &x.0, &[rows, width])?;
    b.need(op, "indices", &indices.words, &[rows])?;
    b.need(op, "out", &out.0, &[out_rows, width])?;
    if width == 0 {
        return Ok(());
    }
    for source in b.pieces(op, rows, &[width])? {
        // Each piece of the output takes the rows that it contains.
        for piece in b.pieces(op, out_rows, &[width])? {
            let bindings = [
                x.0.array.read(words(&source, width)),
                indices.words.array.read(0..rows),
                out.0.array.write(words(&piece, width)),
            ];
            let mut params = b.params(op, &[width, source.start, piece.start, piece.len()])?;
            params.push(scale.to_bits());
            let grid = Grid::fixed([width.div_ceil(64), source.len(), 1]);
            let shader = Shader::new(op);
            b.queue(KernelCall {
                op,
                shader: &shader,
                bindings: &bindings,
                params: &params,
                grid,
                cost: Cost::default(),
            })?;
        }
    }
    Ok(())
}
