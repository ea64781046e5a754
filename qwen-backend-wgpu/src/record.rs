//! Queued kernels, host writes before them, and their way to the device.
//!
//! Operations only queue. What is queued goes to the device in one command buffer with one compute pass, when somebody
//! waits for a result, when the host writes what it might still read, or when it is more work than one submission
//! should have. Host writes go through a buffer of [`crate::staging`], in front of the kernels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qwen_core::Result;

use crate::gpu::{Array, Commands, Gpu};
use crate::pipelines::Prepared;
use crate::staging::{INPUTS, Mapped};

/// How many workgroups a kernel has.
#[derive(Debug, Clone)]
pub(crate) enum Grid {
    /// Always the same.
    Fixed([u32; 3]),
    /// One along z for each span of so many positions of the longest context, which changes from step to step.
    Spans { x: u32, y: u32, longest: Arc<AtomicU32>, span: u32, most: u32 },
}

/// What a kernel has to do, as far as it is counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    /// About so many, with the contexts at the time of its recording.
    pub(crate) multiply_adds: u64,
    /// Bytes of weights that it reads.
    pub(crate) weight_bytes: u64,
    /// Bytes of K/V that it reads for a position, and the longest context, which changes from step to step.
    pub(crate) kv: Option<(u64, Arc<AtomicU32>)>,
}

/// A kernel with its grid.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Prepared,
    pub(crate) grid: Grid,
    pub(crate) work: Work,
}

/// A stretch of the staged bytes, and where it goes.
#[derive(Debug)]
struct Write {
    array: Array,
    offset: u64,
    staged: u64,
    bytes: u64,
}

/// What was queued and did not go to the device yet.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    staged: Vec<u8>,
    writes: Vec<Write>,
    steps: Vec<Arc<Vec<Dispatch>>>,
    /// Kernels since the last of `steps`.
    pub(crate) kernels: Vec<Dispatch>,
    /// Multiply-adds of `kernels`.
    multiply_adds: u64,
}

impl Queued {
    /// Queue a kernel.
    pub(crate) fn push(&mut self, dispatch: Dispatch) {
        self.multiply_adds += dispatch.work.multiply_adds;
        self.kernels.push(dispatch);
    }

    /// Multiply-adds of the kernels since the last recorded step or submission.
    pub(crate) fn multiply_adds(&self) -> u64 {
        self.multiply_adds
    }

    /// Queue a recorded step.
    pub(crate) fn push_step(&mut self, step: Arc<Vec<Dispatch>>) {
        self.seal();
        self.steps.push(step);
    }

    /// Whether kernels are queued, which would miss or see a later write.
    pub(crate) fn has_kernels(&self) -> bool {
        !self.kernels.is_empty() || !self.steps.is_empty()
    }

    /// Queue a write to the beginning of `array`. No kernel may be queued.
    pub(crate) fn write(&mut self, gpu: &mut Gpu, array: &Array, bytes: &[u8]) -> Result<()> {
        gpu.own("write", [array].into_iter())?;
        let mut offset = 0;
        for piece in bytes.chunks(INPUTS) {
            if self.staged.len() + piece.len() > INPUTS {
                self.flush(gpu, "write")?;
            }
            let (staged, bytes) = (self.staged.len() as u64, piece.len() as u64);
            self.writes.push(Write { array: array.clone(), offset, staged, bytes });
            self.staged.extend_from_slice(piece);
            offset += bytes;
        }
        gpu.check("write")
    }

    /// Take the kernels since the last recorded step.
    pub(crate) fn take_kernels(&mut self) -> Vec<Dispatch> {
        self.multiply_adds = 0;
        std::mem::take(&mut self.kernels)
    }

    fn seal(&mut self) {
        if !self.kernels.is_empty() {
            let step = Arc::new(self.take_kernels());
            self.steps.push(step);
        }
    }

    /// The commands of all that is queued, which then is no longer.
    pub(crate) fn encode(&mut self, gpu: &mut Gpu) -> Result<Commands> {
        self.seal();
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        let staged = self.encode_writes(gpu, &mut encoder)?;
        if !self.steps.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in self.steps.drain(..).as_slice().iter().flat_map(|step| step.iter()) {
                let [x, y, z] = match &dispatch.grid {
                    Grid::Fixed(grid) => *grid,
                    Grid::Spans { x, y, longest, span, most } => {
                        [*x, *y, longest.load(Ordering::Relaxed).div_ceil(*span).clamp(1, *most)]
                    }
                };
                pass.set_pipeline(&dispatch.kernel.pipeline);
                pass.set_bind_group(0, &dispatch.kernel.group, &[dispatch.kernel.offset]);
                pass.dispatch_workgroups(x, y, z);
                let kv = &dispatch.work.kv;
                let kv_bytes =
                    kv.as_ref().map_or(0, |(each, longest)| each * u64::from(longest.load(Ordering::Relaxed)));
                gpu.stats.dispatched(dispatch.work.weight_bytes, kv_bytes);
            }
        }
        Ok(Commands { encoder, staged })
    }

    /// The commands of all host writes and of parameters that are new, and the buffer that they come from.
    fn encode_writes(&mut self, gpu: &mut Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<Option<Mapped>> {
        let what = "step inputs";
        if self.staged.is_empty() && gpu.params.fresh().iter().all(|(_, bytes)| bytes.is_empty()) {
            return Ok(None);
        }
        let from = gpu.staging_buffer(what)?;
        let params = gpu.params.fresh();
        let filled = from.fill(&[&self.staged, params[0].1, params[1].1]);
        filled.map_err(|error| gpu.unmapped(what, error.to_string()))?;
        for Write { array, offset, staged, bytes } in self.writes.drain(..) {
            encoder.copy_buffer_to_buffer(&from.buffer, staged, &array.buffer, offset, bytes);
        }
        let mut at = self.staged.len() as u64;
        for (offset, bytes) in params.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
            encoder.copy_buffer_to_buffer(&from.buffer, at, gpu.params.buffer(), offset, bytes.len() as u64);
            at += bytes.len() as u64;
        }
        self.staged.clear();
        gpu.params.written();
        Ok(Some(from))
    }

    /// Hand all that is queued to the device.
    pub(crate) fn flush(&mut self, gpu: &mut Gpu, op: &str) -> Result<()> {
        if self.has_kernels() || !self.staged.is_empty() {
            let _timer = gpu.stats.host();
            let commands = self.encode(gpu)?;
            gpu.submit(commands);
        }
        gpu.check(op)
    }
}
