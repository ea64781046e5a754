//! What the example `bench` needs beside the public API: the ceilings of a device. Not for programs: it may change at any
//! time.

use std::fmt;
use std::time::Duration;

pub use qwen_core::ceilings::Ceilings;

use crate::device::Device;
use crate::error::Result;
use crate::options::EngineOptions;

/// Measures the ceilings of a device again and again.
pub trait CeilingMeter: fmt::Debug {
    /// Measure all ceilings within about `budget`.
    ///
    /// # Errors
    /// What the device reports.
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings>;
}

/// A meter of `device`, opened with the threads and the capabilities of `options`. It takes up to a gigabyte of the
/// processor's memory, or two of a GPU's.
///
/// # Errors
/// When the memory or the device is refused, and for [`Device::Auto`], which stands for one device or another depending
/// on the model: [`crate::Engine::device`] says for which.
pub fn ceiling_meter(device: &Device, options: &EngineOptions) -> Result<Box<dyn CeilingMeter>> {
    let _ = options;
    match device {
        #[cfg(feature = "cpu")]
        Device::Cpu => {
            let threads = options.settings.threads.unwrap_or_else(qwen_backend_cpu::physical_cores);
            Ok(Box::new(qwen_backend_cpu::ceilings::CeilingMeter::new(threads)?))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let options = qwen_backend_cuda::CudaOptions::new().ordinal(*ordinal);
            Ok(Box::new(qwen_backend_cuda::ceilings::CeilingMeter::new(&options)?))
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu(adapter) => {
            let capabilities = options.settings.wgpu_capabilities;
            let options = qwen_backend_wgpu::WgpuOptions::new().adapter(adapter.clone()).capabilities(capabilities);
            Ok(Box::new(qwen_backend_wgpu::ceilings::CeilingMeter::new(&options)?))
        }
        _ => Err(device.unsupported().into()),
    }
}

#[cfg(feature = "cpu")]
impl CeilingMeter for qwen_backend_cpu::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        Ok(qwen_backend_cpu::ceilings::CeilingMeter::measure(self, budget))
    }
}

#[cfg(feature = "cuda")]
impl CeilingMeter for qwen_backend_cuda::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        self.measure(budget)
    }
}

#[cfg(feature = "wgpu")]
impl CeilingMeter for qwen_backend_wgpu::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        self.measure(budget)
    }
}
