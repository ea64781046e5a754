//! The kernels: their names in kernels/*.cu, their parameters, and the sizes of their blocks.

use std::fmt;

use qwen_core::Encoding;

use crate::geometry::*;
use crate::params::{self, Field, Params};

/// An element type that kernels support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
}

impl Element {
    /// The element type of `encoding`, if kernels support it.
    pub(crate) fn of(encoding: Encoding) -> Option<Self> {
        match encoding {
            Encoding::F32 => Some(Element::F32),
            Encoding::Bf16 => Some(Element::Bf16),
            Encoding::F16 => Some(Element::F16),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }

    /// Its number in kernel parameters.
    pub(crate) fn code(self) -> u32 {
        match self {
            Element::F32 => 0,
            Element::Bf16 => 1,
            Element::F16 => 2,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
        })
    }
}

/// The epilogue over the sums of a product. See kernels/params.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    Write,
    Add,
    Silu,
    Heads,
}

impl fmt::Display for Epilogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Epilogue::Write => "write",
            Epilogue::Add => "add",
            Epilogue::Silu => "silu",
            Epilogue::Heads => "heads",
        })
    }
}

/// A kernel over a format of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlockKernel {
    /// Rows of a table.
    Embed,
    /// A product of this many tokens at once, in f32 arithmetic.
    Matvec(u32),
    /// A product of this many tokens at once, rounded to bytes.
    Dot(u32),
    /// A product of up to eight times this many tokens by tensor cores.
    Skinny(u32),
    /// A product of a prompt by tensor cores.
    Tile,
}

impl BlockKernel {
    #[cfg(test)]
    const ALL: [Self; 8] = [
        BlockKernel::Embed,
        BlockKernel::Matvec(1),
        BlockKernel::Matvec(4),
        BlockKernel::Dot(1),
        BlockKernel::Dot(4),
        BlockKernel::Skinny(2),
        BlockKernel::Skinny(8),
        BlockKernel::Tile,
    ];

    fn threads(self) -> usize {
        match self {
            BlockKernel::Embed => COPY_THREADS,
            BlockKernel::Matvec(_) | BlockKernel::Dot(_) => MATVEC_THREADS,
            BlockKernel::Skinny(_) => SKINNY_THREADS,
            BlockKernel::Tile => BLOCK_MMA_THREADS,
        }
    }
}

impl fmt::Display for BlockKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockKernel::Embed => f.write_str("embed"),
            BlockKernel::Matvec(tokens) => write!(f, "matvec_t{tokens}"),
            BlockKernel::Dot(tokens) => write!(f, "dot_t{tokens}"),
            BlockKernel::Skinny(eights) => write!(f, "mma_n{eights}"),
            BlockKernel::Tile => f.write_str("mma_tile"),
        }
    }
}

/// A kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Embed,
    /// A product of this many tokens at once, in f32 arithmetic.
    Matvec(Element, u32, Epilogue),
    /// A product in tiles, in f32 arithmetic.
    Tile(Element, Epilogue),
    /// Activations scaled and rounded to this type, for tensor cores.
    ScaleAndRound(Element),
    /// Activations rounded to signed bytes, for blocks.
    RoundToBytes,
    /// A product of up to eight times this many tokens by tensor cores.
    Skinny(Element, u32, Epilogue),
    /// A product of a prompt by tensor cores.
    Matmul(Element, Epilogue),
    /// The same in tiles of twice as many rows.
    MatmulWide(Element, Epilogue),
    RmsNorm,
    /// A norm whose rows are rounded to signed bytes.
    RmsNormToBytes,
    Rope,
    StoreKv,
    /// Attention over keys and values of these types, for heads up to this width.
    Attention(Element, Element, u32),
    /// Attention over keys and values of any type, for heads up to this width.
    AttentionAny(u32),
    AttentionMerge,
    /// Attention of a prompt by tensor cores, over keys of this type, for heads of this width.
    AttentionTile(Element, u32),
    SiluAndMul,
    Add,
    AddRows,
    GatherRows,
    Argmax,
    CopyBlocks,
    /// A kernel over the format of blocks with this name.
    Blocks(&'static str, BlockKernel),
    CeilingRead,
    CeilingCopy,
    CeilingFmaF32,
    CeilingMmaBf16,
}

impl Kernel {
    /// Threads of a block.
    pub(crate) fn threads(self) -> usize {
        match self {
            Kernel::Embed | Kernel::Rope | Kernel::StoreKv | Kernel::CopyBlocks => COPY_THREADS,
            Kernel::Matvec(..) => MATVEC_THREADS,
            Kernel::Blocks(_, kernel) => kernel.threads(),
            Kernel::RoundToBytes => ROUND_TO_BYTES_THREADS,
            Kernel::Tile(..) => TILE_THREADS,
            Kernel::ScaleAndRound(_) => SCALE_AND_ROUND_THREADS,
            Kernel::Skinny(..) => SKINNY_THREADS,
            Kernel::Matmul(..) => MATMUL_THREADS,
            Kernel::MatmulWide(..) => MATMUL_WIDE_THREADS,
            Kernel::RmsNorm | Kernel::RmsNormToBytes => NORM_THREADS,
            Kernel::Attention(..) | Kernel::AttentionAny(_) => ATTENTION_THREADS,
            Kernel::AttentionMerge => MERGE_THREADS,
            Kernel::AttentionTile(..) => ATTENTION_TILE_THREADS,
            Kernel::SiluAndMul | Kernel::Add | Kernel::AddRows | Kernel::GatherRows => ELEMENT_THREADS,
            Kernel::Argmax => ARGMAX_THREADS,
            Kernel::CeilingRead | Kernel::CeilingCopy | Kernel::CeilingFmaF32 | Kernel::CeilingMmaBf16 => {
                CEILING_THREADS
            }
        }
    }

    /// Bytes of dynamic shared memory of a block.
    pub(crate) fn shared_bytes(self) -> usize {
        match self {
            Kernel::Matmul(..) => MATMUL_SHARED,
            Kernel::MatmulWide(..) => MATMUL_WIDE_SHARED,
            Kernel::Blocks(_, BlockKernel::Tile) => BLOCK_MMA_SHARED,
            // Two tiles of keys and of values, which are f16.
            Kernel::AttentionTile(keys, width) => {
                let position = (keys.bytes() + Element::F16.bytes()) * width as usize;
                (2 * ATTENTION_TILE * position).min(ATTENTION_TILE_SHARED)
            }
            _ => 0,
        }
    }

    /// Whether it needs compute capability 8.0: bf16 tensor cores and asynchronous copies.
    pub(crate) fn needs_tensor_cores(self) -> bool {
        matches!(
            self,
            Kernel::Skinny(..)
                | Kernel::Matmul(..)
                | Kernel::MatmulWide(..)
                | Kernel::AttentionTile(..)
                | Kernel::Blocks(_, BlockKernel::Skinny(_) | BlockKernel::Tile)
                | Kernel::CeilingMmaBf16
        )
    }

    /// The fields of its parameters.
    pub(crate) fn fields(self) -> &'static [Field] {
        match self {
            Kernel::Embed | Kernel::Blocks(_, BlockKernel::Embed) => params::Embed::FIELDS,
            Kernel::Blocks(..) => params::Product::FIELDS,
            Kernel::Matvec(..) | Kernel::Tile(..) | Kernel::Skinny(..) => params::Product::FIELDS,
            Kernel::Matmul(..) | Kernel::MatmulWide(..) => params::Product::FIELDS,
            Kernel::ScaleAndRound(_) => params::ScaleAndRound::FIELDS,
            Kernel::RoundToBytes => params::RoundToBytes::FIELDS,
            Kernel::RmsNorm | Kernel::RmsNormToBytes => params::RmsNorm::FIELDS,
            Kernel::Rope | Kernel::StoreKv => params::Heads::FIELDS,
            Kernel::Attention(..) | Kernel::AttentionAny(_) => params::Attention::FIELDS,
            Kernel::AttentionMerge | Kernel::AttentionTile(..) => params::Attention::FIELDS,
            Kernel::SiluAndMul | Kernel::Add | Kernel::GatherRows => params::Rows::FIELDS,
            Kernel::AddRows => params::AddRows::FIELDS,
            Kernel::Argmax => params::Argmax::FIELDS,
            Kernel::CopyBlocks => params::CopyBlocks::FIELDS,
            Kernel::CeilingRead | Kernel::CeilingCopy | Kernel::CeilingFmaF32 | Kernel::CeilingMmaBf16 => {
                params::Ceiling::FIELDS
            }
        }
    }

    /// Every kernel.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Kernel> {
        use Element::{Bf16, F16, F32};
        let epilogues = [Epilogue::Write, Epilogue::Add, Epilogue::Silu, Epilogue::Heads];
        let mut all = vec![
            Kernel::Embed,
            Kernel::RmsNorm,
            Kernel::RmsNormToBytes,
            Kernel::Rope,
            Kernel::StoreKv,
            Kernel::AttentionMerge,
            Kernel::SiluAndMul,
            Kernel::Add,
            Kernel::AddRows,
            Kernel::GatherRows,
            Kernel::Argmax,
            Kernel::CopyBlocks,
            Kernel::RoundToBytes,
            Kernel::CeilingRead,
            Kernel::CeilingCopy,
            Kernel::CeilingFmaF32,
            Kernel::CeilingMmaBf16,
        ];
        for epilogue in epilogues {
            for element in [F32, Bf16, F16] {
                all.extend([1, 2, 4, 8].map(|tokens| Kernel::Matvec(element, tokens, epilogue)));
                all.push(Kernel::Tile(element, epilogue));
            }
            for element in [Bf16, F16] {
                all.extend([1, 2, 4, 8].map(|eights| Kernel::Skinny(element, eights, epilogue)));
                all.extend([Kernel::Matmul(element, epilogue), Kernel::MatmulWide(element, epilogue)]);
            }
        }
        for encoding in qwen_core::backend::planes::encodings() {
            let name = qwen_core::backend::planes::PlaneFormat::of(encoding).map_or("", |format| format.name());
            all.extend(BlockKernel::ALL.map(|kernel| Kernel::Blocks(name, kernel)));
        }
        all.extend([Bf16, F16].map(Kernel::ScaleAndRound));
        for keys in [F32, F16] {
            all.extend([64, 128].map(|width| Kernel::AttentionTile(keys, width)));
        }
        all.extend([64, 128, 256].map(Kernel::AttentionAny));
        // Keys have values' type or f32.
        for (keys, values) in [(F32, F32), (F32, F16), (F16, F16)] {
            all.extend([32, 64, 128, 256].map(|width| Kernel::Attention(keys, values, width)));
        }
        all
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Embed => f.write_str("embed"),
            Kernel::Matvec(w, tokens, epilogue) => write!(f, "matvec_{w}_t{tokens}_{epilogue}"),
            Kernel::Tile(w, epilogue) => write!(f, "tile_{w}_{epilogue}"),
            Kernel::ScaleAndRound(to) => write!(f, "scale_and_round_{to}"),
            Kernel::RoundToBytes => f.write_str("round_to_bytes"),
            Kernel::Skinny(w, eights, epilogue) => write!(f, "skinny_{w}_n{eights}_{epilogue}"),
            Kernel::Matmul(w, epilogue) => write!(f, "matmul_{w}_{epilogue}"),
            Kernel::MatmulWide(w, epilogue) => write!(f, "matmul_wide_{w}_{epilogue}"),
            Kernel::RmsNorm => f.write_str("rms_norm"),
            Kernel::RmsNormToBytes => f.write_str("rms_norm_to_bytes"),
            Kernel::Rope => f.write_str("rope"),
            Kernel::StoreKv => f.write_str("store_kv"),
            Kernel::Attention(keys, values, width) => write!(f, "attention_k{keys}_v{values}_d{width}"),
            Kernel::AttentionAny(width) => write!(f, "attention_any_d{width}"),
            Kernel::AttentionMerge => f.write_str("attention_merge"),
            Kernel::AttentionTile(keys, width) => write!(f, "attention_tile_k{keys}_d{width}"),
            Kernel::SiluAndMul => f.write_str("silu_and_mul"),
            Kernel::Add => f.write_str("add"),
            Kernel::AddRows => f.write_str("add_rows"),
            Kernel::GatherRows => f.write_str("gather_rows"),
            Kernel::Argmax => f.write_str("argmax"),
            Kernel::CopyBlocks => f.write_str("copy_blocks"),
            Kernel::Blocks(format, kernel) => write!(f, "{format}_{kernel}"),
            Kernel::CeilingRead => f.write_str("ceiling_read"),
            Kernel::CeilingCopy => f.write_str("ceiling_copy"),
            Kernel::CeilingFmaF32 => f.write_str("ceiling_fma_f32"),
            Kernel::CeilingMmaBf16 => f.write_str("ceiling_mma_bf16"),
        }
    }
}
