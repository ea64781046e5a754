//! How much memory a model takes on a GPU, from shapes only.

use qwen_core::backend::Limits;
use qwen_core::backend::{KvSpec, ModelShape, WeightShape};
use qwen_core::{Footprint, Precision, Result};

use crate::device::DeviceProperties;
use crate::kv;
use crate::weight::Layout;
use crate::workspace::WorkspaceSizes;

/// The bytes of matrices, K/V and workspace on a GPU. No GPU is opened.
///
/// They exclude the context, the compiled kernels and recorded steps: [`crate::free_bytes`] returns what is free
/// besides a context.
///
/// ```
/// use qwen_backend_cuda::CudaFootprint;
/// use qwen_core::backend::{WeightRole, WeightShape};
/// use qwen_core::{Encoding, Footprint, Precision};
/// // Rows are padded to 16 bytes.
/// let odd = WeightShape { role: WeightRole::Linear, parts: vec![(Encoding::Bf16, 10)], cols: 100 };
/// let footprint = CudaFootprint::new(true, Precision::Fast);
/// assert_eq!(footprint.weight_bytes(&odd)?, 10 * 208);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaFootprint {
    tensor_cores: bool,
    precision: Precision,
}

impl CudaFootprint {
    /// The footprint on `device`.
    pub fn on(device: &DeviceProperties, precision: Precision) -> Self {
        Self::new(device.has_tensor_cores(), precision)
    }

    /// The footprint on a GPU of compute capability 8.0 or more (`tensor_cores`), or less.
    pub fn new(tensor_cores: bool, precision: Precision) -> Self {
        CudaFootprint { tensor_cores, precision }
    }

    /// The parts of the workspace, which [`qwen_core::Backend::prepare`] allocates.
    pub(crate) fn workspace(&self, limits: &Limits, shape: &ModelShape) -> Result<WorkspaceSizes> {
        WorkspaceSizes::new(self.tensor_cores, self.precision, limits, shape)
    }
}

impl Footprint for CudaFootprint {
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        Ok(Layout::new(shape)?.taken_bytes())
    }

    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        kv::kv_bytes(spec)
    }

    fn workspace_bytes(&self, limits: &Limits, shape: &ModelShape) -> Result<u64> {
        Ok(self.workspace(limits, shape)?.taken_bytes())
    }

    /// Matrices go through pinned host memory.
    fn staging_bytes(&self, _stored: u64) -> u64 {
        0
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}
