//! The kernels of matrix products, and which one is used for which matrix and number of rows.

#[cfg(test)]
use qwen_core::backend::planes;
use qwen_core::backend::planes::PlaneFormat;
use qwen_core::{Encoding, Precision};

use crate::adapter::Cooperative;
use crate::geometry::TILE_FROM;
use crate::kv::KvTypes;
use crate::runtime::device::Device;
use crate::shader::Shader;

/// Threads of a workgroup of `matvec.wgsl`.
const MATVEC_THREADS: u32 = 64;

/// A kernel that multiplies a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProductKernel {
    /// For few rows, bound by reading the matrix: `tokens` rows at a time, one or four. `lanes` threads share a row of the
    /// matrix. If `signed`, it is in blocks, and the activations are signed bytes.
    Matvec { tokens: u32, lanes: u32, signed: bool },
    /// For many rows, bound by arithmetic.
    Tiled,
    /// For many rows, by cooperative matrices.
    Cooperative(Cooperative),
}

impl ProductKernel {
    /// The kernel for `rows` rows: of the whole batch, not of a piece, so that the way a device splits does not change
    /// results.
    pub(super) fn choose(device: &Device, precision: Precision, encoding: Encoding, rows: usize) -> Self {
        match device.cooperative.filter(|_| encoding != Encoding::F32) {
            _ if precision != Precision::Fast || rows < TILE_FROM => {
                let signed = precision == Precision::Fast && device.integer_dots && PlaneFormat::of(encoding).is_some();
                ProductKernel::Matvec { tokens: if rows == 1 { 1 } else { 4 }, lanes: device.lanes, signed }
            }
            Some(cooperative) => ProductKernel::Cooperative(cooperative),
            None => ProductKernel::Tiled,
        }
    }

    /// Whether its activations are signed bytes.
    pub(super) fn is_signed(self) -> bool {
        matches!(self, ProductKernel::Matvec { signed: true, .. })
    }

    /// Pairs of matrix rows, and tokens, per workgroup.
    pub(super) fn tile(self) -> (usize, usize) {
        match self {
            ProductKernel::Matvec { tokens, lanes, .. } => {
                ((MATVEC_THREADS / lanes * pairs_per_lane(tokens)) as usize, tokens as usize)
            }
            ProductKernel::Tiled => (32, 64),
            ProductKernel::Cooperative(Cooperative { size, .. }) => (2 * size as usize, 4 * size as usize),
        }
    }
}

/// Pairs of rows per thread of `matvec.wgsl`: with one token it has registers for two.
fn pairs_per_lane(tokens: u32) -> u32 {
    if tokens == 1 { 2 } else { 1 }
}

/// A shader that uses cooperative matrices.
pub(crate) fn cooperative_shader(kernel: &'static str, Cooperative { size, subgroup }: Cooperative) -> Shader {
    let shader = Shader::new(kernel).flag("COOPERATIVE").flag_if(size == 16, "SIZE_16");
    shader.constant("SUBGROUP_SIZE", subgroup)
}

/// What a kernel does with the sums of a pair of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EpilogueKind {
    /// Writes them, with a bias added or without.
    Write { bias: bool },
    /// Adds them to the output.
    Add,
    /// Writes `silu` of the first times the second.
    Silu,
    /// Multiplies them by `silu` of the output.
    Gated,
    /// Rotates queries and keys, and stores keys and values.
    Heads(KvTypes),
}

impl EpilogueKind {
    /// The first free binding after its own.
    fn free_binding(self) -> u32 {
        match self {
            EpilogueKind::Heads(_) => 9,
            EpilogueKind::Write { bias: true } => 5,
            _ => 4,
        }
    }
}

/// Everything that determines the shader of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProductShader {
    pub(crate) kernel: ProductKernel,
    pub(crate) encoding: Encoding,
    /// Whether gate and up rows are pairs.
    pub(crate) gate_up: bool,
    /// Whether columns are stored in another order.
    pub(crate) ordered: bool,
    /// Whether the number of columns is not a multiple of eight.
    pub(crate) ragged: bool,
    /// Whether activations are normed first.
    pub(crate) norm: bool,
    pub(crate) epilogue: EpilogueKind,
}

impl ProductShader {
    pub(crate) fn shader(self) -> Shader {
        let ProductShader { kernel, encoding, gate_up, ordered, ragged, norm, epilogue } = self;
        let (shader, ordered, ragged) = match kernel {
            ProductKernel::Cooperative(cooperative) => {
                let shader = cooperative_shader("matmul_cooperative", cooperative)
                    .constant("SCALES_BINDING", epilogue.free_binding());
                // Its activations are padded and in the order of the columns.
                (shader, false, false)
            }
            ProductKernel::Tiled => (Shader::new("matmul"), ordered, ragged),
            ProductKernel::Matvec { tokens, lanes, signed } => {
                let shader = Shader::new("matvec")
                    .constant("LANES", lanes)
                    .constant("GROUPS", MATVEC_THREADS / lanes)
                    .constant("PAIRS", pairs_per_lane(tokens))
                    .constant("TOKENS", tokens)
                    .flag_if(signed, "SIGNED");
                // Bytes are rounded in the order of the columns.
                (shader, ordered && !signed, ragged)
            }
        };
        let order = match epilogue {
            EpilogueKind::Heads(_) => "ORDER_HEADS",
            _ if gate_up => "ORDER_GATE_UP",
            _ => "ORDER_PLAIN",
        };
        let shader = shader.encoding(encoding).flag_if(ragged, "RAGGED").flag(order);
        let shader = match epilogue {
            EpilogueKind::Write { bias } => shader.flag("EPILOGUE_WRITE").flag_if(bias, "BIAS"),
            EpilogueKind::Add => shader.flag("EPILOGUE_ADD"),
            EpilogueKind::Silu => shader.flag("EPILOGUE_SILU"),
            EpilogueKind::Gated => shader.flag("EPILOGUE_GATED"),
            EpilogueKind::Heads(types) => types.flags(shader.flag("EPILOGUE_HEADS")),
        };
        let shader = match ordered {
            true => shader.flag("ORDERED").constant("ORDER_BINDING", epilogue.free_binding()),
            false => shader,
        };
        match norm {
            true => shader.flag("NORM").constant("NORM_BINDING", epilogue.free_binding()),
            false => shader,
        }
    }

    /// All shaders that the backend requests with these kernels.
    #[cfg(test)]
    pub(crate) fn all(kernels: &[ProductKernel]) -> Vec<Self> {
        let epilogues = [
            EpilogueKind::Write { bias: false },
            EpilogueKind::Write { bias: true },
            EpilogueKind::Add,
            EpilogueKind::Silu,
            EpilogueKind::Gated,
        ];
        let epilogues: Vec<EpilogueKind> =
            epilogues.into_iter().chain(KvTypes::PAIRS.map(EpilogueKind::Heads)).collect();
        let plain = [Encoding::Bf16, Encoding::F16, Encoding::F32];
        let mut all = Vec::new();
        for &kernel in kernels {
            for encoding in plain.into_iter().chain(planes::encodings()) {
                for &epilogue in &epilogues {
                    for bits in 0..16 {
                        let [gate_up, ordered, ragged, norm] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                        all.push(ProductShader { kernel, encoding, gate_up, ordered, ragged, norm, epilogue });
                    }
                }
            }
        }
        all.retain(|product| product.is_requested());
        all
    }

    #[cfg(test)]
    fn is_requested(&self) -> bool {
        let few = matches!(self.kernel, ProductKernel::Matvec { .. });
        let cooperative = matches!(self.kernel, ProductKernel::Cooperative(_));
        let orders = match self.epilogue {
            EpilogueKind::Silu => self.gate_up,
            EpilogueKind::Heads(_) if self.ordered => false,
            EpilogueKind::Heads(_) | EpilogueKind::Gated => !self.gate_up,
            _ => true,
        };
        let is_block = PlaneFormat::of(self.encoding).is_some();
        let is_group = matches!(self.encoding, Encoding::Group(_));
        let columns = !(self.ragged && is_block) && (!self.ordered || is_group && !self.norm && !cooperative);
        let signed = self.kernel.is_signed();
        if signed && (!is_block || self.norm || self.ordered) {
            return false;
        }
        let norms = !self.norm || few && matches!(self.epilogue, EpilogueKind::Silu | EpilogueKind::Heads(_));
        orders && norms && columns && !(cooperative && (self.ragged || self.encoding == Encoding::F32))
    }
}
