//! Rows of the embedding table, decoded.

use qwen_core::Result;
use qwen_core::backend::Embed;

use crate::executor::{WgpuBackend, words};
use crate::runtime::array::Array;
use crate::shader::Shader;

pub(crate) fn embed(b: &mut WgpuBackend, op: Embed<'_, WgpuBackend>) -> Result<()> {
    let Embed { ids, table, out, rows, .. } = op;
    let (op, layout) = ("embed", &table.0.layout);
    b.need(op, "ids", &ids.words, &[rows])?;
    b.need(op, "out", &out.0, &[rows, layout.cols])?;
    if layout.is_gate_up() {
        return Err(b.error(op, "a gate and up matrix is not an embedding table"));
    }
    let chunks = layout.chunks();
    for piece in b.pieces(op, rows, &[layout.cols])? {
        // Each slab provides the rows that it contains.
        for (segment, stored) in table.0.segments() {
            let ordered = stored.column_order.is_some();
            let shader = Shader::new(op).encoding(segment.encoding).flag_if(ordered, "ORDERED");
            for (pairs, slab) in segment.slabs().zip(&stored.slabs) {
                let first = segment.rows.start + 2 * pairs.start;
                let held = (segment.rows.start + 2 * pairs.end).min(segment.rows.end).saturating_sub(first);
                let params = [piece.start, layout.cols, chunks, first, held, layout.rows, segment.row_bytes / 4];
                let out = out.0.array.write(words(&piece, layout.cols));
                let mut bindings = vec![ids.words.array.read(0..rows), slab.read_all(), out];
                bindings.extend(stored.column_order.as_ref().map(Array::read_all));
                b.queue_rows(op, &shader, &bindings, &params, (chunks, piece.len()))?;
            }
        }
    }
    Ok(())
}
