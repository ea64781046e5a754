//! Queued kernels, host writes before them, and their way to the device.
//!
//! Operations only queue. What is queued goes to the device in one command buffer with one compute pass, when somebody
//! waits for a result or the host writes what it might still read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qwen_core::Result;

use crate::gpu::{Array, Gpu, Prepared};

/// Bytes of host writes that travel together; larger ones go on their own.
const STAGED: usize = 1 << 20;

/// How many workgroups a kernel has.
#[derive(Debug, Clone)]
pub(crate) enum Grid {
    /// Always the same.
    Fixed([u32; 3]),
    /// One along z for each span of so many positions of the longest context, which changes from step to step.
    Spans { x: u32, y: u32, longest: Arc<AtomicU32>, span: u32, most: u32 },
}

/// A kernel with its grid.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Prepared,
    pub(crate) grid: Grid,
    /// Bytes of weights that it reads, where that is its work.
    pub(crate) weight_bytes: u64,
}

/// What was queued and did not go to the device yet.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    /// Bytes of staged writes, and where each goes.
    staged: Vec<u8>,
    writes: Vec<(Array, u64, u64)>,
    upload: Option<wgpu::Buffer>,
    steps: Vec<Arc<Vec<Dispatch>>>,
    /// Kernels since the last of `steps`.
    pub(crate) kernels: Vec<Dispatch>,
}

impl Queued {
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
        if self.staged.len() + bytes.len() > STAGED {
            self.flush(gpu, "write")?;
        }
        if bytes.len() > STAGED {
            gpu.guarded("write", bytes.len() as u64, || gpu.queue.write_buffer(&array.buffer, 0, bytes))?;
        } else if !bytes.is_empty() {
            self.writes.push((array.clone(), self.staged.len() as u64, bytes.len() as u64));
            self.staged.extend_from_slice(bytes);
        }
        gpu.check("write")
    }

    /// Forget queued kernels, whose step was given up.
    pub(crate) fn drop_kernels(&mut self) {
        self.kernels.clear();
    }

    fn seal(&mut self) {
        if !self.kernels.is_empty() {
            self.steps.push(Arc::new(std::mem::take(&mut self.kernels)));
        }
    }

    /// The commands of all that is queued, which then is no longer.
    pub(crate) fn encode(&mut self, gpu: &mut Gpu) -> Result<wgpu::CommandEncoder> {
        self.seal();
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        if !self.staged.is_empty() {
            let (what, usage) = ("step inputs", wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
            let upload = match self.upload.take() {
                Some(upload) => upload,
                None => gpu.buffer(what, STAGED as u64, usage)?,
            };
            let upload = self.upload.insert(upload);
            gpu.guarded(what, self.staged.len() as u64, || gpu.queue.write_buffer(upload, 0, &self.staged))?;
            for (array, from, bytes) in self.writes.drain(..) {
                encoder.copy_buffer_to_buffer(upload, from, &array.buffer, 0, bytes);
            }
            self.staged.clear();
        }
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
                gpu.stats.dispatched(dispatch.weight_bytes);
            }
        }
        Ok(encoder)
    }

    /// Hand all that is queued to the device.
    pub(crate) fn flush(&mut self, gpu: &mut Gpu, op: &str) -> Result<()> {
        if self.has_kernels() || !self.staged.is_empty() {
            let _timer = gpu.stats.host();
            let encoder = self.encode(gpu)?;
            gpu.submit(encoder);
        }
        gpu.check(op)
    }
}
