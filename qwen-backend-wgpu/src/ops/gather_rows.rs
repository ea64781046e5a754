//! Rows by index.

use qwen_core::Result;
use qwen_core::backend::GatherRows;

use crate::executor::{WgpuBackend, words};
use crate::shader::Shader;

pub(crate) fn gather_rows(b: &mut WgpuBackend, op: GatherRows<'_, WgpuBackend>) -> Result<()> {
    let GatherRows { x, indices, out, width, rows, .. } = op;
    let op = "gather_rows";
    b.need(op, "indices", &indices.words, &[rows])?;
    b.need(op, "out", &out.0, &[rows, width])?;
    let held = x.0.len.checked_div(width).unwrap_or(0);
    for piece in b.pieces(op, rows, &[width])? {
        // Each piece of the source provides the rows that it contains.
        for source in b.pieces(op, held, &[width])? {
            let bindings = [
                x.0.array.read(words(&source, width)),
                indices.words.array.read(0..rows),
                out.0.array.write(words(&piece, width)),
            ];
            let params = [width, piece.start, source.start, source.len()];
            b.queue_rows(op, &Shader::new(op), &bindings, &params, (width, piece.len()))?;
        }
    }
    Ok(())
}
