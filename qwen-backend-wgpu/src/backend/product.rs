//! Matrix products: which kernel takes which slab of the matrix and piece of the batch, and what becomes of the sums.

use qwen_core::backend::{HeadLayout, Norm, QkvRopeStore, StepInputs};
use qwen_core::{Encoding, Precision, Result};

use super::halves;
use super::{Numbers, WgpuBackend, WgpuBuffer, encoding_flag, kv_flags, words};
use crate::adapter::Cooperative;
use crate::kv::{Slab, Store};
use crate::record::Grid;
use crate::shader::Shader;
use crate::weight::Matrix;

/// Tokens from which on Fast multiplies by tiles.
pub(super) const TILE_FROM: usize = 9;
/// Threads that share a row of [`Shader`] `matvec`, and such groups in a workgroup.
const LANES: u32 = 32;
const GROUPS: u32 = 2;
/// The last of the parameters: the epsilon of a norm, or the exponent of the weights' scale.
const LAST: usize = 11;

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

impl Epilogue<'_> {
    /// The first binding that it leaves free.
    fn free_binding(&self) -> u32 {
        match self {
            Epilogue::Heads { .. } => 9,
            Epilogue::Write { bias: Some(_), .. } => 5,
            _ => 4,
        }
    }
}

/// The activations of a matrix product.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    pub(super) x: &'a Numbers,
    /// Weight and epsilon of the norm that the product begins with.
    pub(super) norm: Option<(&'a Numbers, f32)>,
}

impl<'a> Activations<'a> {
    pub(super) fn plain(x: &'a WgpuBuffer) -> Self {
        Activations { x: &x.0, norm: None }
    }

    pub(super) fn normed(x: &'a WgpuBuffer, norm: &Norm<'a, WgpuBackend>) -> Self {
        Activations { x: &x.0, norm: Some((&norm.weight.0, norm.eps)) }
    }
}

impl WgpuBackend {
    /// Whether a product of `rows` rows of activations norms them itself, which takes `arrays` arrays.
    ///
    /// All of its workgroups then norm the same few rows: less than a kernel before it costs, which all would wait for.
    /// Many rows are normed once. The bits are the same.
    pub(super) fn fuses_norm(&self, rows: usize, arrays: u32) -> bool {
        rows < TILE_FROM && arrays <= self.gpu.limits.max_storage_buffers_per_shader_stage
    }

    /// Queue `w x` for each slab of `w`, with what `epilogue` makes of the sums.
    pub(super) fn product(
        &mut self,
        op: &str,
        activations: Activations<'_>,
        w: &Matrix,
        rows: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let layout = &w.layout;
        let Activations { x, norm } = activations;
        self.need(op, "x", x, rows * layout.cols)?;
        if let Some((weight, _)) = norm {
            self.need(op, "norm", weight, layout.cols)?;
        }
        // Chosen by all rows, not by those of a piece: how a device splits changes no result.
        let tiled = self.precision == Precision::Fast && rows >= TILE_FROM;
        let cooperative = self.gpu.cooperative.filter(|_| tiled && layout.encoding != Encoding::F32);
        let (pairs_per_group, tokens_per_group) = match (cooperative, tiled, rows) {
            (Some(Cooperative { size, .. }), ..) => (2 * size as usize, 4 * size as usize),
            (None, true, _) => (32, 64),
            (None, false, 1) => (2 * GROUPS as usize, 1),
            (None, false, _) => (GROUPS as usize, 4),
        };
        let shader = match (cooperative, tiled) {
            (Some(Cooperative { size, subgroup }), _) => Shader::new("matmul_cooperative")
                .flag("COOPERATIVE")
                .flag_if(size == 16, "SIZE_16")
                .constant("SUBGROUP_SIZE", subgroup)
                .constant("SCALES_BINDING", epilogue.free_binding()),
            (None, true) => Shader::new("matmul"),
            (None, false) => Shader::new("matvec")
                .constant("LANES", LANES)
                .constant("GROUPS", GROUPS)
                .constant("PAIRS", (pairs_per_group / GROUPS as usize) as u32)
                .constant("TOKENS", tokens_per_group as u32),
        };
        let order = if layout.halves { "ORDER_HALVES" } else { "ORDER_PLAIN" };
        let ragged = cooperative.is_none() && !layout.cols.is_multiple_of(8);
        let shader = encoding_flag(shader, layout.encoding).flag_if(ragged, "RAGGED");
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
        let shader = match norm {
            Some(_) => shader.flag("NORM").constant("NORM_BINDING", epilogue.free_binding()),
            None => shader,
        };
        let halves = match cooperative {
            Some(_) => Some(self.halves(op, x, layout, rows)?),
            None => None,
        };
        let (x, x_width) = match &halves {
            Some(halves) => (&halves.values, halves.width),
            None => (&x.array, layout.cols),
        };
        for piece in self.pieces(op, rows, &[x_width, width])? {
            for (pairs, slab) in layout.slabs.iter().zip(&w.slabs) {
                let mut bindings =
                    vec![x.read(words(&piece, x_width)), slab.read_all(), out.array.write(words(&piece, width))];
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
                let mut params: Vec<u32> = params.iter().map(|param| *param as u32).collect();
                if let Some((weight, eps)) = norm {
                    bindings.push(weight.array.read(0..layout.cols));
                    params.resize(LAST, 0);
                    params.push(eps.to_bits());
                }
                if let Some(halves) = &halves {
                    bindings.push(halves.scales.read(0..rows));
                    params.resize(LAST, 0);
                    params.push(halves::weight_exponent(w));
                }
                let groups = [pairs.len().div_ceil(pairs_per_group), piece.len().div_ceil(tokens_per_group), 1];
                self.queue(op, &shader, &bindings, &params, Grid::Fixed(groups.map(|size| size as u32)))?;
                if let Some(dispatch) = self.queued.kernels.last_mut() {
                    dispatch.weight_bytes = (2 * pairs.len() * layout.row_bytes() * groups[1]) as u64;
                }
            }
        }
        Ok(())
    }

    /// `qkv_rope_store` in one kernel. None of it is queued where the matrix or the layer of the store is cut.
    pub(super) fn fused_heads(
        &mut self,
        name: &str,
        norm: Option<&Norm<'_, Self>>,
        op: &QkvRopeStore<'_, Self>,
    ) -> Result<bool> {
        let (layout, heads, rows) = (&op.w.0.layout, op.heads, op.rows);
        self.check_store(name, &op.kv.0, op.layer, &heads)?;
        let [slab] = op.kv.0.layers[op.layer].as_slice() else { return Ok(false) };
        if layout.slabs.len() > 1 || layout.rows != heads.qkv_size() || layout.halves {
            return Ok(false);
        }
        self.need(name, "bias", &op.bias.0, layout.rows)?;
        self.need(name, "cos_sin", &op.inputs.cos_sin.0, rows * heads.head_dim)?;
        self.need(name, "slot_mapping", &op.inputs.slot_mapping.numbers, rows)?;
        self.need(name, "qkv", &op.qkv.0, rows * layout.rows)?;
        let epilogue = Epilogue::Heads {
            qkv: &op.qkv.0,
            bias: &op.bias.0,
            inputs: op.inputs,
            heads,
            slab,
            store: &op.kv.0,
            layer: op.layer,
        };
        let activations = match norm {
            Some(norm) => Activations::normed(op.x, norm),
            None => Activations::plain(op.x),
        };
        self.product(name, activations, &op.w.0, rows, &epilogue)?;
        Ok(true)
    }
}
