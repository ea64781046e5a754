//! Matrix products: which kernel takes which slab of the matrix and piece of the batch, and what becomes of the sums.

use qwen_core::backend::{HeadLayout, StepInputs};
use qwen_core::{Precision, Result};

use super::{Numbers, WgpuBackend, encoding_flag, kv_flags, words};
use crate::kv::{Slab, Store};
use crate::record::Grid;
use crate::shader::Shader;
use crate::weight::Matrix;

/// Tokens from which on Fast multiplies by tiles.
pub(super) const TILE_FROM: usize = 9;
/// Threads that share a row of [`Shader`] `matvec`, and such groups in a workgroup.
const LANES: u32 = 32;
const GROUPS: u32 = 2;

/// What becomes of the sums of a matrix product.
pub(super) enum Epilogue<'a> {
    Write {
        out: &'a Numbers,
        bias: Option<&'a Numbers>,
    },
    Add {
        residual: &'a Numbers,
    },
    Silu {
        out: &'a Numbers,
    },
    Heads {
        qkv: &'a Numbers,
        bias: &'a Numbers,
        inputs: &'a StepInputs<WgpuBackend>,
        heads: HeadLayout,
        slab: &'a Slab,
        store: &'a Store,
        layer: usize,
    },
}

impl WgpuBackend {
    /// Queue `w x` for each slab of `w`, with what `epilogue` makes of the sums.
    pub(super) fn product(
        &mut self,
        op: &str,
        x: &Numbers,
        w: &Matrix,
        rows: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let layout = &w.layout;
        self.need(op, "x", x, rows * layout.cols)?;
        // Chosen by all rows, not by those of a piece: how a device splits changes no result.
        let tiled = self.precision == Precision::Fast && rows >= TILE_FROM;
        let (pairs_per_group, tokens_per_group) = match (tiled, rows) {
            (true, _) => (32, 64),
            (false, 1) => (2 * GROUPS as usize, 1),
            (false, _) => (GROUPS as usize, 4),
        };
        let shader = match tiled {
            true => Shader::new("matmul"),
            false => Shader::new("matvec")
                .constant("LANES", LANES)
                .constant("GROUPS", GROUPS)
                .constant("PAIRS", (pairs_per_group / GROUPS as usize) as u32)
                .constant("TOKENS", tokens_per_group as u32),
        };
        let order = if layout.halves { "ORDER_HALVES" } else { "ORDER_PLAIN" };
        let shader = encoding_flag(shader, layout.encoding).flag_if(!layout.cols.is_multiple_of(8), "RAGGED");
        let (shader, out, width) = match epilogue {
            Epilogue::Write { out, bias } => {
                (shader.flag(order).flag("EPILOGUE_WRITE").flag_if(bias.is_some(), "BIAS"), out, layout.rows)
            }
            Epilogue::Add { residual } => (shader.flag(order).flag("EPILOGUE_ADD"), residual, layout.rows),
            Epilogue::Silu { out } => (shader.flag(order).flag("EPILOGUE_SILU"), out, layout.rows / 2),
            Epilogue::Heads { qkv, store, layer, .. } => {
                (kv_flags(shader.flag("ORDER_HEADS").flag("EPILOGUE_HEADS"), store, *layer), qkv, layout.rows)
            }
        };
        for piece in self.pieces(op, rows, &[layout.cols, width])? {
            for (pairs, slab) in layout.slabs.iter().zip(&w.slabs) {
                let mut bindings = vec![
                    x.array.read(words(&piece, layout.cols)),
                    slab.read_all(),
                    out.array.write(words(&piece, width)),
                ];
                let mut params =
                    vec![piece.len(), layout.cols, layout.chunks(), pairs.len(), pairs.start, layout.rows, piece.start];
                match epilogue {
                    Epilogue::Write { bias: Some(bias), .. } => bindings.push(bias.array.read(0..layout.rows)),
                    Epilogue::Heads { bias, inputs, heads, slab, store, .. } => {
                        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
                        params.extend([num_attention_heads, num_key_value_heads, head_dim / 2, store.num_slots()]);
                        bindings.extend([
                            bias.array.read(0..layout.rows),
                            inputs.cos_sin.0.array.read(0..rows * head_dim),
                            inputs.slot_mapping.numbers.array.read(0..rows),
                            slab.keys.write_all(),
                            slab.values.write_all(),
                        ]);
                    }
                    _ => {}
                }
                let params: Vec<u32> = params.iter().map(|param| *param as u32).collect();
                let groups = [pairs.len().div_ceil(pairs_per_group), piece.len().div_ceil(tokens_per_group), 1];
                self.queue(op, &shader, &bindings, &params, Grid::Fixed(groups.map(|size| size as u32)))?;
                if let Some(dispatch) = self.queued.kernels.last_mut() {
                    dispatch.weight_bytes = (2 * pairs.len() * layout.row_bytes() * groups[1]) as u64;
                }
            }
        }
        Ok(())
    }
}
