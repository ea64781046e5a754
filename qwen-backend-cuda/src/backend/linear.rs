//! Matrix products: `linear` and the fused operations around one. Selects the kernel for a number of tokens, and the
//! epilogue over the sums.
//!
//! Products of a few tokens are bound by reading the matrix, for which f32 arithmetic is fast enough; Exact uses it for
//! any number of tokens, with a fixed order of each sum. Up to 64 tokens, tensor cores read the matrix once for all of
//! them; beyond that, blocks share tiles of the matrix in shared memory.

use qwen_core::backend::{GateUpSilu, HeadLayout, Linear, LinearAdd, QkvRopeStore, StepInputs, composed};
use qwen_core::{Precision, Result};

use super::CudaBackend;
use super::operands::Words;
use crate::geometry::*;
use crate::kernel::{Element, Epilogue, Kernel};
use crate::kv::Store;
use crate::launch::Args;
use crate::params::Product;
use crate::weight::Matrix;

/// Up to this many tokens Fast uses the matrix-vector kernels: on GPUs with tensor cores, and without.
const FEW: usize = 4;
const FEW_WITHOUT: usize = 8;
/// Up to this many tokens tensor cores read the matrix once for all.
const SKINNY: usize = 64;

/// An [`Epilogue`] with its operands.
enum EpilogueArgs<'a> {
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
    fn epilogue(&self) -> Epilogue {
        match self {
            EpilogueArgs::Write { .. } => Epilogue::Write,
            EpilogueArgs::Add { .. } => Epilogue::Add,
            EpilogueArgs::Silu { .. } => Epilogue::Silu,
            EpilogueArgs::Heads { .. } => Epilogue::Heads,
        }
    }
}

impl CudaBackend {
    pub(super) fn queue_linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows, .. } = op;
        let epilogue = EpilogueArgs::Write { out: &out.0, bias: bias.map(|bias| &bias.0) };
        self.product("linear", &x.0, &w.0, rows, &epilogue)
    }

    pub(super) fn queue_linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let (name, width) = ("linear_add", w.0.layout.rows);
        if width != hidden_size {
            return Err(self.mismatch(name, format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        self.product(name, &x.0, &w.0, rows, &EpilogueArgs::Add { residual: &residual.0 })
    }

    pub(super) fn queue_gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        let GateUpSilu { norm, x, w, out, intermediate_size, rows, .. } = op;
        let (name, held) = ("gate_up_silu", w.0.layout.rows);
        if intermediate_size.checked_mul(2) != Some(held) {
            return Err(self.mismatch(name, format!("{held} rows of weights for a width of {intermediate_size}")));
        }
        let x = composed::normed(self, norm, x, rows)?;
        self.product(name, &x.0, &w.0, rows, &EpilogueArgs::Silu { out: &out.0 })
    }

    pub(super) fn queue_qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows, .. } = op;
        let name = "qkv_rope_store";
        self.check_store(name, &kv.0, layer, &heads)?;
        if w.0.layout.rows != heads.qkv_size() {
            return Err(self.mismatch(name, format!("{} rows of weights for {heads:?}", w.0.layout.rows)));
        }
        let x = composed::normed(self, norm, x, rows)?;
        let epilogue = EpilogueArgs::Heads { qkv: &qkv.0, bias: &bias.0, inputs, heads, store: &kv.0, layer };
        self.product(name, &x.0, &w.0, rows, &epilogue)
    }

    /// Queue `w x` with an epilogue.
    fn product(
        &mut self,
        op: &'static str,
        x: &Words,
        w: &Matrix,
        tokens: usize,
        epilogue: &EpilogueArgs<'_>,
    ) -> Result<()> {
        let layout = w.layout;
        let (kernel, grid) = self.choose_product(w, tokens, layout.rows.div_ceil(2), epilogue.epilogue());
        let rounded = match kernel.needs_tensor_cores() && !grid.contains(&0) {
            true => Some(self.scale_and_round(op, x, &layout, tokens)?),
            false => None,
        };
        let mut args = Args::new(&self.gpu, op);
        let mut params = Product {
            x: args.take("x", &x.array, &[4, tokens, layout.cols])?,
            w: args.take("w", &w.array, &[layout.bytes])?,
            tokens: args.size(tokens)?,
            rows: args.size(layout.rows)?,
            cols: args.size(layout.cols)?,
            stride: args.size(layout.stride)?,
            ..Product::default()
        };
        if let Some((rounded, scales)) = &rounded {
            // Kernels count the 16-byte chunks of both operands in 32 bits.
            let chunks = layout.stride / WEIGHT_ALIGN;
            args.size(chunks.saturating_mul(tokens.max(layout.rows)))?;
            params.rounded = args.take("rounded", rounded, &[2, tokens, layout.stride])?;
            if layout.element == Element::F16 {
                params.scales = args.take("scales", scales, &[4, tokens])?;
            }
        }
        let full = [4, tokens, layout.rows];
        match epilogue {
            EpilogueArgs::Write { out, bias } => {
                params.out = args.take("out", &out.array, &full)?;
                if let Some(bias) = bias {
                    params.bias = args.take("bias", &bias.array, &[4, layout.rows])?;
                }
            }
            EpilogueArgs::Add { residual } => params.out = args.take("residual", &residual.array, &full)?,
            EpilogueArgs::Silu { out } => params.out = args.take("out", &out.array, &[4, tokens, layout.rows / 2])?,
            EpilogueArgs::Heads { qkv, bias, inputs, heads, store, layer } => {
                let (held, [kv_heads, slots, width]) = (&store.layers[*layer], store.array_shape());
                params.out = args.take("qkv", &qkv.array, &full)?;
                params.bias = args.take("bias", &bias.array, &[4, layout.rows])?;
                params.cos_sin = args.take("cos_sin", &inputs.cos_sin.0.array, &[4, tokens, heads.head_dim])?;
                params.slot_mapping = args.take("slot_mapping", &inputs.slot_mapping.0.array, &[4, tokens])?;
                params.keys = args.take("keys", &held.keys, &[held.key_element.bytes(), kv_heads, slots, width])?;
                params.values =
                    args.take("values", &held.values, &[held.value_element.bytes(), kv_heads, slots, width])?;
                params.num_attention_heads = args.size(heads.num_attention_heads)?;
                params.num_key_value_heads = args.size(heads.num_key_value_heads)?;
                params.head_dim = args.size(heads.head_dim)?;
                params.num_slots = store.num_slots();
                (params.key_encoding, params.value_encoding) = (held.key_element.code(), held.value_element.code());
            }
        }
        let command = args.launch(kernel, grid, &params)?;
        self.queue(command)
    }

    /// The kernel for `tokens` tokens and `pairs` pairs of rows, and its grid.
    fn choose_product(&self, w: &Matrix, tokens: usize, pairs: usize, epilogue: Epilogue) -> (Kernel, [usize; 3]) {
        let element = w.layout.element;
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
