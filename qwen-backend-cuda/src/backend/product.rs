//! One matrix product: the choice of the kernel for a number of tokens, and its launch with an epilogue over the sums.
//!
//! Products of a few tokens are bound by reading the matrix, for which f32 arithmetic is fast enough; Exact uses it for
//! any number of tokens, with a fixed order of each sum. Up to 64 tokens, tensor cores read the matrix once for all of
//! them; beyond that, blocks share tiles of the matrix in shared memory.
//!
//! Blocks are fewer bytes and more instructions: in Fast a few tokens are rounded to bytes and multiplied with codes.
//! With more, or prompts, blocks are decoded in registers for tensor cores.

use qwen_core::backend::{HeadLayout, StepInputs};
use qwen_core::{Precision, Result};

use super::CudaBackend;
use super::operands::Words;
use crate::driver::Array;
use crate::geometry::*;
use crate::kernel::{BlockKernel, Element, Epilogue, Kernel};
use crate::kv::Store;
use crate::launch::Args;
use crate::params::Product;
use crate::weight::{BlockFormat, Format, Matrix, Segment, StoredSegment};
use crate::workspace::byte_row;

/// Up to this many tokens Fast uses the matrix-vector kernels: on GPUs with tensor cores, and without.
const FEW: usize = 4;
const FEW_WITHOUT: usize = 8;
/// Up to this many tokens tensor cores read the matrix once for all.
const SKINNY: usize = 64;

/// What a product does with its sums, and where it writes them.
pub(super) enum EpilogueArgs<'a> {
    Write {
        out: &'a Words,
        bias: Option<&'a Words>,
    },
    Add {
        residual: &'a Words,
    },
    Silu {
        out: &'a Words,
    },
    /// Sums with gate, or with up, while `out` has those with the other. Only for blocks.
    Gated {
        out: &'a Words,
        gate: bool,
    },
    Heads {
        qkv: &'a Words,
        bias: &'a Words,
        inputs: &'a StepInputs<CudaBackend>,
        heads: HeadLayout,
        store: &'a Store,
        layer: usize,
    },
}

impl EpilogueArgs<'_> {
    /// The epilogue of a kernel over 16- or 32-bit values, if it has this one.
    fn of_values(&self) -> Option<Epilogue> {
        match self {
            EpilogueArgs::Write { .. } => Some(Epilogue::Write),
            EpilogueArgs::Add { .. } => Some(Epilogue::Add),
            EpilogueArgs::Silu { .. } => Some(Epilogue::Silu),
            EpilogueArgs::Heads { .. } => Some(Epilogue::Heads),
            EpilogueArgs::Gated { .. } => None,
        }
    }

    /// Its number in the parameters of kernels over blocks.
    fn of_blocks(&self) -> u32 {
        let number = match self {
            EpilogueArgs::Write { .. } => EPILOGUE_WRITE,
            EpilogueArgs::Add { .. } => EPILOGUE_ADD,
            EpilogueArgs::Silu { .. } => EPILOGUE_SILU,
            EpilogueArgs::Heads { .. } => EPILOGUE_HEADS,
            EpilogueArgs::Gated { gate: true, .. } => EPILOGUE_GATE,
            EpilogueArgs::Gated { gate: false, .. } => EPILOGUE_UP,
        };
        number as u32
    }
}

/// The rows of a matrix that one product multiplies.
pub(super) struct Part<'a> {
    pub(super) segment: &'a Segment,
    pub(super) stored: &'a StoredSegment,
    pub(super) cols: usize,
    /// The first row, and the number of all, in the output.
    pub(super) first_row: usize,
    pub(super) out_rows: usize,
}

/// The activations of one or several products.
pub(super) struct Activations<'a> {
    /// In f32, unless they exist only rounded.
    values: Option<&'a Words>,
    /// As they were rounded last, and for which order of columns (the address of its array): the next product may take
    /// the same.
    rounded: Option<(Rounded, Option<u64>)>,
}

impl<'a> Activations<'a> {
    pub(super) fn new(values: &'a Words) -> Self {
        Activations { values: Some(values), rounded: None }
    }

    /// Activations that exist only rounded to bytes, in the order of their columns.
    pub(super) fn in_bytes(bytes: Array) -> Self {
        Activations { values: None, rounded: Some((Rounded::Bytes(bytes), None)) }
    }
}

/// Rounded activations.
enum Rounded {
    /// To 16 bits of a type, with the scales of rows.
    Halves {
        rows: Array,
        scales: Array,
        element: Element,
        stride: usize,
    },
    Bytes(Array),
}

/// What a kernel takes activations rounded to.
fn rounds_to(kernel: Kernel, format: Format) -> Option<RoundsTo> {
    match (kernel, format) {
        (Kernel::Blocks(_, BlockKernel::Dot(_)), _) => Some(RoundsTo::Bytes),
        (_, Format::Blocks(_)) if kernel.needs_tensor_cores() => Some(RoundsTo::Halves(Element::Bf16)),
        (_, Format::Values(element)) if kernel.needs_tensor_cores() => Some(RoundsTo::Halves(element)),
        _ => None,
    }
}

#[derive(PartialEq, Eq)]
enum RoundsTo {
    Bytes,
    Halves(Element),
}

impl Rounded {
    fn to(&self) -> RoundsTo {
        match self {
            Rounded::Halves { element, .. } => RoundsTo::Halves(*element),
            Rounded::Bytes(_) => RoundsTo::Bytes,
        }
    }
}

/// A kernel with its grid.
type Chosen = (Kernel, [usize; 3]);

impl CudaBackend {
    /// Queue `w x` with an epilogue.
    pub(super) fn product(
        &mut self,
        op: &'static str,
        x: &mut Activations<'_>,
        w: &Part<'_>,
        tokens: usize,
        epilogue: &EpilogueArgs<'_>,
    ) -> Result<()> {
        let Part { segment, stored, cols, first_row, out_rows } = *w;
        let rows = segment.rows.len();
        let (kernel, grid) = match (segment.format, epilogue.of_values()) {
            (Format::Values(element), Some(epilogue)) => self.of_values(element, tokens, rows.div_ceil(2), epilogue),
            (Format::Values(element), None) => {
                return Err(self.mismatch(op, format!("no kernel multiplies {element} with this epilogue")));
            }
            (Format::Blocks(blocks), _) => self.of_blocks(blocks, tokens, rows.div_ceil(2)),
        };
        if !grid.contains(&0) {
            self.round(op, x, segment.format, kernel, [tokens, cols], stored.column_order.as_ref())?;
        }
        let mut args = Args::new(&self.gpu, op);
        let mut params = Product {
            x: args.take_if("x", x.values.map(|x| &x.array), &[4, tokens, cols])?,
            w: args.take("w", &stored.array, &[segment.bytes])?,
            tokens: args.size(tokens)?,
            rows: args.size(rows)?,
            cols: args.size(cols)?,
            first_row: args.size(first_row)?,
            out_rows: args.size(out_rows)?,
            ..Product::default()
        };
        match segment.format {
            Format::Values(element) => params.stride = args.size(segment.stride(element))?,
            Format::Blocks(blocks) => {
                params.stride = args.size(segment.row_bytes)?;
                params.group_units = args.size(blocks.group_units())?;
                params.epilogue = epilogue.of_blocks();
                params.column_order = args.take_if("column_order", stored.column_order.as_ref(), &[4, cols])?;
            }
        }
        match x.rounded.as_ref().filter(|_| !grid.contains(&0)).map(|(rounded, _)| rounded) {
            Some(Rounded::Halves { rows: halves, scales, element, stride }) => {
                // Kernels count the 16-byte chunks of both operands in 32 bits.
                args.size((stride / WEIGHT_ALIGN).saturating_mul(tokens.max(rows)))?;
                params.rounded = args.take("rounded", halves, &[2, tokens, *stride])?;
                if *element == Element::F16 {
                    params.scales = args.take("scales", scales, &[4, tokens])?;
                }
            }
            Some(Rounded::Bytes(bytes)) => {
                params.rounded = args.take("rounded", bytes, &[tokens, byte_row(cols)])?;
            }
            None => {}
        }
        let full = [4, tokens, out_rows];
        match epilogue {
            EpilogueArgs::Write { out, bias } => {
                params.out = args.take("out", &out.array, &full)?;
                if let Some(bias) = bias {
                    params.bias = args.take("bias", &bias.array, &[4, out_rows])?;
                }
            }
            EpilogueArgs::Add { residual } => params.out = args.take("residual", &residual.array, &full)?,
            EpilogueArgs::Silu { out } => params.out = args.take("out", &out.array, &[4, tokens, rows / 2])?,
            EpilogueArgs::Gated { out, .. } => params.out = args.take("out", &out.array, &full)?,
            EpilogueArgs::Heads { qkv, bias, inputs, heads, store, layer } => {
                let held = &store.layers[*layer];
                params.out = args.take("qkv", &qkv.array, &full)?;
                params.bias = args.take("bias", &bias.array, &[4, out_rows])?;
                params.cos_sin = args.take("cos_sin", &inputs.cos_sin.0.array, &[4, tokens, heads.head_dim])?;
                params.slot_mapping = args.take("slot_mapping", &inputs.slot_mapping.0.array, &[4, tokens])?;
                params.keys = args.take("keys", &held.keys, &store.array_bytes(held.key_type))?;
                params.values = args.take("values", &held.values, &store.array_bytes(held.value_type))?;
                params.num_attention_heads = args.size(heads.num_attention_heads)?;
                params.num_key_value_heads = args.size(heads.num_key_value_heads)?;
                params.head_dim = args.size(heads.head_dim)?;
                params.num_slots = store.num_slots();
                (params.key_encoding, params.value_encoding) = (held.key_type.code(), held.value_type.code());
            }
        }
        let command = args.launch(kernel, grid, &params)?;
        self.queue(command)
    }

    /// Round activations to what `kernel` takes, unless they are already.
    fn round(
        &mut self,
        op: &'static str,
        x: &mut Activations<'_>,
        format: Format,
        kernel: Kernel,
        [tokens, cols]: [usize; 2],
        order: Option<&Array>,
    ) -> Result<()> {
        let (Some(to), address) = (rounds_to(kernel, format), order.map(|order| order.address)) else {
            x.rounded = None;
            return Ok(());
        };
        if x.rounded.as_ref().is_some_and(|(rounded, order)| rounded.to() == to && *order == address) {
            return Ok(());
        }
        let Some(values) = x.values else {
            return Err(self.mismatch(op, "activations in bytes for another kernel"));
        };
        let rounded = match to {
            RoundsTo::Bytes => Rounded::Bytes(self.round_to_bytes(op, values, [tokens, cols], order)?),
            RoundsTo::Halves(element) => {
                let stride = cols.next_multiple_of(WEIGHT_ALIGN);
                let (rows, scales) = self.scale_and_round(op, values, element, [tokens, cols, stride], order)?;
                Rounded::Halves { rows, scales, element, stride }
            }
        };
        x.rounded = Some((rounded, address));
        Ok(())
    }

    /// Whether the products of `w` with `tokens` rows take them in bytes, in the order of their columns.
    pub(super) fn takes_bytes(&self, w: &Matrix, tokens: usize) -> bool {
        w.segments().all(|(segment, stored)| match segment.format {
            Format::Values(_) => false,
            Format::Blocks(blocks) => {
                let (kernel, _) = self.of_blocks(blocks, tokens, segment.rows.len().div_ceil(2));
                stored.column_order.is_none() && rounds_to(kernel, segment.format) == Some(RoundsTo::Bytes)
            }
        })
    }

    /// The kernel for `tokens` tokens and `pairs` pairs of rows in blocks.
    fn of_blocks(&self, blocks: BlockFormat, tokens: usize, pairs: usize) -> Chosen {
        let fast = self.precision == Precision::Fast;
        let tensor_cores = fast && self.properties().has_tensor_cores() && tokens > FEW;
        let at_once = if tokens <= 1 { 1 } else { 4 };
        let strips = |pairs_at_once| [tokens.div_ceil(at_once), pairs.div_ceil(pairs_at_once), 1];
        let tiles = [tokens.div_ceil(BLOCK_MMA_TOKENS), pairs.div_ceil(BLOCK_MMA_PAIRS), 1];
        // A tile occupies a whole multiprocessor; with too few of them, blocks divide the columns instead.
        let tiles_are_many = tiles[0].saturating_mul(tiles[1]) >= self.properties().multiprocessors as usize;
        let (kernel, grid) = match (fast, tensor_cores) {
            (false, _) => (BlockKernel::Matvec(at_once as u32), strips(BLOCK_MATVEC_PAIRS)),
            (true, false) => (BlockKernel::Dot(at_once as u32), strips(BLOCK_DOT_PAIRS)),
            _ if tokens <= 16 => (BlockKernel::Skinny(2), [pairs.div_ceil(BLOCK_SKINNY_PAIRS), 1, 1]),
            _ if tokens <= SKINNY && !tiles_are_many => {
                (BlockKernel::Skinny(8), [pairs.div_ceil(BLOCK_SKINNY_PAIRS), 1, 1])
            }
            _ => (BlockKernel::Tile, tiles),
        };
        (Kernel::Blocks(blocks.name, kernel), grid)
    }

    /// The kernel for `tokens` tokens and `pairs` pairs of rows of 16- or 32-bit values.
    fn of_values(&self, element: Element, tokens: usize, pairs: usize, epilogue: Epilogue) -> Chosen {
        let tensor_cores =
            self.precision == Precision::Fast && self.properties().has_tensor_cores() && element != Element::F32;
        let few = match (self.precision, tensor_cores) {
            (Precision::Exact, _) => usize::MAX,
            (Precision::Fast, true) => FEW,
            (Precision::Fast, false) => FEW_WITHOUT,
        };
        // The smallest of 1, 2, 4, 8 that covers `count`, at most 8.
        let at_once = |count: usize| count.clamp(1, 8).next_power_of_two();
        if tokens <= few {
            let at_once = at_once(tokens);
            let pairs_at_once = if at_once <= 2 { MATVEC_PAIRS } else { MATVEC_PAIRS_WIDE };
            let grid = [pairs.div_ceil(pairs_at_once), tokens.div_ceil(at_once), 1];
            (Kernel::Matvec(element, at_once as u32, epilogue), grid)
        } else if !tensor_cores {
            (Kernel::Tile(element, epilogue), [pairs.div_ceil(TILE_PAIRS), tokens.div_ceil(TILE_TOKENS), 1])
        } else if tokens <= SKINNY {
            let eights = at_once(tokens.div_ceil(8));
            let pairs_at_once = match (eights, epilogue) {
                (1 | 2, _) => SKINNY_PAIRS,
                (_, Epilogue::Add | Epilogue::Heads) => SKINNY_PAIRS_WIDE,
                (4, Epilogue::Write | Epilogue::Silu) => SKINNY_PAIRS_MANY_ROWS_4,
                (_, Epilogue::Write | Epilogue::Silu) => SKINNY_PAIRS_MANY_ROWS_8,
            };
            (Kernel::Skinny(element, eights as u32, epilogue), [pairs.div_ceil(pairs_at_once), 1, 1])
        } else {
            let grid = |pairs_at_once| [tokens.div_ceil(MATMUL_TOKENS), pairs.div_ceil(pairs_at_once), 1];
            let wide = grid(MATMUL_WIDE_PAIRS);
            // A wide tile occupies a whole multiprocessor.
            match wide[0].saturating_mul(wide[1]) >= self.properties().multiprocessors as usize {
                true => (Kernel::MatmulWide(element, epilogue), wide),
                false => (Kernel::Matmul(element, epilogue), grid(MATMUL_PAIRS)),
            }
        }
    }
}
