//! [`Backend`] on a CUDA GPU: one short method per operation. Behind each, a file checks the arguments, chooses a
//! kernel and queues its launch; `steps.rs` records what a step queues.

mod argmax;
mod attention;
mod collectives;
mod copy_blocks;
mod embed;
mod heads;
mod kv_blocks;
mod linear;
mod operands;
mod product;
mod rms_norm;
mod rows;
mod scale_and_round;
mod steps;

use std::sync::Arc;

use qwen_core::backend::Limits;
use qwen_core::backend::collective::Collective;
use qwen_core::backend::recorder::{self, Recorder};
use qwen_core::backend::{
    Add, AddRows, AllReduce, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd,
    ModelShape, PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView, composed,
};
use qwen_core::{Backend, Footprint, Precision, Result};

use crate::device::DeviceProperties;
use crate::driver::{Array, Command, Driver, cuda::CudaDriver};
use crate::footprint::CudaFootprint;
use crate::gpu::Gpu;
use crate::kv::{self, Store};
use crate::nccl::CollectiveOp;
use crate::options::CudaOptions;
use crate::weight::Matrix;
use crate::workspace::Workspace;

use operands::Words;
use steps::Step;

/// Qwen2.5 on a CUDA GPU.
///
/// ```no_run
/// use qwen_backend_cuda::{CudaBackend, CudaOptions};
/// let backend = CudaBackend::new(CudaOptions::new())?;
/// println!("{}", backend.properties());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct CudaBackend {
    gpu: Gpu,
    precision: Precision,
    recorder: Recorder<Step>,
    /// Commands of the step that is being recorded.
    recorded: Vec<Command>,
    /// The limits of a step, set by [`Backend::prepare`].
    limits: Option<Limits>,
    workspace: Workspace,
    /// The pairs of `copy_blocks`, at most one per block.
    pairs: Option<Array>,
}

/// Activations of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaBuffer(Words);

/// Step inputs of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaIndices(Words);

/// A matrix of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaWeight(Matrix);

/// The K/V store of a [`CudaBackend`].
#[derive(Debug)]
pub struct CudaKv(Store);

impl CudaBackend {
    /// Open a GPU.
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when there is no driver, no such GPU, or one that the kernels do not run on, with
    /// what was found; [`qwen_core::Error::Device`] when the driver refuses.
    pub fn new(options: CudaOptions) -> Result<Self> {
        #[cfg(feature = "emulator")]
        if let Some(gpu) = &options.emulated {
            return Ok(Self::on(Arc::new(crate::driver::emulated::Emulated::new(gpu.clone())), &options));
        }
        Ok(Self::on(Arc::new(CudaDriver::open(options.ordinal)?), &options))
    }

    pub(crate) fn on(driver: Arc<dyn Driver>, options: &CudaOptions) -> Self {
        let mut recorder = Recorder::new();
        if options.wait_after_each_kernel {
            recorder.stop_keeping();
        }
        CudaBackend {
            gpu: Gpu::new(driver, options.wait_after_each_kernel),
            precision: options.precision,
            recorder,
            recorded: Vec::new(),
            limits: None,
            workspace: Workspace::default(),
            pairs: None,
        }
    }

    /// The properties of the GPU behind this backend.
    pub fn properties(&self) -> &DeviceProperties {
        self.gpu.info()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        self.gpu.driver()
    }
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Indices = CudaIndices;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn info(&self) -> DeviceInfo {
        let DeviceProperties { name, ordinal, compute_capability: (major, minor), .. } = self.properties();
        DeviceInfo {
            name: format!("cuda:{ordinal} ({name}, {major}.{minor})"),
            precision: self.precision,
            memory_available: self.driver().free_bytes(),
        }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(CudaFootprint::on(self.properties(), self.precision))
    }

    fn prepare(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        let sizes = CudaFootprint::on(self.properties(), self.precision).workspace(limits, shape)?;
        self.limits = Some(limits.clone());
        self.workspace.reserve(&mut self.gpu, &sizes)
    }

    fn alloc(&mut self, len: usize) -> Result<CudaBuffer> {
        Ok(CudaBuffer(self.words("activations", len)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<CudaIndices> {
        Ok(CudaIndices(self.words("step inputs", len)?))
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<CudaWeight> {
        Ok(CudaWeight(Matrix::load(&mut self.gpu, view)?))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<CudaKv> {
        let store = Store::new(&mut self.gpu, spec)?;
        self.pairs = Some(self.gpu.array("pairs of blocks", kv::pairs_bytes(spec)?)?);
        Ok(CudaKv(store))
    }

    fn write(&mut self, dst: &mut CudaBuffer, src: &[f32]) -> Result<()> {
        self.check_len("write", "dst", &dst.0, src.len())?;
        self.flush()?;
        self.gpu.write_f32("write", &dst.0.array, src)
    }

    fn write_indices(&mut self, dst: &mut CudaIndices, src: &[u32]) -> Result<()> {
        self.check_len("write_indices", "dst", &dst.0, src.len())?;
        self.flush()?;
        self.gpu.write_u32("write_indices", &dst.0.array, src)
    }

    fn read(&mut self, src: &CudaBuffer, dst: &mut [f32]) -> Result<()> {
        self.check_len("read", "src", &src.0, dst.len())?;
        self.flush()?;
        self.gpu.read_f32("read", &src.0.array, dst)
    }

    fn read_indices(&mut self, src: &CudaIndices, dst: &mut [u32]) -> Result<()> {
        self.check_len("read_indices", "src", &src.0, dst.len())?;
        self.flush()?;
        self.gpu.read_u32("read_indices", &src.0.array, dst)
    }

    fn copy_blocks(&mut self, kv: &mut CudaKv, pairs: &[(u32, u32)]) -> Result<()> {
        self.queue_copy_blocks(&kv.0, pairs)
    }

    fn read_blocks(&mut self, kv: &CudaKv, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        self.copy_out(&kv.0, blocks, out)
    }

    fn write_blocks(&mut self, kv: &mut CudaKv, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        self.copy_in(&kv.0, blocks, bytes)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.flush()?;
        self.gpu.wait("synchronize")
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        self.queue_embed(op)
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        self.queue_linear(op)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        self.queue_rms_norm(op)
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        self.queue_rope(op)
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        self.queue_store_kv(op)
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        self.queue_attention(op)
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        self.queue_silu_and_mul(op)
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        self.queue_add(op)
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        self.queue_gather_rows(op)
    }

    fn add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        self.queue_add_rows(op)
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        self.queue_argmax(op)
    }

    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        self.queue_qkv_rope_store(op)
    }

    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        self.queue_gate_up_silu(op)
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        match op.group {
            Some(_) => composed::linear_add(self, op),
            None => self.queue_linear_add(op),
        }
    }

    fn all_reduce(&mut self, op: AllReduce<'_, Self>) -> Result<()> {
        match self.collective("all_reduce", CollectiveOp::AllReduce, &op.x.0, op.len, op.group)? {
            Some(command) => self.queue(Some(command)),
            None => composed::all_reduce(self, op),
        }
    }

    fn supports_p2p(&self, group: &dyn Collective) -> bool {
        self.is_on_this_gpu(group)
    }

    fn send(&mut self, x: &CudaBuffer, len: usize, to: usize, group: &dyn Collective) -> Result<()> {
        self.queue_p2p("send", CollectiveOp::Send(to), &x.0, len, group)
    }

    fn receive(&mut self, x: &mut CudaBuffer, len: usize, from: usize, group: &dyn Collective) -> Result<()> {
        self.queue_p2p("receive", CollectiveOp::Receive(from), &x.0, len, group)
    }

    fn warmup_shapes(&self) -> Vec<StepKey> {
        steps::warmup_shapes()
    }

    fn padded(&self, key: StepKey) -> StepKey {
        self.limits.as_ref().map_or(key, |limits| recorder::padded(key, limits))
    }

    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.check_steps()?;
        recorder::run(self, key, interrupt, body)
    }
}
