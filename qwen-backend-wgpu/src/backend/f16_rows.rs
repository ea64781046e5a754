//! Activations as f16 with a scale for each row: what products by cooperative matrices take.

use qwen_core::{Encoding, Result};

use super::{Numbers, WgpuBackend, words};
use crate::gpu::Array;
use crate::record::{Grid, Work};
use crate::shader::Shader;
use crate::weight::{Layout, Matrix};

/// Exponent of the largest value after scaling, for activations and weights. Far from overflow, and so high that what
/// loses bits does not count.
const LARGEST: u32 = 14;

/// Where the rows of a product lie as f16. Clones are the same arrays.
#[derive(Debug, Clone)]
pub(super) struct F16Rows {
    pub(super) values: Array,
    /// Words of a row in `values`.
    pub(super) width: usize,
    /// `[row]`
    pub(super) scales: Array,
}

/// Arrays for [`F16Rows`], as large as they have been needed.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    values: Option<(Array, usize)>,
    scales: Option<(Array, usize)>,
}

/// The biased exponent of what the sums are multiplied by, since the kernel divides the weights by it.
pub(super) fn weight_exponent(w: &Matrix) -> u32 {
    match w.layout.encoding {
        Encoding::Bf16 => w.largest_exponent.saturating_sub(LARGEST).clamp(1, 253),
        // f16 is taken as it is.
        _ => 127,
    }
}

impl WgpuBackend {
    /// Queue the rounding of `rows` rows of `x`, which `layout` will be multiplied with.
    pub(super) fn f16_rows(&mut self, op: &str, x: &Numbers, layout: &Layout, rows: usize) -> Result<F16Rows> {
        let width = 4 * layout.chunks();
        // Room for all that `x` can hold, so that longer steps make nothing.
        let most = (x.len / layout.cols.max(1)).max(rows);
        let values = self.room(|workspace| &mut workspace.values, most * width)?;
        let scales = self.room(|workspace| &mut workspace.scales, most)?;
        let shader = Shader::new("f16_rows").flag_if(!layout.cols.is_multiple_of(8), "RAGGED");
        for piece in self.pieces(op, rows, &[layout.cols, width])? {
            let bindings =
                [x.array.read(words(&piece, layout.cols)), values.write(words(&piece, width)), scales.write(0..rows)];
            let params = [layout.cols, layout.chunks(), piece.start].map(|param| param as u32);
            self.queue(op, &shader, &bindings, &params, Grid::Fixed([piece.len() as u32, 1, 1]), Work::default())?;
        }
        Ok(F16Rows { values, width, scales })
    }

    /// The array of the workspace that `of` chooses, grown to `len` words where it has fewer.
    fn room(&mut self, of: fn(&mut Workspace) -> &mut Option<(Array, usize)>, len: usize) -> Result<Array> {
        if let Some((array, held)) = of(&mut self.f16_workspace)
            && *held >= len
        {
            return Ok(array.clone());
        }
        let array = self.gpu.array("activations as f16", len)?;
        *of(&mut self.f16_workspace) = Some((array.clone(), len));
        Ok(array)
    }
}
