//! Activations as signed bytes with a scale per 32 values, the input of integer products with block formats.

use qwen_core::Result;

use crate::executor::{KernelCall, WgpuBackend, Words, words};
use crate::geometry::{TILE_FROM, signed_row_words};
use crate::ops::rounded::Rounded;
use crate::runtime::array::Array;
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;
use crate::weight::Layout;

/// Threads of a workgroup, as in the shader; each rounds 32 values.
const THREADS: usize = 64;

/// Queue the rounding of `rows` rows of `x` for a product with a matrix of this layout, whose columns may be in another
/// order. With `norm`, its weight and epsilon, the rows are normed first.
pub(super) fn round(
    b: &mut WgpuBackend,
    op: &str,
    (x, norm): (&Words, Option<(&Words, f32)>),
    layout: &Layout,
    column_order: Option<&Array>,
    rows: usize,
) -> Result<Rounded> {
    let width = signed_row_words(layout.cols);
    // If nothing was planned: as many rows as these products take, so that longer steps allocate nothing.
    let most = (x.len / layout.cols.max(1)).min(TILE_FROM - 1).max(rows);
    let [needed, most] = [rows, most].map(|rows| (rows as u64).saturating_mul(width as u64));
    let packed = b.workspace.signed_rows.array(&b.gpu.device, "activations as bytes", needed, most)?;
    let shader = Shader::new("signed_rows");
    let shader = match (column_order, norm) {
        (Some(_), _) => shader.flag("ORDERED").constant("ORDER_BINDING", 3),
        (None, Some(_)) => shader.flag("NORM").constant("NORM_BINDING", 3),
        (None, None) => shader,
    };
    for piece in b.pieces(op, rows, &[layout.cols, width])? {
        let mut bindings = vec![x.array.read(words(&piece, layout.cols)), packed.write(words(&piece, width))];
        bindings.extend(column_order.map(Array::read_all));
        bindings.extend(norm.map(|(weight, _)| weight.array.read(0..layout.cols)));
        let mut params = b.params(op, &[piece.len(), layout.cols, layout.chunks()])?;
        params.push(norm.map_or(0, |(_, eps)| eps.to_bits()));
        let grid = Grid::fixed([(layout.cols / 32).div_ceil(THREADS), piece.len(), 1]);
        b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost: Cost::default() })?;
    }
    Ok(Rounded { values: packed, width, scales: None })
}
