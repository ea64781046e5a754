//! [`Backend`] on a CUDA card: each operation checks its arrays, chooses a kernel and queues it.

mod attention;
mod product;
mod steps;

use std::sync::Arc;

use qwen_core::backend::{
    Add, AllReduce, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, HeadLayout, Interrupt, KvSpec, Linear,
    LinearAdd, PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView, composed,
};
use qwen_core::collective::Collective;
use qwen_core::{Backend, Error, Footprint, Precision, Result};

use crate::card_info::CardInfo;
use crate::driver::{Array, Driver, card::Card};
use crate::footprint::CudaFootprint;
use crate::geometry::ELEMENT_THREADS;
use crate::gpu::{Args, Gpu, Work};
use crate::kernel::Kernel;
use crate::kv::{self, Store};
use crate::nccl::{Deed, NcclGroup};
use crate::options::CudaOptions;
use crate::params;
use crate::weight::Matrix;

use product::Epilogue;
use steps::Steps;

/// Qwen2.5 on a CUDA card.
///
/// ```no_run
/// use qwen_backend_cuda::{CudaBackend, CudaOptions};
/// let backend = CudaBackend::new(CudaOptions::new())?;
/// println!("{}", backend.card());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct CudaBackend {
    gpu: Gpu,
    precision: Precision,
    steps: Steps,
    /// Activations rounded for tensor cores, and the factors of their rows.
    halves: Option<Array>,
    scales: Option<Array>,
    /// The longest row of halves that a matrix of this backend is multiplied with.
    widest_stride: usize,
    /// Records of attention's spans.
    records: Option<Array>,
    /// The pairs of `copy_blocks`, at most one for each block.
    pairs: Option<Array>,
}

/// Activations of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaBuffer(Numbers);

/// Step inputs of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaIndices(Numbers);

/// A matrix of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaWeight(Matrix);

/// The K/V store of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaKv(Store);

/// An array of 32-bit numbers.
#[derive(Debug)]
struct Numbers {
    array: Array,
    len: usize,
}

impl CudaBackend {
    /// Open a card.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no driver, no such card, or one that the kernels do not run on, with what
    /// was found; [`Error::Device`] when the driver refuses.
    pub fn new(options: CudaOptions) -> Result<Self> {
        #[cfg(feature = "emulator")]
        if let Some(card) = &options.emulated {
            return Ok(Self::on(Arc::new(crate::driver::emulated::Emulated::new(card.clone())), &options));
        }
        Ok(Self::on(Arc::new(Card::open(options.ordinal)?), &options))
    }

    pub(crate) fn on(driver: Arc<dyn Driver>, options: &CudaOptions) -> Self {
        CudaBackend {
            gpu: Gpu::new(driver, options.wait_after_each_kernel),
            precision: options.precision,
            steps: Steps::new(!options.wait_after_each_kernel),
            halves: None,
            scales: None,
            widest_stride: 0,
            records: None,
            pairs: None,
        }
    }

    /// The card behind this backend.
    pub fn card(&self) -> &CardInfo {
        self.gpu.info()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        self.gpu.driver()
    }

    fn misfit(&self, op: &str, reason: String) -> Error {
        self.gpu.error(op, reason)
    }

    fn numbers(&mut self, what: &str, len: usize) -> Result<Numbers> {
        Ok(Numbers { array: self.gpu.array(what, 4 * len)?, len })
    }

    /// Queue `work`, or record it as a part of the step that is being recorded.
    fn queue(&mut self, work: Option<Work>) -> Result<()> {
        match (work, &mut self.steps.recording) {
            (None, _) => Ok(()),
            (Some(work), Some(recording)) => {
                recording.work.push(work);
                Ok(())
            }
            (Some(work), None) => self.gpu.issue(&work),
        }
    }

    /// Queue a kernel that treats rows of activations.
    fn queue_rows(&mut self, kernel: Kernel, args: RowArgs<'_>, grid: [usize; 3]) -> Result<()> {
        let RowArgs { op, x, x_len, indices, out, out_len, rows, width } = args;
        let mut args = Args::new(&self.gpu, op);
        let params = params::Rows {
            x: args.take("x", &x.array, 4 * x_len)?,
            indices: match indices {
                Some(indices) => args.take("indices", &indices.array, 4 * rows)?,
                None => params::Address::NULL,
            },
            out: args.take("out", &out.array, 4 * out_len)?,
            rows: self.number(op, rows)?,
            width: self.number(op, width)?,
        };
        let work = args.launch(kernel, grid, &params)?;
        self.queue(work)
    }

    /// A size as kernels take it.
    fn number(&self, op: &str, size: usize) -> Result<u32> {
        u32::try_from(size).map_err(|_| self.misfit(op, format!("{size} exceeds what kernels count to")))
    }

    /// `x += y` where there is a `y`, then `out = rms_norm(x)`.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the operation")]
    fn norm(
        &mut self,
        op: &'static str,
        x: &Numbers,
        y: Option<&Numbers>,
        weight: &Numbers,
        eps: f32,
        out: &Numbers,
        hidden_size: usize,
        rows: usize,
    ) -> Result<()> {
        let bytes = 4 * rows * hidden_size;
        let mut args = Args::new(&self.gpu, op);
        let params = params::RmsNorm {
            x: args.take("x", &x.array, bytes)?,
            y: match y {
                Some(y) => args.take("y", &y.array, bytes)?,
                None => params::Address::NULL,
            },
            weight: args.take("weight", &weight.array, 4 * hidden_size)?,
            out: args.take("out", &out.array, bytes)?,
            hidden_size: self.number(op, hidden_size)?,
            rows: self.number(op, rows)?,
            eps,
            unused: 0,
        };
        let work = args.launch(Kernel::RmsNorm, [rows, 1, 1], &params)?;
        self.queue(work)
    }

    /// Queue `rope` or `store_kv`.
    fn heads(&mut self, op: &'static str, kernel: Kernel, args: HeadArgs<'_>) -> Result<()> {
        let HeadArgs { qkv, cos_sin, slots, heads, rows } = args;
        let mut args = Args::new(&self.gpu, op);
        let mut params = params::Heads {
            qkv: args.take("qkv", &qkv.array, 4 * rows * heads.qkv_size())?,
            rows: self.number(op, rows)?,
            num_attention_heads: self.number(op, heads.num_attention_heads)?,
            num_key_value_heads: self.number(op, heads.num_key_value_heads)?,
            head_dim: self.number(op, heads.head_dim)?,
            ..params::Heads::default()
        };
        if let Some(cos_sin) = cos_sin {
            params.cos_sin = args.take("cos_sin", &cos_sin.array, 4 * rows * heads.head_dim)?;
        }
        if let Some((slot_mapping, store, layer)) = slots {
            let held = &store.layers[layer];
            params.slot_mapping = args.take("slot_mapping", &slot_mapping.array, 4 * rows)?;
            params.keys = args.take("keys", &held.keys, held.key_element.bytes(store.layer_values()))?;
            params.values = args.take("values", &held.values, held.value_element.bytes(store.layer_values()))?;
            params.num_slots = self.number(op, store.num_slots())?;
            (params.key_encoding, params.value_encoding) = (held.key_element.code(), held.value_element.code());
        }
        let work = args.launch(kernel, [rows, 1, 1], &params)?;
        self.queue(work)
    }

    /// A write or read by the host: within a step, what was recorded so far has to run before it.
    fn host_access(&mut self) -> Result<()> {
        let Some(recording) = &mut self.steps.recording else { return Ok(()) };
        recording.replayable = false;
        for work in std::mem::take(&mut recording.work) {
            self.gpu.issue(&work)?;
        }
        Ok(())
    }

    fn check_heads(&self, op: &str, heads: &HeadLayout) -> Result<()> {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
        let divides = num_key_value_heads > 0 && num_attention_heads.is_multiple_of(num_key_value_heads);
        match divides && head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= 256 {
            true => Ok(()),
            false => {
                Err(self.misfit(op, format!("{heads:?}: heads of 8, 16, ... 256 values, K/V heads that divide them")))
            }
        }
    }

    fn check_store(&self, op: &str, store: &Store, layer: usize, heads: &HeadLayout) -> Result<()> {
        self.check_heads(op, heads)?;
        let spec = &store.spec;
        let fits = layer < store.layers.len()
            && spec.num_key_value_heads == heads.num_key_value_heads
            && spec.head_dim == heads.head_dim;
        match fits {
            true => Ok(()),
            false => Err(self.misfit(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}"))),
        }
    }
}

/// What `queue_rows` is given.
struct RowArgs<'a> {
    op: &'static str,
    x: &'a Numbers,
    x_len: usize,
    indices: Option<&'a Numbers>,
    out: &'a Numbers,
    out_len: usize,
    rows: usize,
    width: usize,
}

/// What `heads` is given.
struct HeadArgs<'a> {
    qkv: &'a Numbers,
    cos_sin: Option<&'a Numbers>,
    slots: Option<(&'a Numbers, &'a Store, usize)>,
    heads: HeadLayout,
    rows: usize,
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Indices = CudaIndices;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn info(&self) -> DeviceInfo {
        let CardInfo { name, ordinal, compute_capability: (major, minor), .. } = self.card();
        DeviceInfo {
            name: format!("cuda:{ordinal} ({name}, {major}.{minor})"),
            precision: self.precision,
            memory_available: self.driver().free_bytes(),
        }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(CudaFootprint::on(self.card(), self.precision))
    }

    fn alloc(&mut self, len: usize) -> Result<CudaBuffer> {
        Ok(CudaBuffer(self.numbers("activations", len)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<CudaIndices> {
        Ok(CudaIndices(self.numbers("step inputs", len)?))
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<CudaWeight> {
        let matrix = Matrix::load(&mut self.gpu, view)?;
        if self.by_tensor_cores(&matrix) {
            self.widest_stride = self.widest_stride.max(matrix.layout.stride);
        }
        Ok(CudaWeight(matrix))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<CudaKv> {
        let store = Store::new(&mut self.gpu, spec)?;
        self.pairs = Some(self.gpu.array("pairs of blocks", kv::pairs_bytes(spec))?);
        Ok(CudaKv(store))
    }

    fn write(&mut self, dst: &mut CudaBuffer, src: &[f32]) -> Result<()> {
        self.check_len("write", "dst", &dst.0, src.len())?;
        self.host_access()?;
        self.gpu.write_f32("write", &dst.0.array, src)
    }

    fn write_indices(&mut self, dst: &mut CudaIndices, src: &[u32]) -> Result<()> {
        self.check_len("write_indices", "dst", &dst.0, src.len())?;
        self.host_access()?;
        self.gpu.write_u32("write_indices", &dst.0.array, src)
    }

    fn read(&mut self, src: &CudaBuffer, dst: &mut [f32]) -> Result<()> {
        self.check_len("read", "src", &src.0, dst.len())?;
        self.host_access()?;
        self.gpu.read_f32("read", &src.0.array, dst)
    }

    fn read_indices(&mut self, src: &CudaIndices, dst: &mut [u32]) -> Result<()> {
        self.check_len("read_indices", "src", &src.0, dst.len())?;
        self.host_access()?;
        self.gpu.read_u32("read_indices", &src.0.array, dst)
    }

    fn copy_blocks(&mut self, kv: &mut CudaKv, pairs: &[(u32, u32)]) -> Result<()> {
        let op = "copy_blocks";
        let spec = &kv.0.spec;
        if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= spec.num_blocks) {
            return Err(self.misfit(op, format!("{pair:?} of {} blocks", spec.num_blocks)));
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let flat: Vec<u32> = pairs.iter().flat_map(|pair| [pair.0, pair.1]).collect();
        let Some(list) = self.pairs.clone().filter(|list| list.bytes >= 4 * flat.len()) else {
            return Err(self.misfit(op, format!("{} pairs of {} blocks", pairs.len(), spec.num_blocks)));
        };
        self.host_access()?;
        self.gpu.write_u32(op, &list, &flat)?;
        for layer in &kv.0.layers {
            for (array, element) in [(&layer.keys, layer.key_element), (&layer.values, layer.value_element)] {
                let mut args = Args::new(&self.gpu, op);
                let params = params::CopyBlocks {
                    array: args.take("K/V", array, element.bytes(kv.0.layer_values()))?,
                    pairs: args.take("pairs", &list, 4 * flat.len())?,
                    num_pairs: self.number(op, pairs.len())?,
                    num_blocks: self.number(op, spec.num_blocks)?,
                    block_bytes: self.number(op, element.bytes(spec.block_size * spec.head_dim))?,
                    unused: 0,
                };
                let work = args.launch(Kernel::CopyBlocks, [pairs.len(), spec.num_key_value_heads, 1], &params)?;
                self.queue(work)?;
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.host_access()?;
        self.gpu.wait("synchronize")
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        let (op, layout) = ("embed", &table.0.layout);
        let mut args = Args::new(&self.gpu, op);
        let params = params::Embed {
            ids: args.take("ids", &ids.0.array, 4 * rows)?,
            table: args.take("table", &table.0.array, layout.bytes())?,
            out: args.take("out", &out.0.array, 4 * rows * layout.cols)?,
            rows: self.number(op, rows)?,
            cols: self.number(op, layout.cols)?,
            stride: self.number(op, layout.stride)?,
            vocab: self.number(op, layout.rows)?,
            encoding: layout.element.code(),
            unused: 0,
        };
        let work = args.launch(Kernel::Embed, [rows, 1, 1], &params)?;
        self.queue(work)
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        let epilogue = Epilogue::Write { out: &out.0, bias: bias.map(|bias| &bias.0) };
        self.product("linear", &x.0, &w.0, rows, &epilogue)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        self.norm("rms_norm", &x.0, None, &weight.0, eps, &out.0, hidden_size, rows)
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        self.check_heads("rope", &heads)?;
        let args = HeadArgs { qkv: &qkv.0, cos_sin: Some(&cos_sin.0), slots: None, heads, rows };
        self.heads("rope", Kernel::Rope, args)
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        self.check_store("store_kv", &kv.0, layer, &heads)?;
        let slots = Some((&slot_mapping.0, &kv.0, layer));
        self.heads("store_kv", Kernel::StoreKv, HeadArgs { qkv: &qkv.0, cos_sin: None, slots, heads, rows })
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        self.steps.learn(inputs);
        self.attention(&qkv.0, &kv.0, layer, heads, inputs, &out.0, key)
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        let args = RowArgs {
            op: "silu_and_mul",
            x: &gate_up.0,
            x_len: 2 * rows * intermediate_size,
            indices: None,
            out: &out.0,
            out_len: rows * intermediate_size,
            rows,
            width: intermediate_size,
        };
        self.queue_rows(Kernel::SiluAndMul, args, [intermediate_size.div_ceil(ELEMENT_THREADS), rows, 1])
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        let args =
            RowArgs { op: "add", x: &y.0, x_len: len, indices: None, out: &x.0, out_len: len, rows: len, width: 1 };
        self.queue_rows(Kernel::Add, args, [len.div_ceil(ELEMENT_THREADS), 1, 1])
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows } = op;
        let args = RowArgs {
            op: "gather_rows",
            x: &x.0,
            x_len: x.0.len,
            indices: Some(&indices.0),
            out: &out.0,
            out_len: rows * width,
            rows,
            width,
        };
        self.queue_rows(Kernel::GatherRows, args, [rows, 1, 1])
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        let Argmax { x, out, width, valid, rows } = op;
        let op = "argmax";
        let mut args = Args::new(&self.gpu, op);
        let params = params::Argmax {
            x: args.take("x", &x.0.array, 4 * rows * width)?,
            out: args.take("out", &out.0.array, 4 * rows)?,
            rows: self.number(op, rows)?,
            width: self.number(op, width)?,
            valid: self.number(op, valid.min(width))?,
            unused: 0,
        };
        let work = args.launch(Kernel::Argmax, [rows, 1, 1], &params)?;
        self.queue(work)
    }

    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        let name = "qkv_rope_store";
        let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows } = op;
        let x = composed::normed(self, norm, x, rows)?;
        self.check_store(name, &kv.0, layer, &heads)?;
        if w.0.layout.rows != heads.qkv_size() {
            return Err(self.misfit(name, format!("{} rows of weights for {heads:?}", w.0.layout.rows)));
        }
        let epilogue = Epilogue::Heads { qkv: &qkv.0, bias: &bias.0, inputs, heads, store: &kv.0, layer };
        self.product(name, &x.0, &w.0, rows, &epilogue)
    }

    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        let GateUpSilu { norm, x, w, out, intermediate_size, rows, .. } = op;
        let x = composed::normed(self, norm, x, rows)?;
        let (name, held) = ("gate_up_silu", w.0.layout.rows);
        if held != 2 * intermediate_size {
            return Err(self.misfit(name, format!("{held} rows of weights for a width of {intermediate_size}")));
        }
        self.product(name, &x.0, &w.0, rows, &Epilogue::Silu { out: &out.0 })
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        if op.group.is_some() {
            return composed::linear_add(self, op);
        }
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let (name, width) = ("linear_add", w.0.layout.rows);
        if width != hidden_size {
            return Err(self.misfit(name, format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        self.product(name, &x.0, &w.0, rows, &Epilogue::Add { residual: &residual.0 })
    }

    fn all_reduce(&mut self, op: AllReduce<'_, Self>) -> Result<()> {
        let AllReduce { x, len, group } = op;
        self.check_len("all_reduce", "x", &x.0, len)?;
        match self.exchange(Deed::Sum, &x.0, len, group) {
            Some(sum) => self.queue(Some(sum)),
            None => composed::all_reduce(self, AllReduce { x, len, group }),
        }
    }

    fn supports_p2p(&self, group: &dyn Collective) -> bool {
        of_cards(group).is_some_and(|group| group.is_of(self.driver()))
    }

    fn send(&mut self, x: &CudaBuffer, len: usize, to: usize, group: &dyn Collective) -> Result<()> {
        self.hand_over("send", Deed::Send(to), &x.0, len, group)
    }

    fn receive(&mut self, x: &mut CudaBuffer, len: usize, from: usize, group: &dyn Collective) -> Result<()> {
        self.hand_over("receive", Deed::Receive(from), &x.0, len, group)
    }

    fn warmup_shapes(&self) -> Vec<StepKey> {
        self.steps_to_warm()
    }

    fn padded(&self, key: StepKey) -> StepKey {
        self.steps.padded(key)
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

/// The group, if it is one of cards.
fn of_cards(group: &dyn Collective) -> Option<&NcclGroup> {
    (group as &dyn std::any::Any).downcast_ref()
}

impl CudaBackend {
    /// What the ranks of `group` do with the first `len` values of `x`; none where it is not a group of this card.
    fn exchange(&self, deed: Deed, x: &Numbers, len: usize, group: &dyn Collective) -> Option<Work> {
        Some(Work::Exchange(of_cards(group)?.exchange(deed, self.driver(), &x.array, len)?))
    }

    fn hand_over(&mut self, op: &str, deed: Deed, x: &Numbers, len: usize, group: &dyn Collective) -> Result<()> {
        self.check_len(op, "x", x, len)?;
        let Some(work) = self.exchange(deed, x, len, group) else {
            return Err(self.misfit(op, "the group is another device's".into()));
        };
        self.queue(Some(work))
    }

    fn check_len(&self, op: &str, name: &str, numbers: &Numbers, needed: usize) -> Result<()> {
        match numbers.len < needed {
            true => Err(self.misfit(op, format!("`{name}` holds {} values, {needed} are needed", numbers.len))),
            false => Ok(()),
        }
    }
}
