//! A driver's description of a CUDA GPU. Plain data; `driver/machine.rs` queries it.

use std::fmt;

/// The properties of a CUDA GPU.
///
/// ```
/// match qwen_backend_cuda::devices() {
///     Ok(devices) => devices.iter().for_each(|device| println!("{device}: {} bytes", device.memory)),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceProperties {
    /// Its number among the GPUs that this process may use, as CUDA counts them.
    pub ordinal: usize,
    /// The name that the driver gives.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes of shared memory that a block can be given.
    pub max_shared_bytes: u32,
    /// The newest version of CUDA that the driver supports, major and minor.
    pub driver: (u32, u32),
}

impl DeviceProperties {
    /// Whether it has bf16 tensor cores and asynchronous copies, which the kernels for prompts use.
    pub fn has_tensor_cores(&self) -> bool {
        self.compute_capability >= (8, 0)
    }
}

impl fmt::Display for DeviceProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(f, "{} (cuda:{}, compute capability {major}.{minor})", self.name, self.ordinal)
    }
}
