//! The measured best rates of a device, to compare kernels with.
//!
//! Memory is read and copied in vectors of four words; arithmetic runs in registers only. A [`CeilingMeter`] measures
//! in slices as short as the caller likes, so that a bench can alternate them with its work. Times are measured on the
//! host, from the submission to its end.

use std::time::{Duration, Instant};

use qwen_core::Result;
use qwen_core::ceilings::Ceilings;

use crate::ops::product::cooperative_shader;
use crate::options::WgpuOptions;
use crate::runtime::array::Array;
use crate::runtime::commands::{Cost, Dispatch, Grid};
use crate::runtime::gpu::Gpu;
use crate::runtime::pipelines::{Kernel, KernelRequest};
use crate::shader::Shader;
use crate::weight::max_slab;

/// The most bytes read before any is read again: more than the caches hold.
const MOST_BYTES: u64 = 1 << 30;

/// Threads of a workgroup, as in the shaders.
const THREADS: u64 = 256;

/// Vectors that a thread reads or copies, as in the shaders.
const EACH: u64 = 16;

/// Bytes that one workgroup reads or copies.
const PIECE: u64 = 16 * THREADS * EACH;

/// Workgroups that multiply.
const MULTIPLIERS: u32 = 2048;

/// Operations of a workgroup per round: each thread has eight vectors of four fused multiply-adds.
const THREAD_FLOPS: u64 = THREADS * 8 * 4 * 2;

/// The same for cooperative matrices of size 1: each of four subgroups multiplies four.
const MATRIX_FLOPS: u64 = 4 * 4 * 2;

/// Values that kernels of arithmetic may read or write: four matrices of 16 by 16.
const RESULTS: usize = 4 * 16 * 16;

/// Measures ceilings repeatedly.
#[derive(Debug)]
pub struct CeilingMeter {
    gpu: Gpu,
    source: Array,
    target: Array,
    /// Vectors of four words in each buffer.
    vectors: u64,
    has_f16: bool,
}

impl CeilingMeter {
    /// A meter on its own device, opened on the adapter that `options` name. It takes up to two gigabytes of the
    /// device's memory, but at most a quarter.
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when there is no such adapter, [`qwen_core::Error::Device`] when the driver
    /// refuses.
    pub fn new(options: &WgpuOptions) -> Result<Self> {
        Self::with_bytes(options, MOST_BYTES)
    }

    /// A meter that reads at most `most` bytes before it reads any again.
    fn with_bytes(options: &WgpuOptions, most: u64) -> Result<Self> {
        // No other kernel computes in f16 so far; the figure shows what they could gain. These kernels are not worth
        // caching.
        let gpu = Gpu::open(&options.clone().pipeline_cache(false), wgpu::Features::SHADER_F16)?;
        let has_f16 = gpu.device.handle.features().contains(wgpu::Features::SHADER_F16);
        let memory = gpu.device.info.memory.unwrap_or(u64::MAX);
        let bytes = max_slab(&gpu.device.limits).min(most).min(memory / 8);
        // Whole workgroups.
        let vectors = (bytes / PIECE).max(1) * PIECE / 16;
        let source = gpu.device.array("ceilings", 4 * vectors)?;
        let target = gpu.device.array("ceilings", 4 * vectors)?;
        // Pages that were never written may share one page of memory. As f32 the words are 0.5 to 1.
        let mut left = vectors * 16 / PIECE;
        let piece: Vec<u8> = (0..PIECE as u32 / 4)
            .flat_map(|i| (0x3f00_0000 | (i.wrapping_mul(0x9e37_79b1) >> 9)).to_le_bytes())
            .collect();
        gpu.device.upload("ceilings", &source, |bytes| {
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            bytes.extend_from_slice(&piece);
            Ok(true)
        })?;
        let mut meter = CeilingMeter { gpu, source, target, vectors, has_f16 };
        let copy = meter.memory_kernel("ceiling_copy")?;
        meter.run(&copy, 1)?;
        Ok(meter)
    }

    /// Measure all ceilings within about `budget`.
    ///
    /// # Errors
    /// [`qwen_core::Error::Device`] with what the driver reports.
    pub fn measure(&mut self, budget: Duration) -> Result<Ceilings> {
        let cooperative = self.gpu.device.cooperative;
        let slice = budget / (3 + u32::from(self.has_f16) + u32::from(cooperative.is_some()));
        Ok(Ceilings {
            memory_bytes_per_second: self.memory_bytes("ceiling_read", 16, slice)?,
            copy_bytes_per_second: Some(self.memory_bytes("ceiling_copy", 32, slice)?),
            f32_flops_per_second: self.flops(&multiply_shader(false), THREAD_FLOPS, slice)?,
            f16_flops_per_second: match self.has_f16 {
                true => Some(self.flops(&multiply_shader(true), THREAD_FLOPS, slice)?),
                false => None,
            },
            f16_matrix_flops_per_second: match cooperative {
                Some(cooperative) => {
                    let shader = cooperative_shader("ceiling_cooperative", cooperative);
                    Some(self.flops(&shader, MATRIX_FLOPS * u64::from(cooperative.size).pow(3), slice)?)
                }
                None => None,
            },
            ..Ceilings::default()
        })
    }

    fn memory_kernel(&mut self, kernel: &'static str) -> Result<Dispatch> {
        let words = 4 * self.vectors as usize;
        let bindings = [self.source.read(0..words), self.target.write(0..words)];
        let shader = &Shader::new(kernel);
        let request = KernelRequest { op: "ceilings", shader, bindings: &bindings, offset: 0, keep: false };
        let kernel = self.gpu.prepare(request)?;
        Ok(dispatch(kernel, (16 * self.vectors / PIECE) as u32))
    }

    /// Bytes per second of a kernel that reads and writes `each` bytes per vector.
    fn memory_bytes(&mut self, kernel: &'static str, each: u64, budget: Duration) -> Result<f64> {
        let dispatch = self.memory_kernel(kernel)?;
        let (begin, mut best) = (Instant::now(), 0.0_f64);
        let mut count = 1;
        loop {
            let seconds = self.run(&dispatch, count)?;
            best = best.max((each * self.vectors * count) as f64 / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            // Longer, so that launch time is negligible.
            if seconds < budget.as_secs_f64() / 8.0 {
                count *= 2;
            }
        }
    }

    /// Operations per second of a kernel that computes in registers, with `each` operations per workgroup and round.
    fn flops(&mut self, shader: &Shader, each: u64, budget: Duration) -> Result<f64> {
        let (begin, mut best) = (Instant::now(), 0.0_f64);
        let mut rounds = 16;
        loop {
            let kernel = self.multiply(shader, rounds)?;
            let seconds = self.run(&dispatch(kernel, MULTIPLIERS), 1)?;
            best = best.max((u64::from(MULTIPLIERS) * each * u64::from(rounds)) as f64 / seconds);
            if begin.elapsed() >= budget {
                return Ok(best);
            }
            if seconds < budget.as_secs_f64() / 16.0 {
                rounds *= 2;
            }
        }
    }

    fn multiply(&mut self, shader: &Shader, rounds: u32) -> Result<Kernel> {
        let bindings = [self.source.read(0..RESULTS), self.target.write(0..RESULTS)];
        let slot = self.gpu.slot("ceilings", &[rounds], true)?;
        let offset = slot.map_or(0, |slot| slot.offset);
        self.gpu.prepare(KernelRequest { op: "ceilings", shader, bindings: &bindings, offset, keep: false })
    }

    /// Seconds that `count` runs of a kernel take.
    fn run(&mut self, dispatch: &Dispatch, count: u64) -> Result<f64> {
        (0..count).for_each(|_| self.gpu.pending.push(dispatch.clone()));
        let begin = Instant::now();
        self.gpu.flush("ceilings")?;
        self.gpu.device.wait("ceilings")?;
        Ok(begin.elapsed().as_secs_f64().max(1e-9))
    }
}

fn multiply_shader(f16: bool) -> Shader {
    Shader::new("ceiling_multiply").flag_if(f16, "F16")
}

fn dispatch(kernel: Kernel, groups: u32) -> Dispatch {
    Dispatch { kernel, grid: Grid::Fixed([groups, 1, 1]), cost: Cost::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdapterChoice, CapabilitySet};

    #[test]
    fn every_ceiling_that_a_device_has_is_measured() {
        let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
        let options = WgpuOptions::new().adapter(AdapterChoice::Name(name)).capabilities(CapabilitySet::Best);
        let mut meter = match CeilingMeter::with_bytes(&options, 16 << 20) {
            Ok(meter) => meter,
            Err(error) => return println!("skipped: {error}"),
        };
        let found = meter.measure(Duration::from_millis(50)).unwrap();
        println!("{}: {found:?}", meter.gpu.device.info);
        assert!(found.copy_bytes_per_second.is_some());
        assert_eq!(found.f16_flops_per_second.is_some(), meter.has_f16);
        assert_eq!(found.f16_matrix_flops_per_second.is_some(), meter.gpu.device.cooperative.is_some());
        let Ceilings { copy_bytes_per_second, f16_flops_per_second, f16_matrix_flops_per_second, .. } = found;
        let optional = [copy_bytes_per_second, f16_flops_per_second, f16_matrix_flops_per_second];
        let always = [found.memory_bytes_per_second, found.f32_flops_per_second];
        let figures = always.into_iter().chain(optional.into_iter().flatten());
        // A megabyte and a million operations per second: every device is faster.
        assert!(figures.into_iter().all(|figure| figure.is_finite() && figure > 1e6), "{found:?}");
    }
}
