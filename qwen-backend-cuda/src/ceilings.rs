//! The limits of a GPU, measured, to compare the kernels' figures with.
//!
//! Memory is read and copied in words of 16 bytes; arithmetic runs in registers only. A [`CeilingMeter`] measures
//! within a time limit, so that a benchmark can alternate it with its own work. Times are measured on the host, from
//! the launch to its end.

use std::time::{Duration, Instant};

use qwen_core::Result;
use qwen_core::backend::Backend;
use qwen_core::ceilings::Ceilings;

use crate::backend::CudaBackend;
use crate::driver::{Array, Command};
use crate::geometry::*;
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::options::CudaOptions;
use crate::params::Ceiling;

/// The most bytes read before any is read again: more than the caches hold.
const MAX_BYTES: u64 = 1 << 30;

/// Blocks per multiprocessor: twice as many as it runs at once.
const BLOCKS_PER_MULTIPROCESSOR: usize = 16;

/// Threads of a warp.
const WARP: usize = 32;

/// Measures ceilings, repeatedly.
#[derive(Debug)]
pub struct CeilingMeter {
    gpu: Gpu,
    source: Array,
    target: Array,
    bytes: usize,
    blocks: usize,
}

impl CeilingMeter {
    /// A meter on the GPU that `options` name. It takes up to two gigabytes of its memory, at most a quarter of what is
    /// free.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn new(options: &CudaOptions) -> Result<Self> {
        let backend = CudaBackend::new(options.clone())?;
        let free = backend.info().memory_available.unwrap_or(backend.properties().memory);
        let blocks = BLOCKS_PER_MULTIPROCESSOR * backend.properties().multiprocessors as usize;
        let mut gpu = Gpu::new(backend.driver().clone(), false);
        let piece = Gpu::piece();
        // Whole pieces, and at least one.
        let bytes = (MAX_BYTES.min(free / 8) as usize / piece).max(1) * piece;
        let source = gpu.unset_array("ceilings", bytes)?;
        let target = gpu.array("ceilings", bytes)?;
        // Pages that were never written may share memory. As f32 the words are 0.5 to 1.
        for at in (0..bytes).step_by(piece) {
            gpu.write("ceilings", &source, at, piece, |out| {
                for (i, word) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    *word = (0x3f00_0000 | ((i as u32).wrapping_mul(0x9e37_79b1) >> 9)).to_le_bytes();
                }
            })?;
        }
        gpu.wait("ceilings")?;
        Ok(CeilingMeter { gpu, source, target, bytes, blocks })
    }

    /// Measure all ceilings within about `budget`.
    ///
    /// # Errors
    /// [`qwen_core::Error::Device`] with what the driver reports.
    pub fn measure(&mut self, budget: Duration) -> Result<Ceilings> {
        let slice = budget / 4;
        let threads = self.blocks * CEILING_THREADS;
        let tensor_cores = self.gpu.info().has_tensor_cores();
        Ok(Ceilings {
            memory_bytes_per_second: self.memory(Kernel::CeilingRead, 1, slice)?,
            copy_bytes_per_second: Some(self.memory(Kernel::CeilingCopy, 2, slice)?),
            f32_flops_per_second: self.flops(Kernel::CeilingFmaF32, threads * CEILING_FMA_FLOPS, slice)?,
            bf16_flops_per_second: match tensor_cores {
                true => Some(self.flops(Kernel::CeilingMmaBf16, threads / WARP * CEILING_MMA_FLOPS, slice)?),
                false => None,
            },
            ..Ceilings::default()
        })
    }

    /// Bytes per second of a kernel that moves each byte `times` times.
    fn memory(&mut self, kernel: Kernel, times: usize, budget: Duration) -> Result<f64> {
        let command = self.command(kernel, 0)?;
        let (begin, mut best, mut count) = (Instant::now(), 0.0_f64, 1);
        loop {
            let seconds = self.run(&command, count)?;
            best = best.max((times * self.bytes * count) as f64 / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            // Long enough that the launch does not matter.
            if seconds < budget.as_secs_f64() / 8.0 {
                count *= 2;
            }
        }
    }

    /// Operations per second of a kernel with `each` operations per round.
    fn flops(&mut self, kernel: Kernel, each: usize, budget: Duration) -> Result<f64> {
        let (begin, mut best, mut rounds) = (Instant::now(), 0.0_f64, 16);
        loop {
            let command = self.command(kernel, rounds)?;
            let seconds = self.run(&command, 1)?;
            best = best.max(each as f64 * f64::from(rounds) / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            if seconds < budget.as_secs_f64() / 16.0 {
                rounds *= 2;
            }
        }
    }

    fn command(&self, kernel: Kernel, rounds: u32) -> Result<Option<Command>> {
        let mut args = Args::new(&self.gpu, "ceilings");
        let written = if kernel == Kernel::CeilingCopy { self.bytes } else { 4 * self.blocks * CEILING_THREADS };
        let params = Ceiling {
            from: args.take("from", &self.source, &[self.bytes])?,
            out: args.take("out", &self.target, &[written])?,
            bytes: self.bytes as u64,
            rounds,
            unused: 0,
        };
        args.launch(kernel, [self.blocks, 1, 1], &params)
    }

    /// Seconds that `count` runs of a kernel take.
    fn run(&mut self, command: &Option<Command>, count: usize) -> Result<f64> {
        let begin = Instant::now();
        for command in command.iter().cycle().take(count) {
            self.gpu.issue(command)?;
        }
        self.gpu.wait("ceilings")?;
        Ok(begin.elapsed().as_secs_f64().max(1e-9))
    }
}
