//! What a device could do at best, measured: one meter for all devices.

use std::time::Duration;

use crate::device::Device;
use crate::error::Result;

/// The best that a device reached. What it has no way to do is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Ceilings {
    /// Reading from memory.
    pub memory_bytes_per_second: f64,
    /// Copying within memory, bytes read and written together; of GPUs alone.
    pub copy_bytes_per_second: Option<f64>,
    /// Fused multiply-adds of f32, two operations each.
    pub f32_flops_per_second: f64,
    /// Fused multiply-adds of f16.
    pub f16_flops_per_second: Option<f64>,
    /// Products of cooperative matrices of f16, of GPUs that were opened with such.
    pub f16_matrix_flops_per_second: Option<f64>,
    /// Dot products of bf16; of cards the products of their tensor cores.
    pub bf16_flops_per_second: Option<f64>,
    /// Dot products of int8.
    pub int8_ops_per_second: Option<f64>,
}

/// Measures the ceilings of a device again and again, to put a model's speed in proportion.
///
/// ```no_run
/// use std::time::Duration;
/// use qwen::{CeilingMeter, Device};
/// let mut meter = CeilingMeter::new(&Device::Cpu, None)?;
/// let ceilings = meter.measure(Duration::from_millis(600))?;
/// println!("{:.1} GB/s", ceilings.memory_bytes_per_second / 1e9);
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug)]
pub struct CeilingMeter(Kind);

#[derive(Debug)]
enum Kind {
    #[cfg(feature = "cpu")]
    Cpu(qwen_backend_cpu::ceilings::CeilingMeter),
    #[cfg(feature = "cuda")]
    Cuda(Box<qwen_backend_cuda::ceilings::CeilingMeter>),
    #[cfg(feature = "wgpu")]
    Wgpu(Box<qwen_backend_wgpu::ceilings::CeilingMeter>),
}

impl CeilingMeter {
    /// A meter of `device`; of the processor with `threads` threads, one for each physical core when `None`. It takes
    /// up to a gigabyte of the device's memory, on a GPU twice that.
    ///
    /// # Errors
    /// When the memory or the device is refused, and for [`Device::Auto`], which is one or another depending on a
    /// model: [`crate::Engine::placed_on`] says which it became.
    pub fn new(device: &Device, threads: Option<usize>) -> Result<Self> {
        #[cfg(not(feature = "cpu"))]
        let _ = threads;
        Ok(CeilingMeter(match device {
            #[cfg(feature = "cpu")]
            Device::Cpu => {
                let threads = threads.unwrap_or_else(qwen_backend_cpu::physical_cores);
                Kind::Cpu(qwen_backend_cpu::ceilings::CeilingMeter::new(threads)?)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let options = qwen_backend_cuda::CudaOptions::new().ordinal(*ordinal);
                Kind::Cuda(Box::new(qwen_backend_cuda::ceilings::CeilingMeter::new(&options)?))
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => Self::wgpu(adapter, Default::default())?.0,
            _ => return Err(device.absent().into()),
        }))
    }

    /// A meter of a GPU with those of its features that `capabilities` allow: as [`CeilingMeter::new`], and of
    /// cooperative matrices with [`crate::CapabilitySet::Best`].
    ///
    /// ```no_run
    /// use qwen::{AdapterChoice, CapabilitySet, CeilingMeter};
    /// let meter = CeilingMeter::wgpu(&AdapterChoice::Best, CapabilitySet::Best)?;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CeilingMeter::new`].
    #[cfg(feature = "wgpu")]
    pub fn wgpu(adapter: &crate::AdapterChoice, capabilities: crate::CapabilitySet) -> Result<Self> {
        let options = qwen_backend_wgpu::WgpuOptions::new().adapter(adapter.clone()).capabilities(capabilities);
        Ok(CeilingMeter(Kind::Wgpu(Box::new(qwen_backend_wgpu::ceilings::CeilingMeter::new(&options)?))))
    }

    /// Measure all ceilings within about `budget`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn measure(&mut self, budget: Duration) -> Result<Ceilings> {
        Ok(match &mut self.0 {
            #[cfg(feature = "cpu")]
            Kind::Cpu(meter) => {
                let found = meter.measure(budget);
                Ceilings {
                    memory_bytes_per_second: found.memory_bytes_per_second,
                    copy_bytes_per_second: None,
                    f32_flops_per_second: found.f32_flops_per_second,
                    f16_flops_per_second: None,
                    f16_matrix_flops_per_second: None,
                    bf16_flops_per_second: found.bf16_flops_per_second,
                    int8_ops_per_second: found.int8_ops_per_second,
                }
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda(meter) => {
                let found = meter.measure(budget)?;
                Ceilings {
                    memory_bytes_per_second: found.memory_bytes_per_second,
                    copy_bytes_per_second: Some(found.copy_bytes_per_second),
                    f32_flops_per_second: found.f32_flops_per_second,
                    f16_flops_per_second: None,
                    f16_matrix_flops_per_second: None,
                    bf16_flops_per_second: found.bf16_flops_per_second,
                    int8_ops_per_second: None,
                }
            }
            #[cfg(feature = "wgpu")]
            Kind::Wgpu(meter) => {
                let found = meter.measure(budget)?;
                Ceilings {
                    memory_bytes_per_second: found.memory_bytes_per_second,
                    copy_bytes_per_second: Some(found.copy_bytes_per_second),
                    f32_flops_per_second: found.f32_flops_per_second,
                    f16_flops_per_second: found.f16_flops_per_second,
                    f16_matrix_flops_per_second: found.f16_matrix_flops_per_second,
                    bf16_flops_per_second: None,
                    int8_ops_per_second: None,
                }
            }
        })
    }
}
