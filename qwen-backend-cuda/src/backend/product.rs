//! Matrix products: which kernel multiplies how many tokens, and what becomes of the sums.
//!
//! A few tokens are bound by the reading of the matrix: f32 arithmetic does, and so does that of Exact for any number
//! of them, whose sums have one order. Up to 64 tokens the matrix is read once for all of them by tensor cores; beyond,
//! tiles of it are shared in a block's memory.

use qwen_core::backend::{HeadLayout, StepInputs};
use qwen_core::{Precision, Result};

use super::{CudaBackend, Numbers};
use crate::driver::Array;
use crate::geometry::*;
use crate::gpu::Args;
use crate::kernel::{Element, Ending, Kernel};
use crate::kv::Store;
use crate::params::{Address, Halve, Product};
use crate::weight::Matrix;

/// Tokens up to which Fast multiplies in f32 arithmetic: with tensor cores, and without.
const FEW: usize = 4;
const FEW_WITHOUT: usize = 8;
/// Tokens up to which tensor cores read the matrix once for all.
const SKINNY: usize = 64;

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
        inputs: &'a StepInputs<CudaBackend>,
        heads: HeadLayout,
        store: &'a Store,
        layer: usize,
    },
}

impl Epilogue<'_> {
    fn ending(&self) -> Ending {
        match self {
            Epilogue::Write { .. } => Ending::Write,
            Epilogue::Add { .. } => Ending::Add,
            Epilogue::Silu { .. } => Ending::Silu,
            Epilogue::Heads { .. } => Ending::Heads,
        }
    }
}

impl CudaBackend {
    /// Whether prompts are multiplied with `w` by tensor cores.
    pub(super) fn by_tensor_cores(&self, w: &Matrix) -> bool {
        self.precision == Precision::Fast && self.card().has_tensor_cores() && w.layout.element != Element::F32
    }

    /// The kernel that multiplies so many tokens, and its grid for so many pairs of rows.
    fn choose(&self, w: &Matrix, tokens: usize, pairs: usize, ending: Ending) -> (Kernel, [usize; 3]) {
        let element = w.layout.element;
        let tensor_cores = self.by_tensor_cores(w);
        let few = match (self.precision, tensor_cores) {
            (Precision::Exact, _) => usize::MAX,
            (Precision::Fast, true) => FEW,
            (Precision::Fast, false) => FEW_WITHOUT,
        };
        // The least of 1, 2, 4 and 8 that takes all at once, or 8.
        let at_once = |count: usize| count.clamp(1, 8).next_power_of_two();
        if tokens <= few {
            let at_once = at_once(tokens);
            let pairs_at_once = if at_once <= 2 { MATVEC_PAIRS } else { MATVEC_PAIRS_WIDE };
            let grid = [pairs.div_ceil(pairs_at_once), tokens.div_ceil(at_once), 1];
            (Kernel::Matvec(element, at_once as u32, ending), grid)
        } else if !tensor_cores {
            (Kernel::Tile(element, ending), [pairs.div_ceil(TILE_PAIRS), tokens.div_ceil(TILE_TOKENS), 1])
        } else if tokens <= SKINNY {
            let eights = at_once(tokens.div_ceil(8));
            let pairs_at_once = match (eights, ending) {
                (1 | 2, _) => SKINNY_PAIRS,
                (_, Ending::Add | Ending::Heads) => SKINNY_PAIRS_WIDE,
                (4, Ending::Write | Ending::Silu) => SKINNY_PAIRS_MANY_ROWS_4,
                (_, Ending::Write | Ending::Silu) => SKINNY_PAIRS_MANY_ROWS_8,
            };
            (Kernel::Skinny(element, eights as u32, ending), [pairs.div_ceil(pairs_at_once), 1, 1])
        } else {
            let grid = |pairs_at_once| [tokens.div_ceil(MATMUL_TOKENS), pairs.div_ceil(pairs_at_once), 1];
            let wide = grid(MATMUL_WIDE_PAIRS);
            // A wide tile has a multiprocessor for itself.
            match wide[0] * wide[1] >= self.card().multiprocessors as usize {
                true => (Kernel::MatmulWide(element, ending), wide),
                false => (Kernel::Matmul(element, ending), grid(MATMUL_PAIRS)),
            }
        }
    }

    /// Queue `w x` with what `epilogue` makes of the sums.
    pub(super) fn product(
        &mut self,
        op: &'static str,
        x: &Numbers,
        w: &Matrix,
        tokens: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let layout = w.layout;
        let pairs = layout.rows.div_ceil(2);
        let (kernel, grid) = self.choose(w, tokens, pairs, epilogue.ending());
        let halves = match kernel.needs_tensor_cores() && !grid.contains(&0) {
            true => Some(self.halve(op, x, &layout, tokens)?),
            false => None,
        };
        let mut args = Args::new(&self.gpu, op);
        let mut params = Product {
            x: args.take("x", &x.array, 4 * tokens * layout.cols)?,
            w: args.take("w", &w.array, layout.bytes())?,
            tokens: self.number(op, tokens)?,
            rows: self.number(op, layout.rows)?,
            cols: self.number(op, layout.cols)?,
            stride: self.number(op, layout.stride)?,
            ..Product::default()
        };
        if let Some((halves, scales)) = &halves {
            params.halves = args.take("halves", halves, 2 * tokens * layout.stride)?;
            if layout.element == Element::F16 {
                params.scales = args.take("scales", scales, 4 * tokens)?;
            }
        }
        let full = 4 * tokens * layout.rows;
        match epilogue {
            Epilogue::Write { out, bias } => {
                params.out = args.take("out", &out.array, full)?;
                params.bias = match bias {
                    Some(bias) => args.take("bias", &bias.array, 4 * layout.rows)?,
                    None => Address::NULL,
                };
            }
            Epilogue::Add { residual } => params.out = args.take("residual", &residual.array, full)?,
            Epilogue::Silu { out } => params.out = args.take("out", &out.array, full / 2)?,
            Epilogue::Heads { qkv, bias, inputs, heads, store, layer } => {
                let held = &store.layers[*layer];
                params.out = args.take("qkv", &qkv.array, full)?;
                params.bias = args.take("bias", &bias.array, 4 * layout.rows)?;
                params.cos_sin = args.take("cos_sin", &inputs.cos_sin.0.array, 4 * tokens * heads.head_dim)?;
                params.slot_mapping = args.take("slot_mapping", &inputs.slot_mapping.0.array, 4 * tokens)?;
                params.keys = args.take("keys", &held.keys, held.key_element.bytes(store.layer_values()))?;
                params.values = args.take("values", &held.values, held.value_element.bytes(store.layer_values()))?;
                params.num_attention_heads = self.number(op, heads.num_attention_heads)?;
                params.num_key_value_heads = self.number(op, heads.num_key_value_heads)?;
                params.head_dim = self.number(op, heads.head_dim)?;
                params.num_slots = self.number(op, store.num_slots())?;
                (params.key_encoding, params.value_encoding) = (held.key_element.code(), held.value_element.code());
            }
        }
        let work = args.launch(kernel, grid, &params)?;
        self.queue(work)
    }

    /// Queue the rounding of `x` for a product with a matrix of this layout.
    fn halve(
        &mut self,
        op: &'static str,
        x: &Numbers,
        layout: &crate::weight::Layout,
        tokens: usize,
    ) -> Result<(Array, Array)> {
        // Made once, for the longest row and as many tokens as there ever are in a step: recorded steps would keep
        // smaller ones alive beside them.
        let most_tokens = (x.len / layout.cols.max(1)).max(tokens);
        let most_bytes = 2 * most_tokens * self.widest_stride.max(layout.stride);
        if self.halves.as_ref().is_none_or(|halves| halves.bytes < 2 * tokens * layout.stride) {
            self.halves = Some(self.gpu.array("halves of activations", most_bytes)?);
        }
        if self.scales.as_ref().is_none_or(|scales| scales.bytes < 4 * tokens) {
            self.scales = Some(self.gpu.array("scales of activations", 4 * most_tokens)?);
        }
        let (Some(halves), Some(scales)) = (self.halves.clone(), self.scales.clone()) else {
            return Err(self.misfit(op, "no memory for halves".into()));
        };
        let mut args = Args::new(&self.gpu, op);
        let params = Halve {
            x: args.take("x", &x.array, 4 * tokens * layout.cols)?,
            halves: args.take("halves", &halves, 2 * tokens * layout.stride)?,
            scales: args.take("scales", &scales, 4 * tokens)?,
            tokens: self.number(op, tokens)?,
            cols: self.number(op, layout.cols)?,
            stride: self.number(op, layout.stride)?,
            unused: 0,
        };
        let work = args.launch(Kernel::Halve(layout.element), [tokens, 1, 1], &params)?;
        self.queue(work)?;
        Ok((halves, scales))
    }
}
