//! Matrix products: which kernel takes which slab of the matrix and piece of the batch, and what becomes of the sums.

use qwen_core::backend::{HeadLayout, Norm, QkvRopeStore, StepInputs};
use qwen_core::{Encoding, Precision, Result};

use super::f16_rows;
use super::{Numbers, WgpuBackend, WgpuBuffer, encoding_flag, words};
use crate::adapter::Cooperative;
use crate::kv::{KvTypes, Slab, Store};
use crate::record::{Grid, Work};
use crate::shader::Shader;
use crate::weight::Matrix;

/// Tokens from which on Fast multiplies by tiles.
pub(super) const TILE_FROM: usize = 9;
/// Threads that share a row of [`Shader`] `matvec`, and such groups in a workgroup.
const LANES: u32 = 32;
const GROUPS: u32 = 2;
/// The last of the parameters: the epsilon of a norm, or the exponent of the weights' scale.
const LAST: usize = 11;

/// A kernel that multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProductKernel {
    /// Bound by reading the matrix: one token at a time, or four.
    Matvec { tokens: u32 },
    /// Bound by arithmetic.
    Tiled,
    /// As tiled, by cooperative matrices.
    Cooperative(Cooperative),
}

impl ProductKernel {
    /// The kernel for so many rows. Chosen by all rows, not by those of a piece: how a device splits changes no result.
    fn choose(precision: Precision, cooperative: Option<Cooperative>, encoding: Encoding, rows: usize) -> Self {
        match cooperative.filter(|_| encoding != Encoding::F32) {
            _ if precision != Precision::Fast || rows < TILE_FROM => {
                ProductKernel::Matvec { tokens: if rows == 1 { 1 } else { 4 } }
            }
            Some(cooperative) => ProductKernel::Cooperative(cooperative),
            None => ProductKernel::Tiled,
        }
    }

    /// Pairs of matrix rows, and tokens, of a workgroup.
    fn tile(self) -> (usize, usize) {
        match self {
            ProductKernel::Matvec { tokens } => ((GROUPS * self.pairs_per_lane()) as usize, tokens as usize),
            ProductKernel::Tiled => (32, 64),
            ProductKernel::Cooperative(Cooperative { size, .. }) => (2 * size as usize, 4 * size as usize),
        }
    }

    /// Pairs of rows that a thread of `matvec` sums: with one token it has the registers for two.
    fn pairs_per_lane(self) -> u32 {
        if self == (ProductKernel::Matvec { tokens: 1 }) { 2 } else { 1 }
    }
}

/// A kernel of cooperative matrices.
pub(crate) fn cooperative_shader(kernel: &'static str, Cooperative { size, subgroup }: Cooperative) -> Shader {
    let shader = Shader::new(kernel).flag("COOPERATIVE").flag_if(size == 16, "SIZE_16");
    shader.constant("SUBGROUP_SIZE", subgroup)
}

/// What a kernel does with the sums of a pair of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emit {
    Write { bias: bool },
    Add,
    Silu,
    Heads(KvTypes),
}

impl Emit {
    /// The first binding that it leaves free.
    fn free_binding(self) -> u32 {
        match self {
            Emit::Heads(_) => 9,
            Emit::Write { bias: true } => 5,
            _ => 4,
        }
    }
}

/// All that decides the shader of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProductShader {
    pub(crate) kernel: ProductKernel,
    pub(crate) encoding: Encoding,
    /// Whether gate and up rows are pairs.
    pub(crate) gate_up: bool,
    /// Whether the columns are no multiple of eight.
    pub(crate) ragged: bool,
    /// Whether activations are normed first.
    pub(crate) norm: bool,
    pub(crate) emit: Emit,
}

impl ProductShader {
    pub(crate) fn shader(self) -> Shader {
        let ProductShader { kernel, encoding, gate_up, ragged, norm, emit } = self;
        let (shader, ragged) = match kernel {
            ProductKernel::Cooperative(cooperative) => {
                let shader = cooperative_shader("matmul_cooperative", cooperative)
                    .constant("SCALES_BINDING", emit.free_binding());
                // Its activations come padded.
                (shader, false)
            }
            ProductKernel::Tiled => (Shader::new("matmul"), ragged),
            ProductKernel::Matvec { tokens } => {
                let shader = Shader::new("matvec")
                    .constant("LANES", LANES)
                    .constant("GROUPS", GROUPS)
                    .constant("PAIRS", kernel.pairs_per_lane())
                    .constant("TOKENS", tokens);
                (shader, ragged)
            }
        };
        let order = match emit {
            Emit::Heads(_) => "ORDER_HEADS",
            _ if gate_up => "ORDER_GATE_UP",
            _ => "ORDER_PLAIN",
        };
        let shader = encoding_flag(shader, encoding).flag_if(ragged, "RAGGED").flag(order);
        let shader = match emit {
            Emit::Write { bias } => shader.flag("EPILOGUE_WRITE").flag_if(bias, "BIAS"),
            Emit::Add => shader.flag("EPILOGUE_ADD"),
            Emit::Silu => shader.flag("EPILOGUE_SILU"),
            Emit::Heads(types) => types.flags(shader.flag("EPILOGUE_HEADS")),
        };
        match norm {
            true => shader.flag("NORM").constant("NORM_BINDING", emit.free_binding()),
            false => shader,
        }
    }

    /// All that the backend asks for with these kernels.
    #[cfg(test)]
    pub(crate) fn all(kernels: &[ProductKernel]) -> Vec<Self> {
        let emits = [Emit::Write { bias: false }, Emit::Write { bias: true }, Emit::Add, Emit::Silu];
        let emits: Vec<Emit> = emits.into_iter().chain(KvTypes::ALL.map(Emit::Heads)).collect();
        let mut all = Vec::new();
        for &kernel in kernels {
            for encoding in [Encoding::Bf16, Encoding::F16, Encoding::F32] {
                for &emit in &emits {
                    for bits in 0..8 {
                        let [gate_up, ragged, norm] = [1, 2, 4].map(|bit| bits & bit != 0);
                        all.push(ProductShader { kernel, encoding, gate_up, ragged, norm, emit });
                    }
                }
            }
        }
        all.retain(|product| product.is_asked_for());
        all
    }

    #[cfg(test)]
    fn is_asked_for(&self) -> bool {
        let few = matches!(self.kernel, ProductKernel::Matvec { .. });
        let cooperative = matches!(self.kernel, ProductKernel::Cooperative(_));
        let orders = match self.emit {
            Emit::Silu => self.gate_up,
            Emit::Heads(_) => !self.gate_up,
            _ => true,
        };
        let norms = !self.norm || few && matches!(self.emit, Emit::Silu | Emit::Heads(_));
        orders && norms && !(cooperative && (self.ragged || self.encoding == Encoding::F32))
    }
}

/// What becomes of the sums of a matrix product, and where they go.
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

impl<'a> Epilogue<'a> {
    fn emit(&self) -> Emit {
        match self {
            Epilogue::Write { bias, .. } => Emit::Write { bias: bias.is_some() },
            Epilogue::Add { .. } => Emit::Add,
            Epilogue::Silu { .. } => Emit::Silu,
            Epilogue::Heads { store, layer, .. } => Emit::Heads(store.types(*layer)),
        }
    }

    /// Where the sums go, and values of a row there, for a matrix with so many rows.
    fn out(&self, rows: usize) -> (&'a Numbers, usize) {
        match self {
            Epilogue::Write { out, .. } => (out, rows),
            Epilogue::Add { residual } => (residual, rows),
            Epilogue::Silu { out } => (out, rows / 2),
            Epilogue::Heads { qkv, .. } => (qkv, rows),
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
        let kernel = ProductKernel::choose(self.precision, self.gpu.cooperative, layout.encoding, rows);
        let shader = ProductShader {
            kernel,
            encoding: layout.encoding,
            gate_up: layout.gate_up,
            ragged: !layout.cols.is_multiple_of(8),
            norm: norm.is_some(),
            emit: epilogue.emit(),
        };
        let shader = shader.shader();
        let (pairs_per_group, tokens_per_group) = kernel.tile();
        let rounded = match kernel {
            ProductKernel::Cooperative(_) => Some(self.f16_rows(op, x, layout, rows)?),
            _ => None,
        };
        let (x, x_width) = match &rounded {
            Some(rounded) => (&rounded.values, rounded.width),
            None => (&x.array, layout.cols),
        };
        let (out, width) = epilogue.out(layout.rows);
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
                if let Some(rounded) = &rounded {
                    bindings.push(rounded.scales.read(0..rows));
                    params.resize(LAST, 0);
                    params.push(f16_rows::weight_exponent(w));
                }
                let groups = [pairs.len().div_ceil(pairs_per_group), piece.len().div_ceil(tokens_per_group), 1];
                let work = Work {
                    multiply_adds: (2 * pairs.len() * layout.cols * piece.len()) as u64,
                    weight_bytes: (2 * pairs.len() * layout.row_bytes() * groups[1]) as u64,
                    ..Work::default()
                };
                self.queue(op, &shader, &bindings, &params, Grid::Fixed(groups.map(|size| size as u32)), work)?;
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
        if layout.slabs.len() > 1 || layout.rows != heads.qkv_size() || layout.gate_up {
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
