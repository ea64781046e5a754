//! The state of a backend, and how an operation becomes queued kernels: within the limits of the device, in pieces if
//! an array cannot be bound as a whole, as part of a recorded step or on its own.

use std::ops::Range;
use std::sync::Arc;

use qwen_core::backend::Limits;
use qwen_core::backend::ModelShape;
use qwen_core::backend::recorder::{Record, Recorder, Recording};
use qwen_core::numerics::size;
use qwen_core::{Error, Precision, Result};

use crate::adapter::AdapterInfo;
use crate::footprint::WgpuFootprint;
use crate::kv::Store;
use crate::options::WgpuOptions;
use crate::runtime::array::{Array, Binding};
use crate::runtime::commands::{Cost, Dispatch, Grid, LargestValue, RecordedStep};
use crate::runtime::gpu::Gpu;
use crate::runtime::pipelines::KernelRequest;
use crate::shader::Shader;
use crate::stats::{HostTimer, WgpuStats};
use crate::weight::Matrix;
use crate::workspace::Workspace;

/// Multiply-adds after which the kernels of a prompt are submitted: a second at a tenth of a Tflop/s. Drivers reset a
/// GPU if a submission runs for several seconds.
const MULTIPLY_ADDS: u64 = 50_000_000_000;

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
    pub(crate) gpu: Gpu,
    pub(crate) precision: Precision,
    pub(crate) workspace: Workspace,
    recorder: Recorder<RecordedStep>,
    multiply_adds_per_submission: u64,
    /// Runs while a step is recorded.
    recording_timer: Option<HostTimer>,
}

/// Activations of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuBuffer(pub(crate) Words);

/// Step inputs of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuIndices {
    pub(crate) words: Words,
    pub(crate) largest: Arc<LargestValue>,
}

/// A matrix of a [`WgpuBackend`], in slabs.
#[derive(Debug)]
pub struct WgpuWeight(pub(crate) Matrix);

/// The K/V store of a [`WgpuBackend`].
#[derive(Debug)]
pub struct WgpuKv(pub(crate) Store);

/// An array with its requested number of 32-bit values.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) array: Array,
    pub(crate) len: usize,
}

/// A kernel to queue.
#[derive(Debug)]
pub(crate) struct KernelCall<'a> {
    /// The operation, for errors.
    pub(crate) op: &'a str,
    pub(crate) shader: &'a Shader,
    /// In the order of the shader's bindings, from 1 on.
    pub(crate) bindings: &'a [Binding<'a>],
    pub(crate) params: &'a [u32],
    pub(crate) grid: Grid,
    pub(crate) cost: Cost,
}

impl WgpuBackend {
    /// Open a device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such adapter, with the adapters that were found; [`Error::Device`] when the
    /// driver refuses.
    pub fn new(options: WgpuOptions) -> Result<Self> {
        Ok(Self::on(Gpu::open(&options, wgpu::Features::empty())?, options.precision))
    }

    pub(crate) fn on(gpu: Gpu, precision: Precision) -> Self {
        WgpuBackend {
            gpu,
            precision,
            workspace: Workspace::default(),
            recorder: Recorder::new(),
            multiply_adds_per_submission: MULTIPLY_ADDS,
            recording_timer: None,
        }
    }

    /// The adapter behind this backend.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.gpu.device.info
    }

    /// The optional features of the API that the device was opened with, by name.
    pub fn features(&self) -> Vec<&'static str> {
        self.gpu.device.handle.features().iter_names().map(|(name, _)| name).collect()
    }

    /// Counts of what the backend has done so far, for tests and benches.
    #[doc(hidden)]
    pub fn stats(&self) -> WgpuStats {
        self.gpu.device.stats.clone()
    }

    /// Why compiled kernels from an earlier run were not used: the file or its folder, and what is wrong with it.
    /// `None` if they were used, if there are none, and without [`WgpuOptions::pipeline_cache`].
    pub fn pipeline_cache_refusal(&self) -> Option<&str> {
        self.gpu.pipelines.cache.as_ref().and_then(|cache| cache.refusal())
    }

    /// How much memory the parts of a model take on this device.
    pub(crate) fn memory_model(&self) -> WgpuFootprint {
        let device = &self.gpu.device;
        WgpuFootprint::opened(&device.limits, device.cooperative.is_some())
    }

    /// Allocate the workspace of the largest step.
    pub(crate) fn allocate_workspace(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        let sizes = self.memory_model().workspace(limits, shape);
        self.workspace = Workspace::new(&self.gpu.device, &sizes)?;
        self.gpu.reserve_readback(sizes.readback)
    }

    /// An array of `len` values.
    pub(crate) fn words(&mut self, len: usize) -> Result<Words> {
        Ok(Words { array: self.gpu.device.array("activations", len as u64)?, len })
    }

    /// An error of `op` on this device.
    pub(crate) fn error(&self, op: &str, reason: impl Into<String>) -> Error {
        self.gpu.device.error(op, reason)
    }

    /// Refuse the operand `name` of `op` if it holds fewer values than the product of `factors`.
    pub(crate) fn need(&self, op: &str, name: &str, words: &Words, factors: &[usize]) -> Result<()> {
        let needed = size::bytes(1, factors);
        match (words.len as u64) < needed {
            true => Err(self.error(op, format!("`{name}` holds {} values, {needed} are needed", words.len))),
            false => Ok(()),
        }
    }

    /// `values` as parameters of a kernel.
    ///
    /// # Errors
    /// When a value exceeds 32 bits.
    pub(crate) fn params(&self, op: &str, values: &[usize]) -> Result<Vec<u32>> {
        let param = |value: &usize| {
            u32::try_from(*value).map_err(|_| self.error(op, format!("{value} exceeds what a kernel can count")))
        };
        values.iter().map(param).collect()
    }

    /// Queue a kernel.
    pub(crate) fn queue(&mut self, call: KernelCall<'_>) -> Result<()> {
        let KernelCall { op, shader, bindings, params, grid, cost } = call;
        let (longest, most) = (grid.longest_side(), self.gpu.device.limits.max_compute_workgroups_per_dimension);
        if longest > most {
            return Err(self.error(op, format!("{longest} workgroups along one dimension, the device takes {most}")));
        }
        let offset = self.place_params(op, params)?;
        // The arrays of a step stay; those of a single operation may be dropped.
        let keep = self.recorder.recording().is_some();
        let kernel = self.gpu.prepare(KernelRequest { op, shader, bindings, offset, keep })?;
        self.gpu.pending.push(Dispatch { kernel, grid, cost });
        // A step that will be replayed is one submission: a token is little work.
        let replayed = self.recorder.recording().is_some_and(|recording| recording.keep);
        match !replayed && self.gpu.pending.multiply_adds() >= self.multiply_adds_per_submission {
            true => self.submit_early(op),
            false => Ok(()),
        }
    }

    /// Store `params` in the parameter buffer and return their offset. If there is no room left, what is queued is
    /// submitted first.
    fn place_params(&mut self, op: &str, params: &[u32]) -> Result<u32> {
        let keep = self.recorder.recording().is_some_and(|recording| recording.keep);
        let mut slot = self.gpu.slot(op, params, keep)?;
        if slot.is_none() {
            self.submit_early(op)?;
            self.gpu.params.restart();
            slot = self.gpu.slot(op, params, keep)?;
        }
        let Some(slot) = slot else { return Err(self.error(op, "no room for parameters")) };
        if !slot.kept {
            // Transient parameters may have been overwritten when the step is replayed.
            self.recorder.do_not_keep();
        }
        Ok(slot.offset)
    }

    /// Queue a kernel with a thread for each of `width` items of each of `rows` rows.
    pub(crate) fn queue_rows(
        &mut self,
        op: &str,
        shader: &Shader,
        bindings: &[Binding<'_>],
        params: &[usize],
        (width, rows): (usize, usize),
    ) -> Result<()> {
        if width == 0 {
            return Ok(());
        }
        let params = self.params(op, params)?;
        let grid = Grid::fixed([width.div_ceil(64), rows, 1]);
        self.queue(KernelCall { op, shader, bindings, params: &params, grid, cost: Cost::default() })
    }

    /// Submit what is queued before the end of a step, which then cannot be replayed.
    pub(crate) fn submit_early(&mut self, op: &str) -> Result<()> {
        self.recorder.submit_early();
        self.gpu.flush(op)
    }

    /// The host reads or writes: in a step, what was recorded so far then cannot be replayed.
    pub(crate) fn host_access(&mut self) {
        self.recorder.submit_early();
    }

    /// `rows` in pieces that can be bound, with `widths` words per row in each of the arrays; each piece begins at a
    /// valid binding offset. If there are more rows of zero width than can be bound at once, there is nothing to
    /// compute: no piece.
    pub(crate) fn pieces(&self, op: &str, rows: usize, widths: &[usize]) -> Result<Vec<Range<usize>>> {
        let limits = &self.gpu.device.limits;
        let most = limits.max_storage_buffer_binding_size as usize / 4;
        let widest = widths.iter().copied().max().unwrap_or(0).max(1);
        if rows <= most / widest {
            return Ok((rows > 0).then_some(0..rows).into_iter().collect());
        }
        if widths.iter().all(|width| *width == 0) {
            return Ok(Vec::new());
        }
        let alignment = (limits.min_storage_buffer_offset_alignment as usize / 4).max(1);
        let aligned = |step: &usize| widths.iter().all(|width| (step * (width % alignment)).is_multiple_of(alignment));
        let step = (1..alignment).find(aligned).unwrap_or(alignment);
        let size = most / widest / step * step;
        if size == 0 {
            return Err(self.error(op, format!("{step} rows of {widest} values exceed what the device binds")));
        }
        Ok((0..rows).step_by(size).map(|first| first..first + size.min(rows - first)).collect())
    }
}

/// The words of the rows `piece` in an array with `width` words per row.
pub(crate) fn words(piece: &Range<usize>, width: usize) -> Range<usize> {
    piece.start * width..piece.end * width
}

impl Record for WgpuBackend {
    type Step = RecordedStep;

    fn recorder(&mut self) -> &mut Recorder<RecordedStep> {
        &mut self.recorder
    }

    fn replay(&mut self, step: &Arc<RecordedStep>) -> Result<()> {
        self.gpu.pending.push_step(step.clone());
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        // So that the recording contains only the step. Its inputs may stay queued.
        if self.gpu.pending.has_kernels() {
            self.gpu.flush("step")?;
        }
        self.recording_timer = Some(self.gpu.device.stats.host());
        Ok(())
    }

    fn discard(&mut self) {
        self.recording_timer = None;
        drop(self.gpu.pending.take_kernels());
    }

    fn submit(&mut self, recording: Recording) -> Result<Option<Arc<RecordedStep>>> {
        self.recording_timer = None;
        if !recording.whole {
            return Ok(None);
        }
        let step = Arc::new(self.gpu.pending.take_kernels());
        self.gpu.pending.push_step(step.clone());
        Ok(recording.keep.then_some(step))
    }
}

/// Access for tests.
#[cfg(test)]
impl WgpuBackend {
    /// The first `words` of `array`.
    pub(crate) fn read_array(&mut self, array: &Array, words: usize) -> Vec<u32> {
        let mut read = Vec::new();
        self.gpu
            .read_back("read_array", array, words, |bytes| {
                read.extend(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)));
            })
            .unwrap();
        read
    }

    pub(crate) fn submit_after(&mut self, multiply_adds: u64) {
        self.multiply_adds_per_submission = multiply_adds;
    }
}
