//! The reference with one fault, each of a kind that kernels have had.

use std::collections::HashSet;

use half::{bf16, f16};
use qwen_core::backend::reference::{KvStore, Matrix, Reference};
use qwen_core::backend::{
    self, DeviceInfo, HeadLayout, Interrupt, KvSpec, MatrixPart, PAD_SLOT, RowReader, StepInputs, StepKey, StoredSizes,
    WeightView, composed, host::Operands,
};
use qwen_core::numerics::encoding::q8;
use qwen_core::numerics::size;
use qwen_core::{Backend, Encoding, Footprint, Precision, Result};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the reference.
    None,
    /// No fault: what [`Precision::Fast`] may round is rounded.
    Fast,
    /// No fault: products, norms and gates are computed in f32, in one order, without fused operations.
    PlainF32,
    /// Sums of products are rounded to bf16.
    FastBf16Sums,
    /// Activations are rounded to f16, which large ones exceed.
    FastF16Activations,
    /// Inputs of products are rounded to 8 bits per block of 32.
    FastInt8,
    /// Codes of K/V in blocks are rounded towards zero.
    KvBlocksRoundDown,
    /// Infinities in K/V in blocks become large numbers.
    KvBlocksHideInfinities,
    /// K/V is stored as bf16.
    FastBf16Kv,
    /// K/V is stored as f16 where it must not be rounded.
    ExactF16Kv,
    /// Inputs of products are rounded to bf16 where they must not be.
    ExactBf16Inputs,
    MissingBias,
    MissingLastColumn,
    MissingLastRow,
    WritesBehindTheOutput,
    TakesInWhatLiesBehind,
    BatchVariantLinear,
    Nondeterministic,
    IgnoresStride,
    NoEpsilon,
    AdjacentRotaryPairs,
    RotatesValues,
    ContextOffByOne,
    SeesTheFuture,
    KvHeadsInterleaved,
    ContiguousBlocks,
    BatchVariantAttention,
    TakesInUnusedPositions,
    StoresPadding,
    StoresToLayer0,
    CopiesOneLayer,
    WritesBlocksReversed,
    SiluOverflows,
    GateAndUpSwapped,
    FusedNormMissing,
    LinearAddReplaces,
    ArgmaxLastOfEquals,
    ArgmaxIgnoresNan,
    ArgmaxOverAll,
    EmbedWraps,
    GatherOffByOne,
    AddRowsUnscaled,
    ReducesNothing,
    IgnoresInterrupts,
    StepsRunOnce,
    NotZeroAtFirst,
}

/// A loaded matrix, and its decoded values for the faults that need them.
#[derive(Debug)]
pub(crate) struct Weight {
    matrix: Matrix,
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

/// The reference with a [`Fault`].
#[derive(Debug)]
pub(crate) struct Faulty {
    fault: Fault,
    inner: Reference,
    calls: u32,
    seen: HashSet<StepKey>,
}

fn to_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect()
}

fn to_f16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| f16::from_f32(*value).to_f32()).collect()
}

/// Blocks of 32 with each value rounded to a multiple of the scale that the largest one determines.
fn round_down(values: &[f32], head_dim: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    for block in values.chunks_exact_mut(head_dim).flat_map(|head| head.as_chunks_mut::<{ q8::VALUES }>().0) {
        let scale = q8::round(block).0.to_f32();
        if scale > 0.0 {
            block.iter_mut().for_each(|value| *value = (*value / scale).trunc().clamp(-127.0, 127.0) * scale);
        }
    }
    values
}

fn to_int8(values: &[f32], cols: usize) -> Vec<f32> {
    let round = |block: &[f32]| -> Vec<f32> {
        let step = block.iter().fold(0f32, |max, value| max.max(value.abs())) / 127.0;
        block.iter().map(|value| if step > 0.0 { (value / step).round() * step } else { 0.0 }).collect()
    };
    values.chunks(cols).flat_map(|row| row.chunks(32).flat_map(round).collect::<Vec<_>>()).collect()
}

fn nudge(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() ^ 1));
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Faulty { fault, inner: Reference::new(), calls: 0, seen: HashSet::new() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn fast(&self) -> bool {
        use Fault::{Fast, FastBf16Kv, FastBf16Sums, FastF16Activations, FastInt8};
        matches!(self.fault, Fast | FastBf16Sums | FastF16Activations | FastInt8 | FastBf16Kv)
    }

    /// The inputs that a product gets for `x`.
    fn rounded(&self, x: &[f32], cols: usize) -> Vec<f32> {
        match self.fault {
            Fault::Fast | Fault::FastBf16Sums | Fault::FastBf16Kv | Fault::ExactBf16Inputs => to_bf16(x),
            Fault::FastF16Activations => to_f16(x),
            Fault::FastInt8 => to_int8(x, cols),
            _ => x.to_vec(),
        }
    }
}

impl Backend for Faulty {
    type Buffer = Vec<f32>;
    type Indices = Vec<u32>;
    type Weight = Weight;
    type Kv = (KvStore, KvSpec);

    fn info(&self) -> DeviceInfo {
        let precision = if self.fast() { Precision::Fast } else { Precision::Exact };
        DeviceInfo { name: format!("faulty ({:?})", self.fault), precision, memory_available: None }
    }

    /// If K/V is rounded to f16 before the reference gets it, block encodings are not supported.
    fn footprint(&self) -> Box<dyn Footprint> {
        if self.fast() { Box::new(StoredSizes) } else { self.inner.footprint() }
    }

    fn alloc(&mut self, len: usize) -> Result<Vec<f32>> {
        let mut buffer = self.inner.alloc(len)?;
        buffer.fill(if self.is(Fault::NotZeroAtFirst) { 1e-30 } else { 0.0 });
        Ok(buffer)
    }

    fn alloc_indices(&mut self, len: usize) -> Result<Vec<u32>> {
        self.inner.alloc_indices(len)
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<Self::Weight> {
        view.check()?;
        let mut parts = view.parts.to_vec();
        if self.is(Fault::IgnoresStride) {
            parts.iter_mut().for_each(|part| part.row_bytes = part.encoding.bytes(part.cols));
        }
        let (rows, cols) = (view.rows(), view.cols());
        let mut values = size::zeros("rows", &[rows, cols])?;
        let mut out = values.chunks_exact_mut(cols);
        for part in &parts {
            let mut stored = RowReader::new(part);
            for (row, out) in (0..part.rows).zip(&mut out) {
                stored.decode(row, out)?;
            }
        }
        if self.fast() {
            values = to_bf16(&values);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let parts = [MatrixPart::whole(Encoding::F32, rows, cols, &bytes)?];
        let matrix = self.inner.load(&WeightView { parts: &parts, ..*view })?;
        Ok(Weight { matrix, rows, cols, values })
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<Self::Kv> {
        self.footprint().kv_bytes(spec)?;
        Ok((self.inner.kv(spec)?, spec.clone()))
    }

    fn write(&mut self, dst: &mut Vec<f32>, src: &[f32]) -> Result<()> {
        self.inner.write(dst, src)
    }

    fn write_indices(&mut self, dst: &mut Vec<u32>, src: &[u32]) -> Result<()> {
        self.inner.write_indices(dst, src)
    }

    fn read(&mut self, src: &Vec<f32>, dst: &mut [f32]) -> Result<()> {
        self.inner.read(src, dst)
    }

    fn read_indices(&mut self, src: &Vec<u32>, dst: &mut [u32]) -> Result<()> {
        self.inner.read_indices(src, dst)
    }

    fn copy_blocks(&mut self, (kv, spec): &mut Self::Kv, pairs: &[(u32, u32)]) -> Result<()> {
        if !self.is(Fault::CopiesOneLayer) {
            return self.inner.copy_blocks(kv, pairs);
        }
        // A store of one layer is the beginning of a store with several.
        let mut first = self.inner.kv(&KvSpec { key_encodings: spec.key_encodings[..1].to_vec(), ..spec.clone() })?;
        std::mem::swap(&mut first, kv);
        let outcome = self.inner.copy_blocks(&mut first, &[]);
        std::mem::swap(&mut first, kv);
        outcome
    }

    fn stored_encoding(&self, encoding: Encoding) -> Encoding {
        self.inner.stored_encoding(encoding)
    }

    fn read_blocks(&mut self, (kv, _): &Self::Kv, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        self.inner.read_blocks(kv, blocks, out)
    }

    fn write_blocks(&mut self, (kv, spec): &mut Self::Kv, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        if !self.is(Fault::WritesBlocksReversed) {
            return self.inner.write_blocks(kv, blocks, bytes);
        }
        let mut stored = spec.clone();
        stored.key_encodings.fill(Encoding::F32);
        stored.value_encoding = Encoding::F32;
        let mut bytes = bytes.to_vec();
        for block in bytes.chunks_exact_mut(stored.block_bytes()) {
            for part in stored.block_parts() {
                block[part.bytes].as_chunks_mut::<4>().0.chunks_exact_mut(stored.head_dim).for_each(<[_]>::reverse);
            }
        }
        self.inner.write_blocks(kv, blocks, &bytes)
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn embed(&mut self, op: backend::Embed<'_, Self>) -> Result<()> {
        let backend::Embed { ids, table, out, rows } = op;
        let wrapped: Vec<u32> = ids.iter().map(|id| id % table.rows as u32).collect();
        self.inner.embed(backend::Embed {
            ids: if self.is(Fault::EmbedWraps) { &wrapped } else { ids },
            table: &table.matrix,
            out,
            rows,
        })
    }

    fn linear(&mut self, op: backend::Linear<'_, Self>) -> Result<()> {
        let backend::Linear { x, w, bias, out, rows } = op;
        self.calls += 1;
        let (outs, cols) = (w.rows, w.cols);
        let mut x = self.rounded(x, cols);
        let bias = bias.filter(|_| !self.is(Fault::MissingBias));
        if self.is(Fault::MissingLastColumn) && cols % 2 == 1 {
            x.chunks_exact_mut(cols).for_each(|row| row[cols - 1] = 0.0);
        }
        if self.is(Fault::TakesInWhatLiesBehind) && x.len() > rows * cols && rows > 0 {
            x[rows * cols - 1] += 0.0 * x[rows * cols];
        }
        let before = out.clone();
        self.inner.linear(backend::Linear { x: &x, w: &w.matrix, bias, out, rows })?;
        if self.is(Fault::PlainF32) {
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(outs)).take(rows) {
                for (r, (out, w)) in out.iter_mut().zip(w.values.chunks_exact(cols)).enumerate() {
                    let dot: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    *out = dot + bias.map_or(0.0, |bias| bias[r]);
                }
            }
        }
        let len = rows * outs;
        if self.is(Fault::FastBf16Sums) {
            let rounded = to_bf16(&out[..len]);
            out[..len].copy_from_slice(&rounded);
        }
        if self.is(Fault::MissingLastRow) && rows % 16 == 1 && rows > 1 {
            out[len - outs..len].copy_from_slice(&before[len - outs..len]);
        }
        if self.is(Fault::WritesBehindTheOutput) && outs % 16 != 0 && len < out.len() {
            out[len] = 0.0;
        }
        if self.is(Fault::BatchVariantLinear) && rows >= 4
            || self.is(Fault::Nondeterministic) && self.calls.is_multiple_of(2)
        {
            nudge(&mut out[..len]);
        }
        Ok(())
    }

    fn rms_norm(&mut self, op: backend::RmsNorm<'_, Self>) -> Result<()> {
        let backend::RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        let eps = if self.is(Fault::NoEpsilon) { 1e-12 } else { eps };
        self.inner.rms_norm(backend::RmsNorm { x, weight, eps, out, hidden_size, rows })?;
        if self.is(Fault::PlainF32) && hidden_size > 0 {
            for (x, out) in x.chunks_exact(hidden_size).zip(out.chunks_exact_mut(hidden_size)).take(rows) {
                let mean = x.iter().map(|x| x * x).sum::<f32>() / hidden_size as f32;
                let scale = 1.0 / (mean + eps).sqrt();
                out.iter_mut().zip(x).zip(weight).for_each(|((out, x), weight)| *out = x * scale * weight);
            }
        }
        Ok(())
    }

    fn rope(&mut self, op: backend::Rope<'_, Self>) -> Result<()> {
        let backend::Rope { qkv, cos_sin, heads, rows } = op;
        if self.is(Fault::RotatesValues) {
            let all = HeadLayout { num_attention_heads: heads.qkv_size() / heads.head_dim, ..heads };
            let mut padded = qkv.clone();
            for row in 0..rows {
                let mut one: Vec<f32> = qkv[row * heads.qkv_size()..][..heads.qkv_size()].to_vec();
                one.resize(all.qkv_size(), 0.0);
                self.inner.rope(backend::Rope {
                    qkv: &mut one,
                    cos_sin: &cos_sin[row * heads.head_dim..].to_vec(),
                    heads: all,
                    rows: 1,
                })?;
                padded[row * heads.qkv_size()..][..heads.qkv_size()].copy_from_slice(&one[..heads.qkv_size()]);
            }
            *qkv = padded;
            return Ok(());
        }
        if !self.is(Fault::AdjacentRotaryPairs) {
            return self.inner.rope(backend::Rope { qkv, cos_sin, heads, rows });
        }
        let half = heads.head_dim / 2;
        for (row, angles) in qkv.chunks_exact_mut(heads.qkv_size()).zip(cos_sin.chunks_exact(2 * half)).take(rows) {
            for head in row[..heads.q_size() + heads.kv_size()].chunks_exact_mut(2 * half) {
                for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                    let (a, b, cos, sin) = (pair[0], pair[1], angles[i], angles[half + i]);
                    (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        Ok(())
    }

    fn store_kv(&mut self, op: backend::StoreKv<'_, Self>) -> Result<()> {
        let backend::StoreKv { qkv, slot_mapping, kv: (kv, spec), layer, heads, rows } = op;
        let kv_is_in_blocks = spec.value_encoding == Encoding::Q8_0;
        let qkv = match self.fault {
            Fault::FastBf16Kv => to_bf16(qkv),
            Fault::ExactF16Kv => to_f16(qkv),
            Fault::KvBlocksRoundDown if kv_is_in_blocks => round_down(qkv, heads.head_dim),
            Fault::KvBlocksHideInfinities if kv_is_in_blocks => {
                qkv.iter().map(|v| v.clamp(-65504.0, 65504.0)).collect()
            }
            _ if self.fast() => {
                let mut rounded = to_f16(qkv);
                // Keys that f16 does not hold are stored in f32, in this precision too.
                if spec.key_encodings.get(layer) == Some(&Encoding::F32) {
                    // Cases ask for impossible sizes, too.
                    let (first, end, width) =
                        (heads.q_size(), heads.q_size() + heads.kv_size(), heads.qkv_size().max(1));
                    for (rounded, row) in rounded.chunks_mut(width).zip(qkv.chunks(width)) {
                        if let Some((rounded, row)) = rounded.get_mut(first..end).zip(row.get(first..end)) {
                            rounded.copy_from_slice(row);
                        }
                    }
                }
                rounded
            }
            _ => qkv.clone(),
        };
        let padding = if self.is(Fault::StoresPadding) { 0 } else { PAD_SLOT };
        let slots: Vec<u32> = slot_mapping.iter().map(|slot| if *slot == PAD_SLOT { padding } else { *slot }).collect();
        let layer = if self.is(Fault::StoresToLayer0) { 0 } else { layer };
        self.inner.store_kv(backend::StoreKv { qkv: &qkv, slot_mapping: &slots, kv, layer, heads, rows })
    }

    fn paged_attention(&mut self, op: backend::PagedAttention<'_, Self>) -> Result<()> {
        let backend::PagedAttention { qkv, kv: (kv, spec), layer, heads, inputs, out, key } = op;
        let operands = Operands { device: "faulty", op: "paged_attention" };
        operands.heads(&heads, Some((spec, layer)))?;
        operands.sequences(inputs, spec, key)?;
        let mut step = StepInputs::<Reference> {
            input_ids: Vec::new(),
            cos_sin: Vec::new(),
            slot_mapping: Vec::new(),
            cu_seqlens_q: inputs.cu_seqlens_q.clone(),
            context_lens: inputs.context_lens.clone(),
            block_tables: inputs.block_tables.clone(),
            max_blocks_per_seq: inputs.max_blocks_per_seq,
            logits_indices: Vec::new(),
        };
        let tokens = |seq: usize| inputs.cu_seqlens_q[seq + 1] - inputs.cu_seqlens_q[seq];
        let stride = inputs.max_blocks_per_seq;
        for seq in 0..key.num_seqs {
            let context = &mut step.context_lens[seq];
            match self.fault {
                Fault::ContextOffByOne if *context > tokens(seq) => *context -= 1,
                Fault::SeesTheFuture if tokens(seq) > 1 => *context += 1,
                Fault::TakesInUnusedPositions if *context > 0 => {
                    *context = context.next_multiple_of(spec.block_size as u32);
                }
                Fault::ContiguousBlocks => {
                    for i in 1..stride {
                        let next = step.block_tables[seq * stride] + i as u32;
                        step.block_tables[seq * stride + i] = next.min(spec.num_blocks as u32 - 1);
                    }
                }
                _ => {}
            }
        }
        let mut qkv = qkv.clone();
        let (group, dim) = (heads.num_attention_heads / heads.num_key_value_heads, heads.head_dim);
        // Query head h reads K/V head h % kv_heads: the same as permuting query heads before and after.
        let from = |head: usize| head % heads.num_key_value_heads * group + head / heads.num_key_value_heads;
        if self.is(Fault::KvHeadsInterleaved) {
            for row in qkv.chunks_exact_mut(heads.qkv_size()) {
                let before = row.to_vec();
                for head in 0..heads.num_attention_heads {
                    row[from(head) * dim..][..dim].copy_from_slice(&before[head * dim..][..dim]);
                }
            }
        }
        self.inner.paged_attention(backend::PagedAttention { qkv: &qkv, kv, layer, heads, inputs: &step, out, key })?;
        if self.is(Fault::KvHeadsInterleaved) {
            for row in out.chunks_exact_mut(heads.q_size()).take(key.num_tokens) {
                let before = row.to_vec();
                for head in 0..heads.num_attention_heads {
                    row[head * dim..][..dim].copy_from_slice(&before[from(head) * dim..][..dim]);
                }
            }
        }
        if self.is(Fault::BatchVariantAttention) && key.max_seqlen_q > 1 {
            nudge(&mut out[..inputs.cu_seqlens_q[key.num_seqs] as usize * heads.q_size()]);
        }
        Ok(())
    }

    fn silu_and_mul(&mut self, op: backend::SiluAndMul<'_, Self>) -> Result<()> {
        let backend::SiluAndMul { gate_up, out, intermediate_size: inner, rows } = op;
        self.inner.silu_and_mul(backend::SiluAndMul { gate_up, out, intermediate_size: inner, rows })?;
        if inner == 0 {
            return Ok(());
        }
        for (row, out) in gate_up.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)).take(rows) {
            for (i, out) in out.iter_mut().enumerate() {
                let (gate, up) = (row[i], row[inner + i]);
                match self.fault {
                    Fault::SiluOverflows => *out = gate * gate.exp() / (1.0 + gate.exp()) * up,
                    Fault::PlainF32 => *out = gate / (1.0 + (-gate).exp()) * up,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, op: backend::Add<'_, Self>) -> Result<()> {
        let backend::Add { x, y, len } = op;
        self.inner.add(backend::Add { x, y, len })
    }

    fn add_rows(&mut self, op: backend::AddRows<'_, Self>) -> Result<()> {
        let backend::AddRows { x, indices, scale, out, out_rows, width, rows } = op;
        let scale = if self.is(Fault::AddRowsUnscaled) { 1.0 } else { scale };
        self.inner.add_rows(backend::AddRows { x, indices, scale, out, out_rows, width, rows })
    }

    fn gather_rows(&mut self, op: backend::GatherRows<'_, Self>) -> Result<()> {
        let backend::GatherRows { x, indices, out, width, rows } = op;
        let shifted: Vec<u32> = indices.iter().map(|index| index.saturating_sub(1)).collect();
        let indices = if self.is(Fault::GatherOffByOne) { &shifted } else { indices };
        self.inner.gather_rows(backend::GatherRows { x, indices, out, width, rows })
    }

    fn argmax(&mut self, op: backend::Argmax<'_, Self>) -> Result<()> {
        let backend::Argmax { x, out, width, valid, rows } = op;
        let valid = if self.is(Fault::ArgmaxOverAll) { width } else { valid };
        composed::argmax(self, backend::Argmax { x, out, width, valid, rows })?;
        if width == 0 {
            return Ok(());
        }
        for (row, out) in x.chunks_exact(width).zip(out.iter_mut()).take(rows) {
            let finite = row[..valid].iter().map(|value| if value.is_nan() { -1e30 } else { *value });
            match self.fault {
                Fault::ArgmaxLastOfEquals if row[..valid].iter().all(|value| value.is_finite()) => {
                    let last = row[..valid].iter().rposition(|value| *value == row[*out as usize]);
                    *out = last.map_or(*out, |last| last as u32);
                }
                Fault::ArgmaxIgnoresNan => *out = composed::argmax_row(&finite.collect::<Vec<_>>()),
                _ => {}
            }
        }
        Ok(())
    }

    fn qkv_rope_store(&mut self, op: backend::QkvRopeStore<'_, Self>) -> Result<()> {
        let norm = op.norm.filter(|_| !self.is(Fault::FusedNormMissing));
        composed::qkv_rope_store(self, backend::QkvRopeStore { norm, ..op })
    }

    fn gate_up_silu(&mut self, op: backend::GateUpSilu<'_, Self>) -> Result<()> {
        let backend::GateUpSilu { norm, x, w, scratch, out, intermediate_size: inner, rows } = op;
        let norm = norm.filter(|_| !self.is(Fault::FusedNormMissing));
        let x = composed::normed(self, norm, x, rows)?;
        self.linear(backend::Linear { x, w, bias: None, out: scratch, rows })?;
        if self.is(Fault::GateAndUpSwapped) {
            scratch[..rows * 2 * inner].chunks_exact_mut(2 * inner).for_each(|row| row.rotate_left(inner));
        }
        self.silu_and_mul(backend::SiluAndMul { gate_up: scratch, out, intermediate_size: inner, rows })
    }

    fn linear_add(&mut self, op: backend::LinearAdd<'_, Self>) -> Result<()> {
        if self.is(Fault::LinearAddReplaces) {
            let backend::LinearAdd { x, w, residual, rows, .. } = op;
            return self.linear(backend::Linear { x, w, bias: None, out: residual, rows });
        }
        composed::linear_add(self, op)
    }

    fn all_reduce(&mut self, op: backend::AllReduce<'_, Self>) -> Result<()> {
        let backend::AllReduce { x, len, group } = op;
        let before = x.clone();
        composed::all_reduce(self, backend::AllReduce { x: &mut *x, len, group })?;
        if self.is(Fault::ReducesNothing) {
            *x = before;
        }
        Ok(())
    }

    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if interrupt.is_raised() && !self.is(Fault::IgnoresInterrupts) {
            return Err(qwen_core::Error::Cancelled);
        }
        if !self.seen.insert(key) && self.is(Fault::StepsRunOnce) {
            return Ok(());
        }
        body(self)
    }
}
