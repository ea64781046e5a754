//! What a card can do at best, measured: to put the figures of kernels in proportion.
//!
//! Memory is read and copied in whole, in words of 16 bytes; arithmetic runs in registers alone. A [`CeilingMeter`]
//! measures in slices as short as the caller likes, so that a bench can take them in turn with its work. Times are
//! those of the host, from the launch to its end.

use std::time::{Duration, Instant};

use qwen_core::Result;
use qwen_core::backend::Backend;
use qwen_core::ceilings::Ceilings;

use crate::backend::CudaBackend;
use crate::driver::Array;
use crate::geometry::*;
use crate::gpu::{Args, Gpu, Work};
use crate::kernel::Kernel;
use crate::options::CudaOptions;
use crate::params::Ceiling;

/// Bytes that are read at most before any is read again: more than caches hold.
const MOST_BYTES: u64 = 1 << 30;

/// Blocks that a multiprocessor is given: all that it can hold at once, and as many to follow.
const BLOCKS_PER_MULTIPROCESSOR: usize = 16;

/// Threads of a warp.
const WARP: usize = 32;

/// Measures ceilings again and again.
#[derive(Debug)]
pub struct CeilingMeter {
    gpu: Gpu,
    source: Array,
    target: Array,
    bytes: usize,
    blocks: usize,
}

impl CeilingMeter {
    /// A meter on the card that `options` name. It takes up to two gigabytes of its memory, a quarter of what is free at
    /// most.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn new(options: &CudaOptions) -> Result<Self> {
        let backend = CudaBackend::new(options.clone())?;
        let free = backend.info().memory_available.unwrap_or(backend.card().memory);
        let blocks = BLOCKS_PER_MULTIPROCESSOR * backend.card().multiprocessors as usize;
        let mut gpu = Gpu::new(backend.driver().clone(), false);
        let piece = Gpu::piece();
        // Whole pieces; where there is little memory, one.
        let bytes = (MOST_BYTES.min(free / 8) as usize / piece).max(1) * piece;
        let source = gpu.unset_array("ceilings", bytes)?;
        let target = gpu.array("ceilings", bytes)?;
        // Pages that were never written may all be one. As f32 the words are 0.5 to 1.
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

    /// Bytes a second of a kernel that moves each of them so many times.
    fn memory(&mut self, kernel: Kernel, times: usize, budget: Duration) -> Result<f64> {
        let work = self.work(kernel, 0)?;
        let (begin, mut best, mut count) = (Instant::now(), 0.0_f64, 1);
        loop {
            let seconds = self.run(&work, count)?;
            best = best.max((times * self.bytes * count) as f64 / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            // Long enough that starting it counts for nothing.
            if seconds < budget.as_secs_f64() / 8.0 {
                count *= 2;
            }
        }
    }

    /// Operations a second of a kernel with so many in a round.
    fn flops(&mut self, kernel: Kernel, each: usize, budget: Duration) -> Result<f64> {
        let (begin, mut best, mut rounds) = (Instant::now(), 0.0_f64, 16);
        loop {
            let work = self.work(kernel, rounds)?;
            let seconds = self.run(&work, 1)?;
            best = best.max(each as f64 * f64::from(rounds) / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            if seconds < budget.as_secs_f64() / 16.0 {
                rounds *= 2;
            }
        }
    }

    fn work(&self, kernel: Kernel, rounds: u32) -> Result<Option<Work>> {
        let mut args = Args::new(&self.gpu, "ceilings");
        let written = if kernel == Kernel::CeilingCopy { self.bytes } else { 4 * self.blocks * CEILING_THREADS };
        let params = Ceiling {
            from: args.take("from", &self.source, self.bytes)?,
            out: args.take("out", &self.target, written)?,
            bytes: self.bytes as u64,
            rounds,
            unused: 0,
        };
        args.launch(kernel, [self.blocks, 1, 1], &params)
    }

    /// Seconds that `count` runs of a kernel take.
    fn run(&mut self, work: &Option<Work>, count: usize) -> Result<f64> {
        let begin = Instant::now();
        for work in work.iter().cycle().take(count) {
            self.gpu.issue(work)?;
        }
        self.gpu.wait("ceilings")?;
        Ok(begin.elapsed().as_secs_f64().max(1e-9))
    }
}
