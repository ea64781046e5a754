//! The specification of every operation: a [`Backend`] in plain loops, short enough to read in one sitting.
//!
//! Values are f32, sums are f64, nothing is packed, fused, vectorised or threaded. Other backends are compared with it;
//! it is far too slow for anything but tests.

use std::ops::Range;

use crate::backend::{
    Add, AddRows, Backend, BlockPart, DeviceInfo, Embed, Footprint, GatherRows, Interrupt, KvSpec, Linear, PAD_SLOT,
    PagedAttention, RmsNorm, Rope, RowReader, SiluAndMul, StepKey, StoreKv, WeightView, host::Operands,
};
use crate::error::{Error, Result};
use crate::numerics::encoding::{Encoding, q8};
use crate::numerics::precision::Precision;
use crate::numerics::size;

/// The reference device. Always [`Precision::Exact`].
///
/// ```
/// use qwen_core::{Backend, backend::Add};
/// use qwen_core::backend::reference::Reference;
/// let mut b = Reference::new();
/// let mut x = b.alloc(2)?;
/// b.write(&mut x, &[3.0, 4.0])?;
/// let y = b.alloc(2)?;
/// b.add(Add { x: &mut x, y: &y, len: 2 })?;
/// let mut sum = [0.0; 2];
/// b.read(&x, &mut sum)?;
/// assert_eq!(sum, [3.0, 4.0]);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Reference(());

/// A decoded matrix, row-major.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn row(&self, row: usize) -> Option<&[f32]> {
        self.values.get(row * self.cols..(row + 1) * self.cols)
    }
}

/// Keys and values, each `[layer][slot][num_key_value_heads * head_dim]`: in f32, after any rounding to blocks.
#[derive(Debug)]
pub struct KvStore {
    spec: KvSpec,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvStore {
    fn width(&self) -> usize {
        self.spec.num_key_value_heads * self.spec.head_dim
    }

    fn at(&self, layer: usize, slot: usize) -> usize {
        (layer * self.spec.num_blocks * self.spec.block_size + slot) * self.width()
    }

    /// The store with the encodings in which values are held.
    fn stored(&self) -> KvSpec {
        let key_encodings = vec![Encoding::F32; self.spec.num_layers()];
        KvSpec { key_encodings, value_encoding: Encoding::F32, ..self.spec.clone() }
    }

    /// Where each position of a part of block `block` begins, among the keys or the values.
    fn rows(&self, part: &BlockPart, block: u32) -> impl Iterator<Item = Range<usize>> + use<> {
        let (width, head_dim, size) = (self.width(), self.spec.head_dim, self.spec.block_size);
        let first = self.at(part.layer, block as usize * size) + part.head * head_dim;
        (0..size).map(move |position| first + position * width..first + position * width + head_dim)
    }
}

/// The reference's sizes: as [`crate::backend::StoredSizes`], but K/V in blocks is supported too.
#[derive(Debug, Clone, Copy)]
struct ReferenceSizes;

impl Footprint for ReferenceSizes {
    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        spec.check_encodings("the reference", &KV_ENCODINGS)?;
        Ok(spec.stored_bytes())
    }
}

const KV_ENCODINGS: [Encoding; 3] = [Encoding::F32, Encoding::F16, Encoding::Q8_0];

/// Write keys or values to the store. F16 is stored as f32, which the specification allows; blocks are rounded by
/// [`q8::round`], and heads are whole blocks.
fn store(encoding: Encoding, row: &[f32], out: &mut [f32]) {
    out.copy_from_slice(row);
    if encoding == Encoding::Q8_0 {
        q8::store_and_read(out);
    }
}

impl Reference {
    /// The reference device.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The operands of `op`.
fn operands(op: &str) -> Operands<'_> {
    Operands { device: "reference", op }
}

impl Backend for Reference {
    type Buffer = Vec<f32>;
    type Indices = Vec<u32>;
    type Weight = Matrix;
    type Kv = KvStore;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "reference".into(), precision: Precision::Exact, memory_available: None }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(ReferenceSizes)
    }

    fn alloc(&mut self, len: usize) -> Result<Vec<f32>> {
        size::zeros("len", &[len])
    }

    fn alloc_indices(&mut self, len: usize) -> Result<Vec<u32>> {
        size::zeros("len", &[len])
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<Matrix> {
        let (rows, cols) = (view.rows(), view.cols());
        view.check()?;
        let mut values = size::zeros("rows", &[rows, cols])?;
        let mut out = values.chunks_exact_mut(cols);
        for part in view.parts {
            let mut stored = RowReader::new(part);
            for (row, out) in (0..part.rows).zip(&mut out) {
                stored.decode(row, out)?;
            }
        }
        Ok(Matrix { rows, cols, values })
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<KvStore> {
        if spec.block_size == 0 {
            return Err(Error::argument("block_size", "a K/V block holds at least one position"));
        }
        spec.check_encodings("the reference", &KV_ENCODINGS)?;
        let dimensions = [spec.num_layers(), spec.layer_values()?];
        let (keys, values) = (size::zeros("num_blocks", &dimensions)?, size::zeros("num_blocks", &dimensions)?);
        Ok(KvStore { spec: spec.clone(), keys, values })
    }

    fn write(&mut self, dst: &mut Vec<f32>, src: &[f32]) -> Result<()> {
        operands("write").need("dst", dst.len(), &[src.len()])?;
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn write_indices(&mut self, dst: &mut Vec<u32>, src: &[u32]) -> Result<()> {
        operands("write_indices").need("dst", dst.len(), &[src.len()])?;
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Vec<f32>, dst: &mut [f32]) -> Result<()> {
        operands("read").need("src", src.len(), &[dst.len()])?;
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn read_indices(&mut self, src: &Vec<u32>, dst: &mut [u32]) -> Result<()> {
        operands("read_indices").need("src", src.len(), &[dst.len()])?;
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn copy_blocks(&mut self, kv: &mut KvStore, pairs: &[(u32, u32)]) -> Result<()> {
        let len = kv.spec.block_size * kv.width();
        for &(from, to) in pairs {
            operands("copy_blocks").need("kv", kv.spec.num_blocks, &[(from.max(to) as usize).saturating_add(1)])?;
            for layer in 0..kv.spec.num_layers() {
                let from = kv.at(layer, from as usize * kv.spec.block_size);
                let to = kv.at(layer, to as usize * kv.spec.block_size);
                kv.keys.copy_within(from..from + len, to);
                kv.values.copy_within(from..from + len, to);
            }
        }
        Ok(())
    }

    fn stored_encoding(&self, _: Encoding) -> Encoding {
        Encoding::F32
    }

    fn read_blocks(&mut self, kv: &KvStore, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let stored = kv.stored();
        operands("read_blocks").blocks(&stored, blocks, out.len())?;
        for (&block, out) in blocks.iter().zip(out.chunks_exact_mut(stored.block_bytes().max(1))) {
            for part in stored.block_parts() {
                let from = if part.is_value { &kv.values } else { &kv.keys };
                let values = kv.rows(&part, block).flat_map(|row| &from[row]);
                out[part.bytes].as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, value)| {
                    *out = value.to_le_bytes();
                });
            }
        }
        Ok(())
    }

    fn write_blocks(&mut self, kv: &mut KvStore, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let stored = kv.stored();
        operands("write_blocks").blocks(&stored, blocks, bytes.len())?;
        for (&block, bytes) in blocks.iter().zip(bytes.chunks_exact(stored.block_bytes().max(1))) {
            for part in stored.block_parts() {
                let mut values = bytes[part.bytes.clone()].as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
                for row in kv.rows(&part, block) {
                    let to = if part.is_value { &mut kv.values } else { &mut kv.keys };
                    to[row].iter_mut().zip(&mut values).for_each(|(to, value)| *to = value);
                }
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        operands("embed").need("ids", ids.len(), &[rows])?;
        operands("embed").need("out", out.len(), &[rows, table.cols])?;
        for (&id, out) in ids[..rows].iter().zip(out.chunks_exact_mut(table.cols)) {
            match table.row(id as usize) {
                Some(row) => out.copy_from_slice(row),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        operands("linear").need("x", x.len(), &[rows, w.cols])?;
        operands("linear").need("out", out.len(), &[rows, w.rows])?;
        operands("linear").need("bias", bias.map_or(w.rows, Vec::len), &[w.rows])?;
        for (x, out) in x.chunks_exact(w.cols).zip(out.chunks_exact_mut(w.rows)).take(rows) {
            for (r, (out, w)) in out.iter_mut().zip(w.values.chunks_exact(w.cols)).enumerate() {
                let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                *out = (dot + bias.map_or(0.0, |bias| f64::from(bias[r]))) as f32;
            }
        }
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, hidden_size, out, rows } = op;
        operands("rms_norm").need("x", x.len(), &[rows, hidden_size])?;
        operands("rms_norm").need("weight", weight.len(), &[hidden_size])?;
        operands("rms_norm").need("out", out.len(), &[rows, hidden_size])?;
        if hidden_size == 0 {
            return Ok(());
        }
        for (x, out) in x.chunks_exact(hidden_size).zip(out.chunks_exact_mut(hidden_size)).take(rows) {
            let mean = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / hidden_size as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = (f64::from(*x) * scale * f64::from(*weight)) as f32;
            }
        }
        Ok(())
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        operands("rope").heads(&heads, None)?;
        operands("rope").need("qkv", qkv.len(), &[rows, heads.qkv_size()])?;
        operands("rope").need("cos_sin", cos_sin.len(), &[rows, heads.head_dim])?;
        let half = heads.head_dim / 2;
        for (qkv, cos_sin) in
            qkv.chunks_exact_mut(heads.qkv_size()).zip(cos_sin.chunks_exact(heads.head_dim)).take(rows)
        {
            let (cos, sin) = cos_sin.split_at(half);
            for head in qkv[..heads.q_size() + heads.kv_size()].chunks_exact_mut(heads.head_dim) {
                for i in 0..half {
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * cos[i] - b * sin[i];
                    head[i + half] = b * cos[i] + a * sin[i];
                }
            }
        }
        Ok(())
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        let operands = operands("store_kv");
        operands.heads(&heads, Some((&kv.spec, layer)))?;
        operands.need("qkv", qkv.len(), &[rows, heads.qkv_size()])?;
        operands.slots(slot_mapping, rows, &kv.spec)?;
        for (qkv, &slot) in qkv.chunks_exact(heads.qkv_size()).zip(&slot_mapping[..rows]) {
            if slot == PAD_SLOT {
                continue;
            }
            let (k, v) = qkv[heads.q_size()..].split_at(heads.kv_size());
            let at = kv.at(layer, slot as usize);
            store(kv.spec.key_encodings[layer], k, &mut kv.keys[at..at + k.len()]);
            store(kv.spec.value_encoding, v, &mut kv.values[at..at + v.len()]);
        }
        Ok(())
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        let operands = operands("paged_attention");
        operands.heads(&heads, Some((&kv.spec, layer)))?;
        operands.sequences(inputs, &kv.spec, key)?;
        operands.need("qkv", qkv.len(), &[key.num_tokens, heads.qkv_size()])?;
        operands.need("out", out.len(), &[key.num_tokens, heads.q_size()])?;
        let (head_dim, block_size) = (heads.head_dim, kv.spec.block_size);
        let heads_per_kv = heads.num_attention_heads / heads.num_key_value_heads;
        let scale = 1.0 / (head_dim as f64).sqrt();
        for seq in 0..key.num_seqs {
            let tokens = inputs.cu_seqlens_q[seq] as usize..inputs.cu_seqlens_q[seq + 1] as usize;
            let context_len = inputs.context_lens[seq] as usize;
            let block_table = &inputs.block_tables[seq * inputs.max_blocks_per_seq..][..inputs.max_blocks_per_seq];
            for token in tokens.clone() {
                let visible = context_len - (tokens.end - token) + 1;
                for head in 0..heads.num_attention_heads {
                    let q = &qkv[token * heads.qkv_size() + head * head_dim..][..head_dim];
                    let at = |position: usize| {
                        let slot = block_table[position / block_size] as usize * block_size + position % block_size;
                        kv.at(layer, slot) + head / heads_per_kv * head_dim
                    };
                    let mut scores = vec![0.0; visible];
                    for (position, score) in scores.iter_mut().enumerate() {
                        let k = &kv.keys[at(position)..][..head_dim];
                        *score = scale * q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                    }
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let mut sum = 0.0;
                    let mut weighted = vec![0.0; head_dim];
                    for (position, score) in scores.iter().enumerate() {
                        let p = (score - max).exp();
                        sum += p;
                        let v = &kv.values[at(position)..][..head_dim];
                        weighted.iter_mut().zip(v).for_each(|(w, v)| *w += p * f64::from(*v));
                    }
                    let out = &mut out[token * heads.q_size() + head * head_dim..][..head_dim];
                    out.iter_mut().zip(weighted).for_each(|(out, w)| *out = (w / sum) as f32);
                }
            }
        }
        Ok(())
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        operands("silu_and_mul").need("gate_up", gate_up.len(), &[rows, 2, intermediate_size])?;
        operands("silu_and_mul").need("out", out.len(), &[rows, intermediate_size])?;
        if intermediate_size == 0 {
            return Ok(());
        }
        for (gate_up, out) in
            gate_up.chunks_exact(2 * intermediate_size).zip(out.chunks_exact_mut(intermediate_size)).take(rows)
        {
            let (gate, up) = gate_up.split_at(intermediate_size);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                let gate = f64::from(*gate);
                *out = (gate / (1.0 + (-gate).exp()) * f64::from(*up)) as f32;
            }
        }
        Ok(())
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        operands("add").need("x", x.len(), &[len])?;
        operands("add").need("y", y.len(), &[len])?;
        x[..len].iter_mut().zip(y).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        let AddRows { x, indices, scale, out, out_rows, width, rows } = op;
        operands("add_rows").need("x", x.len(), &[rows, width])?;
        operands("add_rows").need("indices", indices.len(), &[rows])?;
        operands("add_rows").need("out", out.len(), &[out_rows, width])?;
        for (&index, x) in indices[..rows].iter().zip(x.chunks_exact(width.max(1))) {
            let out = out[..out_rows * width].chunks_exact_mut(width.max(1)).nth(index as usize).unwrap_or_default();
            for (out, x) in out.iter_mut().zip(x) {
                *out = (f64::from(*out) + f64::from(scale) * f64::from(*x)) as f32;
            }
        }
        Ok(())
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows } = op;
        operands("gather_rows").need("indices", indices.len(), &[rows])?;
        operands("gather_rows").need("out", out.len(), &[rows, width])?;
        if width == 0 {
            return Ok(());
        }
        for (out, &index) in out.chunks_exact_mut(width).zip(&indices[..rows]) {
            operands("gather_rows").need("x", x.len(), &[(index as usize).saturating_add(1), width])?;
            out.copy_from_slice(&x[index as usize * width..][..width]);
        }
        Ok(())
    }

    fn step(
        &mut self,
        _key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        body(self)
    }
}
