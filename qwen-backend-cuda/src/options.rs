//! The options of a backend: its GPU, and its precision.

use qwen_core::Precision;

#[cfg(feature = "emulator")]
use crate::driver::emulated::EmulatedGpu;

/// The options of a [`crate::CudaBackend`].
///
/// ```
/// use qwen_backend_cuda::CudaOptions;
/// use qwen_core::Precision;
/// let options = CudaOptions::new().ordinal(1).precision(Precision::Exact);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    pub(crate) ordinal: usize,
    pub(crate) precision: Precision,
    pub(crate) wait_after_each_kernel: bool,
    #[cfg(feature = "emulator")]
    pub(crate) emulated: Option<EmulatedGpu>,
}

impl CudaOptions {
    /// The first GPU, fast precision.
    pub fn new() -> Self {
        Self::default()
    }

    /// The GPU with this number in [`crate::devices`]. Default 0.
    pub fn ordinal(mut self, ordinal: usize) -> Self {
        self.ordinal = ordinal;
        self
    }

    /// What may be rounded. Default [`Precision::Fast`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Wait for each kernel, so that a fault of the GPU names the kernel that caused it. Slow: for finding such faults.
    /// Steps are not recorded then. Default false.
    pub fn wait_after_each_kernel(mut self, wait: bool) -> Self {
        self.wait_after_each_kernel = wait;
        self
    }

    /// Run the kernels on the CPU, compiled from their sources. For tests: it is slow.
    #[cfg(feature = "emulator")]
    pub fn emulated(mut self, gpu: EmulatedGpu) -> Self {
        self.emulated = Some(gpu);
        self
    }
}
