//! Activations as f16 with a scale per row, the input of products by cooperative matrices.

use qwen_core::{Encoding, Result};

use crate::executor::{KernelCall, WgpuBackend, Words, words};
use crate::geometry::f16_row_words;
use crate::ops::rounded::Rounded;
use crate::runtime::array::Array;
use crate::runtime::commands::{Cost, Grid};
use crate::shader::Shader;
use crate::weight::{Layout, StoredSegment};

/// Exponent of the largest value after scaling, for activations and weights. Far from overflow, and high enough that
/// only negligibly small values lose bits.
const LARGEST_EXPONENT: u32 = 14;

/// The biased exponent of the factor for the sums, since the kernel divides the weights by it.
pub(super) fn weight_exponent(encoding: Encoding, stored: &StoredSegment) -> u32 {
    match encoding {
        // Not scaled.
        Encoding::F16 => 127,
        _ => stored.largest_exponent.saturating_sub(LARGEST_EXPONENT).clamp(1, 253),
    }
}

/// Queue the rounding of `rows` rows of `x`, for a product with a matrix of this layout, whose columns may be in another
/// order.
pub(super) fn round(
    b: &mut WgpuBackend,
    op: &str,
    x: &Words,
    layout: &Layout,
    column_order: Option<&Array>,
    rows: usize,
) -> Result<Rounded> {
    let width = f16_row_words(layout.cols);
    // If nothing was planned: as many rows as `x` holds, so that longer steps allocate nothing.
    let most = (x.len / layout.cols.max(1)).max(rows) as u64;
    let (device, workspace) = (&b.gpu.device, &mut b.workspace);
    let [needed_words, most_words] = [rows as u64, most].map(|rows| rows.saturating_mul(width as u64));
    let values = workspace.f16_values.array(device, "activations as f16", needed_words, most_words)?;
    let scales = workspace.f16_scales.array(device, "scales of activations", rows as u64, most)?;
    let shader = Shader::new("f16_rows").flag_if(!layout.cols.is_multiple_of(8), "RAGGED");
    let shader = match column_order {
        Some(_) => shader.flag("ORDERED").constant("ORDER_BINDING", 4),
        None => shader,
    };
    for piece in b.pieces(op, rows, &[layout.cols, width])? {
        let mut bindings =
            vec![x.array.read(words(&piece, layout.cols)), values.write(words(&piece, width)), scales.write(0..rows)];
        bindings.extend(column_order.map(Array::read_all));
        let params = b.params(op, &[layout.cols, layout.chunks(), piece.start])?;
        let grid = Grid::fixed([piece.len(), 1, 1]);
        b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost: Cost::default() })?;
    }
    Ok(Rounded { values, width, scales: Some(scales) })
}
