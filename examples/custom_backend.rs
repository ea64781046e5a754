//! A backend defined outside the workspace's crates, and a chat that runs on it.
//!
//! ```text
//! cargo run --release --example custom_backend -- "Hello!" path/to/Qwen2.5-0.5B-Instruct
//! ```
//!
//! Without arguments it greets the demo checkpoint of this repository.
//!
//! [`RowMajor`] keeps everything as rows of f32, accumulates products in sixteen sums that the compiler turns into
//! vector instructions, and divides large operations among threads. It implements only the base operations of
//! [`Backend`]; the fused ones are composed of them. `tests/custom_backend.rs` runs the conformance suite on it;
//! `docs/writing-a-backend.md` goes through the steps and says what to do next for speed.

use std::ops::Range;

use qwen::core::backend::{
    Add, BlockPart, DeviceInfo, Embed, GatherRows, HeadLayout, Interrupt, KvSpec, Linear, PAD_SLOT, PagedAttention,
    RmsNorm, Rope, RowReader, SiluAndMul, StepKey, StoreKv, WeightShape, WeightView, host::Operands,
};
use qwen::core::numerics::size;
use qwen::core::{Backend, Encoding, Error, Footprint, Precision, Result};

mod demo;
mod failure;

fn main() -> std::result::Result<(), failure::Failure> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "Hello!".into());
    let path = args.next().map_or_else(demo::path, |path| Ok(path.into()))?;
    let engine = qwen::EngineOptions::new().load_with_backend(RowMajor::with_all_cores(), path)?;
    eprintln!("on {}", engine.device_name());
    println!("{}", engine.chat().send(prompt)?.text()?);
    Ok(())
}

/// A device that holds rows of f32.
#[derive(Debug, Clone)]
pub(crate) struct RowMajor {
    threads: usize,
}

type Floats = Vec<f32>;
type Ids = Vec<u32>;

/// A decoded matrix.
#[derive(Debug)]
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    values: Floats,
}

/// `[layer][slot][keys of all heads, then their values]`.
#[derive(Debug)]
pub(crate) struct Kv {
    spec: KvSpec,
    values: Floats,
}

impl Kv {
    fn at(&self, layer: usize, slot: usize) -> usize {
        let slots = self.spec.num_blocks * self.spec.block_size;
        (layer * slots + slot) * 2 * self.spec.num_key_value_heads * self.spec.head_dim
    }
}

impl Kv {
    /// The store as its blocks leave it.
    fn stored(&self) -> KvSpec {
        let key_encodings = vec![Encoding::F32; self.spec.num_layers()];
        KvSpec { key_encodings, value_encoding: Encoding::F32, ..self.spec.clone() }
    }

    /// Where the positions of a part of block `block` are.
    fn rows(&self, part: &BlockPart, block: u32) -> impl Iterator<Item = Range<usize>> + use<> {
        let (heads, dim, size) = (self.spec.num_key_value_heads, self.spec.head_dim, self.spec.block_size);
        let head = part.head + if part.is_value { heads } else { 0 };
        let first = self.at(part.layer, block as usize * size) + head * dim;
        (0..size).map(move |position| first + 2 * position * heads * dim).map(move |at| at..at + dim)
    }
}

impl RowMajor {
    /// A device with a thread for each core.
    pub(crate) fn with_all_cores() -> Self {
        RowMajor { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }

    /// Call `f` with the index and the values of each row. A row is computed by one thread, so that the number of
    /// threads does not change results.
    fn for_each_row(&self, work: usize, values: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        // Threads are not worth starting for fewer multiplications.
        let threads = if work < 1 << 20 { 1 } else { self.threads };
        let share = (values.len() / width).div_ceil(threads).max(1);
        let run = |first, part: &mut [f32]| {
            part.chunks_exact_mut(width).enumerate().for_each(|(i, row)| f(first + i, row));
        };
        let (mine, others) = values.split_at_mut(values.len().min(share * width));
        std::thread::scope(|scope| {
            for (n, part) in others.chunks_mut(share * width).enumerate() {
                scope.spawn(move || run((n + 1) * share, part));
            }
            run(0, mine);
        });
    }
}

/// The sum of products, always in the same order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (a, b) = (a.chunks_exact(sums.len()), b.chunks_exact(sums.len()));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

// The sizes for the plan before loading: all encodings become f32.
impl Footprint for RowMajor {
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        Ok(size::bytes(4, &[shape.rows(), shape.cols]))
    }
}

/// Checks for the operands of `op`: an operation may be asked for more than its buffers hold.
fn operands(op: &str) -> Operands<'_> {
    Operands { device: "row-major example", op }
}

impl Backend for RowMajor {
    type Buffer = Floats;
    type Indices = Ids;
    type Weight = Matrix;
    type Kv = Kv;

    fn info(&self) -> DeviceInfo {
        let name = format!("row-major example ({} threads)", self.threads);
        DeviceInfo { name, precision: Precision::Exact, memory_available: None }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(self.clone())
    }

    fn alloc(&mut self, len: usize) -> Result<Floats> {
        size::zeros("len", &[len])
    }

    fn alloc_indices(&mut self, len: usize) -> Result<Ids> {
        size::zeros("len", &[len])
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<Matrix> {
        view.check()?;
        let (rows, cols) = (view.rows(), view.cols());
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

    fn kv(&mut self, spec: &KvSpec) -> Result<Kv> {
        // Q8_0 prescribes how values are rounded, so it is refused; storing more bits than asked for is allowed.
        spec.check_encodings("this example", &[Encoding::F32, Encoding::F16])?;
        let values = size::zeros("num_blocks", &[spec.num_layers(), spec.layer_values()?, 2])?;
        Ok(Kv { spec: spec.clone(), values })
    }

    fn copy_blocks(&mut self, kv: &mut Kv, pairs: &[(u32, u32)]) -> Result<()> {
        let last = pairs.iter().map(|pair| pair.0.max(pair.1) as usize).max();
        operands("copy_blocks").need("kv", kv.spec.num_blocks, &[last.map_or(0, |last| last.saturating_add(1))])?;
        for layer in 0..kv.spec.num_layers() {
            for &(from, to) in pairs {
                let at = |block: u32| kv.at(layer, block as usize * kv.spec.block_size);
                let (block, to) = (at(from)..at(from + 1), at(to));
                kv.values.copy_within(block, to);
            }
        }
        Ok(())
    }

    fn stored_encoding(&self, _: Encoding) -> Encoding {
        Encoding::F32
    }

    fn read_blocks(&mut self, kv: &Kv, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let stored = kv.stored();
        operands("read_blocks").blocks(&stored, blocks, out.len())?;
        for (&block, out) in blocks.iter().zip(out.chunks_exact_mut(stored.block_bytes())) {
            for part in stored.block_parts() {
                let values = kv.rows(&part, block).flat_map(|row| &kv.values[row]);
                let out = out[part.bytes].as_chunks_mut().0;
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
            }
        }
        Ok(())
    }

    fn write_blocks(&mut self, kv: &mut Kv, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let stored = kv.stored();
        operands("write_blocks").blocks(&stored, blocks, bytes.len())?;
        for (&block, bytes) in blocks.iter().zip(bytes.chunks_exact(stored.block_bytes())) {
            for part in stored.block_parts() {
                let mut values = bytes[part.bytes.clone()].as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
                for row in kv.rows(&part, block) {
                    kv.values[row].iter_mut().zip(&mut values).for_each(|(to, value)| *to = value);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, dst: &mut Floats, src: &[f32]) -> Result<()> {
        operands("write").need("dst", dst.len(), &[src.len()])?;
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn write_indices(&mut self, dst: &mut Ids, src: &[u32]) -> Result<()> {
        operands("write_indices").need("dst", dst.len(), &[src.len()])?;
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Floats, dst: &mut [f32]) -> Result<()> {
        operands("read").need("src", src.len(), &[dst.len()])?;
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn read_indices(&mut self, src: &Ids, dst: &mut [u32]) -> Result<()> {
        operands("read_indices").need("src", src.len(), &[dst.len()])?;
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    // Every operation has completed when its call returns: there is nothing to wait for.
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, _: StepKey, stop: &Interrupt, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if stop.is_raised() { Err(Error::Cancelled) } else { body(self) }
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        let op = operands("embed");
        op.need("ids", ids.len(), &[rows])?;
        op.need("out", out.len(), &[rows, table.cols])?;
        for (out, &id) in out.chunks_exact_mut(table.cols).zip(&ids[..rows]) {
            match table.values.chunks_exact(table.cols).nth(id as usize) {
                Some(row) => out.copy_from_slice(row),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        let op = operands("linear");
        op.need("x", x.len(), &[rows, w.cols])?;
        op.need("out", out.len(), &[rows, w.rows])?;
        op.need("bias", bias.map_or(w.rows, Vec::len), &[w.rows])?;
        self.for_each_row(rows * w.values.len(), &mut out[..rows * w.rows], 1, |at, out| {
            let (token, row) = (at / w.rows, at % w.rows);
            let product = dot(&x[token * w.cols..][..w.cols], &w.values[row * w.cols..][..w.cols]);
            out[0] = product + bias.map_or(0.0, |bias| bias[row]);
        });
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight: w, eps, out, hidden_size: n, rows } = op;
        let op = operands("rms_norm");
        op.need("x", x.len(), &[rows, n])?;
        op.need("weight", w.len(), &[n])?;
        op.need("out", out.len(), &[rows, n])?;
        if n == 0 {
            return Ok(());
        }
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)).take(rows) {
            let scale = 1.0 / (dot(x, x) / n as f32 + eps).sqrt();
            out.iter_mut().zip(x).zip(w).for_each(|((out, x), w)| *out = x * scale * w);
        }
        Ok(())
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        let op = operands("rope");
        op.heads(&heads, None)?;
        op.need("qkv", qkv.len(), &[rows, heads.qkv_size()])?;
        op.need("cos_sin", cos_sin.len(), &[rows, heads.head_dim])?;
        let angles = cos_sin.chunks_exact(heads.head_dim);
        for (token, angles) in qkv.chunks_exact_mut(heads.qkv_size()).zip(angles).take(rows) {
            let (cos, sin) = angles.split_at(heads.head_dim / 2);
            for head in token[..heads.q_size() + heads.kv_size()].chunks_exact_mut(heads.head_dim) {
                let (a, b) = head.split_at_mut(heads.head_dim / 2);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
        Ok(())
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping: slots, kv, layer, heads, rows } = op;
        let op = operands("store_kv");
        op.heads(&heads, Some((&kv.spec, layer)))?;
        op.need("qkv", qkv.len(), &[rows, heads.qkv_size()])?;
        op.slots(slots, rows, &kv.spec)?;
        for (token, &slot) in qkv.chunks_exact(heads.qkv_size()).zip(&slots[..rows]) {
            if slot != PAD_SLOT {
                let at = kv.at(layer, slot as usize);
                kv.values[at..][..2 * heads.kv_size()].copy_from_slice(&token[heads.q_size()..]);
            }
        }
        Ok(())
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        let op = operands("paged_attention");
        op.heads(&heads, Some((&kv.spec, layer)))?;
        op.sequences(inputs, &kv.spec, key)?;
        op.need("qkv", qkv.len(), &[key.num_tokens, heads.qkv_size()])?;
        op.need("out", out.len(), &[key.num_tokens, heads.q_size()])?;
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = heads;
        let (sums, contexts) = (&inputs.cu_seqlens_q[..=key.num_seqs], &inputs.context_lens[..key.num_seqs]);
        let work = key.num_tokens * heads.q_size() * contexts.iter().max().map_or(0, |len| *len as usize);
        self.for_each_row(work, &mut out[..key.num_tokens * heads.q_size()], heads.q_size(), |token, out| {
            let end = sums.partition_point(|sum| *sum as usize <= token);
            let Some(&next) = sums.get(end) else { return }; // Padding: its row is never read.
            let visible = contexts[end - 1] as usize - (next as usize - token) + 1;
            let blocks = &inputs.block_tables[(end - 1) * inputs.max_blocks_per_seq..];
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let q = &qkv[token * heads.qkv_size() + head * head_dim..][..head_dim];
                // Softmax in one pass: the sums so far are rescaled when a larger score appears.
                let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
                out.fill(0.0);
                for position in 0..visible {
                    let block = blocks[position / kv.spec.block_size] as usize;
                    let slot = block * kv.spec.block_size + position % kv.spec.block_size;
                    let at = kv.at(layer, slot) + head * num_key_value_heads / num_attention_heads * head_dim;
                    let score = dot(q, &kv.values[at..][..head_dim]) / (head_dim as f32).sqrt();
                    let shrink = (max - max.max(score)).exp();
                    max = max.max(score);
                    let weight = (score - max).exp();
                    sum = sum * shrink + weight;
                    let values = &kv.values[at + heads.kv_size()..][..head_dim];
                    out.iter_mut().zip(values).for_each(|(out, v)| *out = *out * shrink + weight * v);
                }
                out.iter_mut().for_each(|out| *out /= sum);
            }
        });
        Ok(())
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size: width, rows } = op;
        let op = operands("silu_and_mul");
        op.need("gate_up", gate_up.len(), &[rows, 2, width])?;
        op.need("out", out.len(), &[rows, width])?;
        if width == 0 {
            return Ok(());
        }
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)).take(rows) {
            let (gate, up) = gate_up.split_at(width);
            out.iter_mut().zip(gate).zip(up).for_each(|((out, gate), up)| *out = gate / (1.0 + (-gate).exp()) * up);
        }
        Ok(())
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        operands("add").need("x", x.len(), &[len])?;
        operands("add").need("y", y.len(), &[len])?;
        x.iter_mut().zip(&y[..len]).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices: ids, out, width, rows } = op;
        let op = operands("gather_rows");
        op.need("indices", ids.len(), &[rows])?;
        op.need("out", out.len(), &[rows, width])?;
        if width == 0 {
            return Ok(());
        }
        for (out, &row) in out.chunks_exact_mut(width).zip(&ids[..rows]) {
            op.need("x", x.len(), &[(row as usize).saturating_add(1), width])?;
            out.copy_from_slice(&x[row as usize * width..][..width]);
        }
        Ok(())
    }
}
