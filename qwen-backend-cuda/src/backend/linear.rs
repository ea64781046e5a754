//! Matrix products: `linear` and the fused operations around one. A matrix is multiplied segment by segment
//! (`backend/product.rs`); an operation whose epilogue needs all of a matrix at once is composed if there are several.

use qwen_core::Result;
use qwen_core::backend::{GateUpSilu, Linear, LinearAdd, Norm, QkvRopeStore, Rope, StoreKv, composed};

use super::product::{Activations, EpilogueArgs, Part};
use super::{CudaBackend, CudaBuffer};
use crate::geometry::NORM_KEPT;
use crate::weight::{Format, Matrix};

impl CudaBackend {
    pub(super) fn queue_linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows, .. } = op;
        let epilogue = EpilogueArgs::Write { out: &out.0, bias: bias.map(|bias| &bias.0) };
        self.whole_product("linear", Activations::new(&x.0), &w.0, rows, &epilogue)
    }

    pub(super) fn queue_linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let (name, width) = ("linear_add", w.0.layout.rows);
        if width != hidden_size {
            return Err(self.mismatch(name, format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        self.whole_product(name, Activations::new(&x.0), &w.0, rows, &EpilogueArgs::Add { residual: &residual.0 })
    }

    pub(super) fn queue_gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        let (name, held) = ("gate_up_silu", op.w.0.layout.rows);
        if op.intermediate_size.checked_mul(2) != Some(held) {
            return Err(self.mismatch(name, format!("{held} rows of weights for a width of {}", op.intermediate_size)));
        }
        if op.w.0.layout.whole().is_some() {
            let GateUpSilu { norm, x, w, out, rows, .. } = op;
            let x = self.normed(name, norm, x, &w.0, rows)?;
            return self.whole_product(name, x, &w.0, rows, &EpilogueArgs::Silu { out: &out.0 });
        }
        let Some((first, second)) = gate_and_up(&op.w.0, op.intermediate_size) else {
            return composed::gate_up_silu(self, op);
        };
        // Stored in two ways: the second product finds the first one in `out`.
        let GateUpSilu { norm, x, w, out, rows, .. } = op;
        let mut x = self.normed(name, norm, x, &w.0, rows)?;
        let gate_is_second = second.segment.rows.start == 0;
        self.product(name, &mut x, &first, rows, &EpilogueArgs::Write { out: &out.0, bias: None })?;
        self.product(name, &mut x, &second, rows, &EpilogueArgs::Gated { out: &out.0, gate: gate_is_second })
    }

    /// The composed form where keys or values are stored in blocks.
    pub(super) fn queue_qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        if op.kv.0.has_blocks(op.layer) {
            return composed::qkv_rope_store(self, op);
        }
        let name = "qkv_rope_store";
        self.check_store(name, &op.kv.0, op.layer, &op.heads)?;
        if op.w.0.layout.rows != op.heads.qkv_size() {
            return Err(self.mismatch(name, format!("{} rows of weights for {:?}", op.w.0.layout.rows, op.heads)));
        }
        let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows, .. } = op;
        let x = self.normed(name, norm, x, &w.0, rows)?;
        if !w.0.layout.segments.iter().all(|segment| segment.rows.start.is_multiple_of(heads.head_dim)) {
            // A head is stored in several ways.
            let epilogue = EpilogueArgs::Write { out: &qkv.0, bias: Some(&bias.0) };
            self.whole_product(name, x, &w.0, rows, &epilogue)?;
            self.queue_rope(Rope { qkv, cos_sin: &inputs.cos_sin, heads, rows })?;
            return self.queue_store_kv(StoreKv { qkv, slot_mapping: &inputs.slot_mapping, kv, layer, heads, rows });
        }
        let epilogue = EpilogueArgs::Heads { qkv: &qkv.0, bias: &bias.0, inputs, heads, store: &kv.0, layer };
        self.whole_product(name, x, &w.0, rows, &epilogue)
    }

    /// The activations of a product that begins with a norm. Where it takes bytes, the norm rounds to them.
    fn normed<'a>(
        &mut self,
        op: &'static str,
        norm: Option<Norm<'a, Self>>,
        x: &'a CudaBuffer,
        w: &Matrix,
        rows: usize,
    ) -> Result<Activations<'a>> {
        match &norm {
            Some(norm) if rows > 0 && norm.hidden_size <= NORM_KEPT && self.takes_bytes(w, rows) => {
                Ok(Activations::in_bytes(self.norm_to_bytes(op, norm, x, rows)?))
            }
            _ => Ok(Activations::new(&composed::normed(self, norm, x, rows)?.0)),
        }
    }

    /// Queue the products of all segments of a matrix.
    fn whole_product(
        &mut self,
        op: &'static str,
        mut x: Activations<'_>,
        w: &Matrix,
        tokens: usize,
        epilogue: &EpilogueArgs<'_>,
    ) -> Result<()> {
        w.segments().try_for_each(|(segment, stored)| {
            let part =
                Part { segment, stored, cols: w.layout.cols, first_row: segment.rows.start, out_rows: w.layout.rows };
            self.product(op, &mut x, &part, tokens, epilogue)
        })
    }
}

/// The segments of a matrix that has gate in one and up in another, in the order to multiply them: the second one in
/// blocks, whose kernels have the epilogue for it.
fn gate_and_up(w: &Matrix, intermediate_size: usize) -> Option<(Part<'_>, Part<'_>)> {
    let mut parts = w.segments().map(|(segment, stored)| {
        let cols = w.layout.cols;
        Part { segment, stored, cols, first_row: 0, out_rows: intermediate_size }
    });
    let (gate, up) = (parts.next()?, parts.next()?);
    if parts.next().is_some() || gate.segment.rows.len() != intermediate_size {
        return None;
    }
    match up.segment.format {
        Format::Blocks(_) => Some((gate, up)),
        Format::Values(_) => Some((up, gate)),
    }
}
