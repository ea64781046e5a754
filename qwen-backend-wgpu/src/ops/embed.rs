//! Rows of the embedding table, decoded.

use qwen_core::Result;
use qwen_core::backend::Embed;

use crate::executor::{WgpuBackend, words};
use crate::shader::Shader;

pub(crate) fn embed(b: &mut WgpuBackend, op: Embed<'_, WgpuBackend>) -> Result<()> {
    let Embed { ids, table, out, rows, .. } = op;
    let (op, layout) = ("embed", &table.0.layout);
    b.need(op, "ids", &ids.words, &[rows])?;
    b.need(op, "out", &out.0, &[rows, layout.cols])?;
    if layout.gate_up {
        return Err(b.error(op, "a gate and up matrix is not an embedding table"));
    }
    let shader = Shader::new(op).encoding(layout.encoding);
    for piece in b.pieces(op, rows, &[layout.cols])? {
        // Each slab provides the rows that it contains.
        for (pairs, slab) in layout.slabs().zip(&table.0.slabs) {
            let first = 2 * pairs.start;
            let held = (2 * pairs.end).min(layout.rows).saturating_sub(first);
            let params = [piece.start, layout.cols, layout.chunks(), first, held, layout.rows];
            let out = out.0.array.write(words(&piece, layout.cols));
            let bindings = [ids.words.array.read(0..rows), slab.read_all(), out];
            b.queue_rows(op, &shader, &bindings, &params, (layout.chunks(), piece.len()))?;
        }
    }
    Ok(())
}
