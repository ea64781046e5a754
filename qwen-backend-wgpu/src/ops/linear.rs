//! Matrix products, plain and fused with preceding or following operations: one kernel per slab of the matrix and piece
//! of the batch.

use qwen_core::Result;
use qwen_core::backend::{GateUpSilu, HeadLayout, Linear, LinearAdd, Norm, QkvRopeStore, StepInputs, composed};

use crate::executor::{KernelCall, WgpuBackend, WgpuBuffer, Words, words};
use crate::geometry::TILE_FROM;
use crate::kv::{Slab, Store};
use crate::ops::product::{EpilogueKind, ProductKernel, ProductShader};
use crate::ops::rounded::Rounded;
use crate::ops::store_kv::check_store;
use crate::ops::{f16_rows, signed_rows};
use crate::runtime::array::Array;
use crate::runtime::commands::{Cost, Grid};
use crate::weight::{Layout, Matrix, Segment, StoredSegment};

/// The last word of the parameters: the epsilon of a norm, or the exponent of the weights' scale.
const LAST_PARAM: usize = 13;

/// What a product does with its sums, and where it writes them.
enum Epilogue<'a> {
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
    Gated {
        out: &'a Words,
    },
    Heads {
        qkv: &'a Words,
        bias: &'a Words,
        inputs: &'a StepInputs<WgpuBackend>,
        heads: HeadLayout,
        slab: &'a Slab,
        store: &'a Store,
        layer: usize,
    },
}

impl<'a> Epilogue<'a> {
    fn kind(&self) -> EpilogueKind {
        match self {
            Epilogue::Write { bias, .. } => EpilogueKind::Write { bias: bias.is_some() },
            Epilogue::Add { .. } => EpilogueKind::Add,
            Epilogue::Silu { .. } => EpilogueKind::Silu,
            Epilogue::Gated { .. } => EpilogueKind::Gated,
            Epilogue::Heads { store, layer, .. } => EpilogueKind::Heads(store.types(*layer)),
        }
    }

    /// The output of the sums.
    fn out(&self) -> &'a Words {
        match self {
            Epilogue::Write { out, .. } | Epilogue::Silu { out } | Epilogue::Gated { out } => out,
            Epilogue::Add { residual } => residual,
            Epilogue::Heads { qkv, .. } => qkv,
        }
    }
}

/// The activations of a product.
#[derive(Clone, Copy)]
struct Activations<'a> {
    x: &'a Words,
    /// Weight and epsilon of the norm that the product begins with.
    norm: Option<(&'a Words, f32)>,
}

impl<'a> Activations<'a> {
    fn new(x: &'a WgpuBuffer, norm: Option<&Norm<'a, WgpuBackend>>) -> Self {
        Activations { x: &x.0, norm: norm.map(|norm| (&norm.weight.0, norm.eps)) }
    }
}

pub(crate) fn linear(b: &mut WgpuBackend, op: Linear<'_, WgpuBackend>) -> Result<()> {
    let Linear { x, w, bias, out, rows, .. } = op;
    let width = w.0.layout.rows;
    if let Some(bias) = bias {
        b.need("linear", "bias", &bias.0, &[width])?;
    }
    let epilogue = Epilogue::Write { out: &out.0, bias: bias.map(|bias| &bias.0) };
    product(b, "linear", Activations::new(x, None), Rows::all(&w.0), rows, &epilogue)
}

pub(crate) fn linear_add(b: &mut WgpuBackend, op: LinearAdd<'_, WgpuBackend>) -> Result<()> {
    if op.group.is_some() {
        return composed::linear_add(b, op);
    }
    let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
    let width = w.0.layout.rows;
    if width != hidden_size {
        return Err(b.error("linear_add", format!("{width} rows of weights for a residual of {hidden_size}")));
    }
    let epilogue = Epilogue::Add { residual: &residual.0 };
    product(b, "linear_add", Activations::new(x, None), Rows::all(&w.0), rows, &epilogue)
}

pub(crate) fn gate_up_silu(b: &mut WgpuBackend, mut op: GateUpSilu<'_, WgpuBackend>) -> Result<()> {
    let name = "gate_up_silu";
    let layout = &op.w.0.layout;
    if layout.rows != op.intermediate_size.saturating_mul(2) {
        return composed::gate_up_silu(b, op);
    }
    if layout.gate_and_up().is_some() {
        // Stored in two ways: gate is multiplied first.
        op.x = composed::normed(b, op.norm.take(), op.x, op.rows)?;
        let GateUpSilu { x, w, out, rows, .. } = op;
        let [gate, up] = [0, 1].map(|half| Rows::segment(&w.0, half));
        product(b, name, Activations::new(x, None), gate, rows, &Epilogue::Write { out: &out.0, bias: None })?;
        return product(b, name, Activations::new(x, None), up, rows, &Epilogue::Gated { out: &out.0 });
    }
    if !layout.is_gate_up() {
        return composed::gate_up_silu(b, op);
    }
    if !fuses_norm(b, &op.w.0, op.rows, 4) || is_ordered(&op.w.0) {
        op.x = composed::normed(b, op.norm.take(), op.x, op.rows)?;
    }
    let GateUpSilu { norm, x, w, out, rows, .. } = op;
    let epilogue = Epilogue::Silu { out: &out.0 };
    product(b, name, Activations::new(x, norm.as_ref()), Rows::all(&w.0), rows, &epilogue)
}

/// Whether columns are stored in another order: the norm is then a kernel of its own.
fn is_ordered(w: &Matrix) -> bool {
    w.segments.iter().any(|segment| segment.column_order.is_some())
}

/// One kernel if neither the matrix nor the layer of the store is split, and the layer is stored pair by pair; otherwise
/// the composed form.
pub(crate) fn qkv_rope_store(b: &mut WgpuBackend, mut op: QkvRopeStore<'_, WgpuBackend>) -> Result<()> {
    let name = "qkv_rope_store";
    check_store(b, name, &op.kv.0, op.layer, &op.heads)?;
    let (layout, slabs) = (&op.w.0.layout, op.kv.0.layers[op.layer].len());
    let whole = slabs <= 1 && layout.num_slabs() <= 1 && !layout.is_gate_up() && !is_ordered(&op.w.0);
    let whole = whole && !op.kv.0.types(op.layer).has_blocks();
    if !whole || layout.rows != op.heads.qkv_size() {
        return composed::qkv_rope_store(b, op);
    }
    if !fuses_norm(b, &op.w.0, op.rows, 9) {
        op.x = composed::normed(b, op.norm.take(), op.x, op.rows)?;
    }
    let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows, .. } = op;
    b.need(name, "bias", &bias.0, &[w.0.layout.rows])?;
    b.need(name, "cos_sin", &inputs.cos_sin.0, &[rows, heads.head_dim])?;
    b.need(name, "slot_mapping", &inputs.slot_mapping.words, &[rows])?;
    let (store, slab) = (&kv.0, &kv.0.layers[layer][0]);
    let epilogue = Epilogue::Heads { qkv: &qkv.0, bias: &bias.0, inputs, heads, slab, store, layer };
    product(b, name, Activations::new(x, norm.as_ref()), Rows::all(&w.0), rows, &epilogue)
}

/// Whether a product of `rows` rows of activations norms them itself, with a kernel of `arrays` storage buffers.
///
/// Each of its workgroups then norms the same few rows, which costs less than a separate kernel that all of them wait
/// for. Many rows are normed once. The bits are the same. Where activations are rounded to bytes, the kernel that does
/// that norms them.
fn fuses_norm(b: &WgpuBackend, w: &Matrix, rows: usize, arrays: u32) -> bool {
    let kernel = |segment: &Segment| ProductKernel::choose(&b.gpu.device, b.precision, segment.encoding, rows);
    let signed = w.layout.segments.iter().all(|segment| kernel(segment).is_signed());
    rows < TILE_FROM && (signed || arrays <= b.gpu.device.limits.max_storage_buffers_per_shader_stage)
}

/// The rows of a matrix that a product multiplies.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: &'a Matrix,
    /// One of its segments; `None` for all of them.
    segment: Option<usize>,
}

impl<'a> Rows<'a> {
    fn all(w: &'a Matrix) -> Self {
        Rows { w, segment: None }
    }

    fn segment(w: &'a Matrix, segment: usize) -> Self {
        Rows { w, segment: Some(segment) }
    }

    /// How many there are, and the first.
    fn count_and_first(self) -> (usize, usize) {
        match self.segment.and_then(|segment| self.w.layout.segments.get(segment)) {
            Some(segment) => (segment.rows.len(), segment.rows.start),
            None => (self.w.layout.rows, 0),
        }
    }

    fn segments(self) -> impl Iterator<Item = (&'a Segment, &'a StoredSegment)> {
        let chosen = self.segment;
        self.w.segments().enumerate().filter(move |(at, _)| chosen.is_none_or(|chosen| chosen == *at)).map(|(_, s)| s)
    }
}

/// The activations of a product, rounded as its kernels take them.
struct Rounding<'a> {
    activations: Activations<'a>,
    rows: usize,
    /// Bytes in the usual order of columns, once they are needed: for all segments.
    bytes: Option<Rounded>,
}

impl Rounding<'_> {
    /// The input of `kernel`; `None` where it reads f32.
    fn round(
        &mut self,
        b: &mut WgpuBackend,
        op: &str,
        kernel: ProductKernel,
        layout: &Layout,
        column_order: Option<&Array>,
    ) -> Result<Option<Rounded>> {
        let Activations { x, norm } = self.activations;
        if let ProductKernel::Cooperative(_) = kernel {
            return f16_rows::round(b, op, x, layout, column_order, self.rows).map(Some);
        }
        if !kernel.is_signed() {
            return Ok(None);
        }
        if column_order.is_none() && self.bytes.is_some() {
            return Ok(self.bytes.clone());
        }
        let rounded = signed_rows::round(b, op, (x, norm), layout, column_order, self.rows)?;
        // All of them share one array.
        self.bytes = column_order.is_none().then(|| rounded.clone());
        Ok(Some(rounded))
    }
}

/// Queue `w x` for each slab of the rows, with `epilogue` applied to the sums.
fn product(
    b: &mut WgpuBackend,
    op: &str,
    activations: Activations<'_>,
    matrix_rows: Rows<'_>,
    rows: usize,
    epilogue: &Epilogue<'_>,
) -> Result<()> {
    let layout = &matrix_rows.w.layout;
    let Activations { x, norm } = activations;
    let (out, (out_rows, first)) = (epilogue.out(), matrix_rows.count_and_first());
    let width = if let Epilogue::Silu { .. } = epilogue { out_rows / 2 } else { out_rows };
    b.need(op, "x", x, &[rows, layout.cols])?;
    b.need(op, "out", out, &[rows, width])?;
    if let Some((weight, _)) = norm {
        b.need(op, "norm", weight, &[layout.cols])?;
    }
    let mut rounding = Rounding { activations, rows, bytes: None };
    for (segment, stored) in matrix_rows.segments() {
        let kernel = ProductKernel::choose(&b.gpu.device, b.precision, segment.encoding, rows);
        let column_order = stored.column_order.as_ref();
        let rounded = rounding.round(b, op, kernel, layout, column_order)?;
        let norm = norm.filter(|_| rounded.is_none());
        let shader = ProductShader {
            kernel,
            encoding: segment.encoding,
            gate_up: segment.gate_up,
            ordered: column_order.is_some(),
            ragged: !layout.cols.is_multiple_of(8),
            norm: norm.is_some(),
            epilogue: epilogue.kind(),
        };
        let shader = shader.shader();
        let (pairs_per_group, tokens_per_group) = kernel.tile();
        let (x, x_width) = match &rounded {
            Some(rounded) => (&rounded.values, rounded.width),
            None => (&x.array, layout.cols),
        };
        let segment_first = segment.rows.start - first;
        for piece in b.pieces(op, rows, &[x_width, width])? {
            for (pairs, slab) in segment.slabs().zip(&stored.slabs) {
                let mut bindings =
                    vec![x.read(words(&piece, x_width)), slab.read_all(), out.array.write(words(&piece, width))];
                let first_row = segment_first + segment.first_row(pairs.start);
                let end_row = segment_first + segment.rows.len();
                let mut params = vec![piece.len(), layout.cols, layout.chunks(), pairs.len(), first_row, end_row];
                params.extend([out_rows, segment.row_bytes / 4, piece.start]);
                match epilogue {
                    Epilogue::Write { bias: Some(bias), .. } => bindings.push(bias.array.read(0..out_rows)),
                    Epilogue::Heads { bias, inputs, heads, slab, store, .. } => {
                        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
                        params.extend([num_attention_heads, num_key_value_heads, head_dim / 2, store.num_slots]);
                        bindings.extend([
                            bias.array.read(0..out_rows),
                            inputs.cos_sin.0.array.read(0..rows * head_dim),
                            inputs.slot_mapping.words.array.read(0..rows),
                            slab.keys.write_all(),
                            slab.values.write_all(),
                        ]);
                    }
                    _ => {}
                }
                let mut params = b.params(op, &params)?;
                if let (Some(order), None) = (column_order, &rounded) {
                    bindings.push(order.read_all());
                }
                if let Some((weight, eps)) = norm {
                    bindings.push(weight.array.read(0..layout.cols));
                    params.resize(LAST_PARAM, 0);
                    params.push(eps.to_bits());
                }
                if let Some(scales) = rounded.as_ref().and_then(|rounded| rounded.scales.as_ref()) {
                    bindings.push(scales.read(0..rows));
                    params.resize(LAST_PARAM, 0);
                    params.push(f16_rows::weight_exponent(segment.encoding, stored));
                }
                let groups = [pairs.len().div_ceil(pairs_per_group), piece.len().div_ceil(tokens_per_group), 1];
                let slab_rows = 2 * pairs.len() as u64;
                let cost = Cost {
                    multiply_adds: (slab_rows * layout.cols as u64).saturating_mul(piece.len() as u64),
                    weight_bytes: (slab_rows * segment.row_bytes as u64).saturating_mul(groups[1] as u64),
                    ..Cost::default()
                };
                let grid = Grid::fixed(groups);
                b.queue(KernelCall { op, shader: &shader, bindings: &bindings, params: &params, grid, cost })?;
            }
        }
    }
    Ok(())
}
