//! [`Backend`] on a wgpu device: each operation checks its sizes, chooses a kernel and queues it.

mod attention;
mod f16_rows;
mod host;
mod kv;
mod norm;
mod product;
mod step;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qwen_core::backend::{
    Add, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd, PagedAttention,
    QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView, composed,
};
use qwen_core::{Backend, Encoding, Error, Footprint, Precision, Result};

use crate::adapter::AdapterInfo;
use crate::footprint::WgpuFootprint;
use crate::gpu::{Array, Gpu};
use crate::kv::Store;
use crate::options::WgpuOptions;
use crate::record::{Dispatch, Grid, Queued, Work};
use crate::shader::Shader;
use crate::stats::WgpuStats;
use crate::weight::Matrix;

pub(crate) use attention::SPAN;
#[cfg(test)]
pub(crate) use attention::{merge_shader, shader as attention_shader};
use host::each_word;
pub(crate) use product::cooperative_shader;
use product::{Activations, Epilogue, TILE_FROM};
#[cfg(test)]
pub(crate) use product::{ProductKernel, ProductShader};
use step::{MULTIPLY_ADDS, Recording, words};

/// Qwen2.5 on a GPU.
///
/// ```no_run
/// use qwen_backend_wgpu::{WgpuBackend, WgpuOptions};
/// let backend = WgpuBackend::new(WgpuOptions::new())?;
/// println!("{}", backend.adapter());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct WgpuBackend {
    gpu: Gpu,
    precision: Precision,
    queued: Queued,
    steps: HashMap<StepKey, Arc<Vec<Dispatch>>>,
    /// Within a step.
    recording: Option<Recording>,
    multiply_adds_per_submission: u64,
    /// Records of attention's spans, and how many numbers they hold.
    records: Option<(Array, usize)>,
    f16_workspace: f16_rows::Workspace,
}

/// Activations of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuBuffer(Numbers);

/// Step inputs of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuIndices {
    numbers: Numbers,
    /// The largest number that the host wrote last.
    largest: Arc<AtomicU32>,
}

/// A matrix of a [`WgpuBackend`], in slabs.
#[derive(Debug)]
pub struct WgpuWeight(Matrix);

/// The K/V store of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuKv(Store);

impl WgpuKv {
    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        &self.0
    }
}

#[derive(Debug)]
struct Numbers {
    array: Array,
    len: usize,
}

impl WgpuBackend {
    /// Open a device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such adapter, with those that were found; [`Error::Device`] when the
    /// driver refuses.
    pub fn new(options: WgpuOptions) -> Result<Self> {
        Ok(Self::on(Gpu::open(&options)?, options.precision))
    }

    pub(crate) fn on(gpu: Gpu, precision: Precision) -> Self {
        WgpuBackend {
            gpu,
            precision,
            queued: Queued::default(),
            steps: HashMap::new(),
            recording: None,
            multiply_adds_per_submission: MULTIPLY_ADDS,
            records: None,
            f16_workspace: f16_rows::Workspace::default(),
        }
    }

    /// The adapter behind this backend.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.gpu.info
    }

    /// The optional features of the API that it was opened with, by name.
    pub fn features(&self) -> Vec<&'static str> {
        self.gpu.device.features().iter_names().map(|(name, _)| name).collect()
    }

    /// What it has done so far.
    pub fn stats(&self) -> WgpuStats {
        self.gpu.stats.clone()
    }

    #[cfg(test)]
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    #[cfg(test)]
    pub(crate) fn gpu_mut(&mut self) -> &mut Gpu {
        &mut self.gpu
    }

    /// The first `words` of `array`.
    #[cfg(test)]
    pub(crate) fn read_array(&mut self, array: &Array, words: usize) -> Vec<u32> {
        let mut read = vec![0; words];
        let numbers = Numbers { array: array.clone(), len: words };
        self.read_indices(&WgpuIndices { numbers, largest: Arc::default() }, &mut read).unwrap();
        read
    }

    #[cfg(test)]
    pub(crate) fn submit_after(&mut self, multiply_adds: u64) {
        self.multiply_adds_per_submission = multiply_adds;
    }

    fn misfit(&self, op: &str, reason: String) -> Error {
        self.gpu.error(op, reason)
    }

    fn need(&self, op: &str, name: &str, numbers: &Numbers, needed: usize) -> Result<()> {
        match numbers.len < needed {
            true => Err(self.misfit(op, format!("`{name}` holds {} values, {needed} are needed", numbers.len))),
            false => Ok(()),
        }
    }

    fn numbers(&mut self, len: usize) -> Result<Numbers> {
        Ok(Numbers { array: self.gpu.array("activations", len)?, len })
    }
}

fn encoding_flag(shader: Shader, encoding: Encoding) -> Shader {
    shader.flag(match encoding {
        Encoding::Bf16 => "BF16",
        Encoding::F16 => "F16",
        _ => "F32",
    })
}

impl Backend for WgpuBackend {
    type Buffer = WgpuBuffer;
    type Indices = WgpuIndices;
    type Weight = WgpuWeight;
    type Kv = WgpuKv;

    fn info(&self) -> DeviceInfo {
        let AdapterInfo { name, api, memory, .. } = &self.gpu.info;
        DeviceInfo { name: format!("wgpu ({name}, {api})"), precision: self.precision, memory_available: *memory }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(WgpuFootprint::opened(&self.gpu.limits, self.gpu.cooperative.is_some()))
    }

    fn alloc(&mut self, len: usize) -> Result<WgpuBuffer> {
        Ok(WgpuBuffer(self.numbers(len)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<WgpuIndices> {
        Ok(WgpuIndices { numbers: self.numbers(len)?, largest: Arc::default() })
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<WgpuWeight> {
        Ok(WgpuWeight(Matrix::load(&mut self.gpu, view)?))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<WgpuKv> {
        Ok(WgpuKv(Store::new(&mut self.gpu, spec)?))
    }

    fn write(&mut self, dst: &mut WgpuBuffer, src: &[f32]) -> Result<()> {
        self.write_words("write", &dst.0, src.iter().map(|value| value.to_le_bytes()))
    }

    fn write_indices(&mut self, dst: &mut WgpuIndices, src: &[u32]) -> Result<()> {
        self.write_words("write_indices", &dst.numbers, src.iter().map(|value| value.to_le_bytes()))?;
        dst.largest.store(src.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    fn read(&mut self, src: &WgpuBuffer, dst: &mut [f32]) -> Result<()> {
        self.read_words("read", &src.0, dst.len(), |bytes| {
            dst.iter_mut().zip(each_word(bytes)).for_each(|(dst, word)| *dst = f32::from_le_bytes(word));
        })
    }

    fn read_indices(&mut self, src: &WgpuIndices, dst: &mut [u32]) -> Result<()> {
        self.read_words("read_indices", &src.numbers, dst.len(), |bytes| {
            dst.iter_mut().zip(each_word(bytes)).for_each(|(dst, word)| *dst = u32::from_le_bytes(word));
        })
    }

    fn copy_blocks(&mut self, kv: &mut WgpuKv, pairs: &[(u32, u32)]) -> Result<()> {
        self.copy_pairs(&kv.0, pairs)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.queued.flush(&mut self.gpu, "synchronize")?;
        self.gpu.wait("synchronize")
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        let (op, layout) = ("embed", &table.0.layout);
        self.need(op, "ids", &ids.numbers, rows)?;
        self.need(op, "out", &out.0, rows * layout.cols)?;
        if layout.gate_up {
            return Err(self.misfit(op, "a gate and up matrix is no table".into()));
        }
        let shader = encoding_flag(Shader::new(op), layout.encoding);
        for piece in self.pieces(op, rows, &[layout.cols])? {
            for (pairs, slab) in layout.slabs.iter().zip(&table.0.slabs) {
                let first = 2 * pairs.start;
                let held = (2 * pairs.end).min(layout.rows).saturating_sub(first);
                let params = [piece.start, layout.cols, layout.chunks(), first, held, layout.rows];
                let bindings =
                    [ids.numbers.array.read(0..rows), slab.read_all(), out.0.array.write(words(&piece, layout.cols))];
                self.queue_rows(op, &shader, &bindings, &params, (layout.chunks(), piece.len()))?;
            }
        }
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        let width = w.0.layout.rows;
        self.need("linear", "out", &out.0, rows * width)?;
        if let Some(bias) = bias {
            self.need("linear", "bias", &bias.0, width)?;
        }
        let epilogue = Epilogue::Write { out: &out.0, bias: bias.map(|bias| &bias.0) };
        self.product("linear", Activations::plain(x), &w.0, rows, &epilogue)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        self.norm("rms_norm", &x.0, None, &weight.0, eps, &out.0, hidden_size, rows)
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        let op = "rope";
        self.need(op, "qkv", &qkv.0, rows * heads.qkv_size())?;
        self.need(op, "cos_sin", &cos_sin.0, rows * heads.head_dim)?;
        let half_dim = heads.head_dim / 2;
        let pairs = (heads.num_attention_heads + heads.num_key_value_heads) * half_dim;
        for piece in self.pieces(op, rows, &[heads.qkv_size()])? {
            let params = [heads.qkv_size(), half_dim, pairs, piece.start];
            let bindings =
                [qkv.0.array.write(words(&piece, heads.qkv_size())), cos_sin.0.array.read(0..rows * heads.head_dim)];
            self.queue_rows(op, &Shader::new(op), &bindings, &params, (pairs, piece.len()))?;
        }
        Ok(())
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        self.store_rows(&qkv.0, &slot_mapping.numbers, &kv.0, layer, heads, rows)
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        self.attention(&qkv.0, &kv.0, layer, heads, inputs, &out.0, key)
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        let (op, len) = ("silu_and_mul", rows * intermediate_size);
        self.need(op, "gate_up", &gate_up.0, 2 * len)?;
        self.need(op, "out", &out.0, len)?;
        for piece in self.pieces(op, rows, &[2 * intermediate_size, intermediate_size])? {
            let bindings = [
                gate_up.0.array.read(words(&piece, 2 * intermediate_size)),
                out.0.array.write(words(&piece, intermediate_size)),
            ];
            let size = (intermediate_size, piece.len());
            self.queue_rows(op, &Shader::new(op), &bindings, &[intermediate_size], size)?;
        }
        Ok(())
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        self.need("add", "x", &x.0, len)?;
        self.need("add", "y", &y.0, len)?;
        let width = len.min(1 << 16);
        for piece in self.pieces("add", len, &[1])? {
            let bindings = [x.0.array.write(piece.clone()), y.0.array.read(piece.clone())];
            let size = (width, piece.len().div_ceil(width));
            self.queue_rows("add", &Shader::new("add"), &bindings, &[piece.len(), width], size)?;
        }
        Ok(())
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows } = op;
        let op = "gather_rows";
        self.need(op, "indices", &indices.numbers, rows)?;
        self.need(op, "out", &out.0, rows * width)?;
        let held = x.0.len.checked_div(width).unwrap_or(0);
        for piece in self.pieces(op, rows, &[width])? {
            // Each piece of the source gives the rows that lie in it.
            for source in self.pieces(op, held, &[width])? {
                let bindings = [
                    x.0.array.read(words(&source, width)),
                    indices.numbers.array.read(0..rows),
                    out.0.array.write(words(&piece, width)),
                ];
                let params = [width, piece.start, source.start, source.len()];
                self.queue_rows(op, &Shader::new(op), &bindings, &params, (width, piece.len()))?;
            }
        }
        Ok(())
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        let Argmax { x, out, width, valid, rows } = op;
        let op = "argmax";
        self.need(op, "x", &x.0, rows * width)?;
        self.need(op, "out", &out.numbers, rows)?;
        for piece in self.pieces(op, rows, &[width])? {
            let bindings = [x.0.array.read(words(&piece, width)), out.numbers.array.write(0..rows)];
            let params = [width, valid.min(width), piece.start].map(|param| param as u32);
            self.queue(
                op,
                &Shader::new(op),
                &bindings,
                &params,
                Grid::Fixed([piece.len() as u32, 1, 1]),
                Work::default(),
            )?;
        }
        Ok(())
    }

    fn qkv_rope_store(&mut self, mut op: QkvRopeStore<'_, Self>) -> Result<()> {
        if !self.fuses_norm(op.rows, 9) {
            op.x = composed::normed(self, op.norm.take(), op.x, op.rows)?;
        }
        match self.fused_heads("qkv_rope_store", op.norm.as_ref(), &op)? {
            true => Ok(()),
            false => composed::qkv_rope_store(self, op),
        }
    }

    fn gate_up_silu(&mut self, mut op: GateUpSilu<'_, Self>) -> Result<()> {
        let layout = &op.w.0.layout;
        if !layout.gate_up || layout.rows != 2 * op.intermediate_size {
            return composed::gate_up_silu(self, op);
        }
        if !self.fuses_norm(op.rows, 4) {
            op.x = composed::normed(self, op.norm.take(), op.x, op.rows)?;
        }
        let GateUpSilu { norm, x, w, out, intermediate_size, rows, .. } = op;
        let name = "gate_up_silu";
        self.need(name, "out", &out.0, rows * intermediate_size)?;
        let activations = match &norm {
            Some(norm) => Activations::normed(x, norm),
            None => Activations::plain(x),
        };
        self.product(name, activations, &w.0, rows, &Epilogue::Silu { out: &out.0 })
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        if op.group.is_some() {
            return composed::linear_add(self, op);
        }
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let width = w.0.layout.rows;
        if width != hidden_size {
            return Err(self.misfit("linear_add", format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        self.need("linear_add", "residual", &residual.0, rows * width)?;
        let epilogue = Epilogue::Add { residual: &residual.0 };
        self.product("linear_add", Activations::plain(x), &w.0, rows, &epilogue)
    }

    fn warmup_shapes(&self) -> Vec<StepKey> {
        // Tokens of one and of two conversations, a short prompt and a long one: each takes other kernels.
        let tokens = |n| StepKey { num_tokens: n, num_seqs: n, num_logits: n, max_seqlen_q: 1 };
        let prompt = |n| StepKey { num_tokens: n, num_seqs: 1, num_logits: 1, max_seqlen_q: n };
        vec![tokens(1), tokens(2), prompt(2), prompt(TILE_FROM)]
    }

    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.run_step(key, interrupt, body)
    }
}
