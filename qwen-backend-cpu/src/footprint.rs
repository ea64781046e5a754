//! How much memory a model takes on the CPU.

use qwen_core::backend::Limits;
use qwen_core::backend::{KvSpec, ModelShape, WeightShape};
use qwen_core::numerics::size;
use qwen_core::{Footprint, Result};

use crate::kernels::Scratch;
use crate::kernels::argmax::ArgmaxRuns;
use crate::kernels::attention::schedule::Schedule;
use crate::matrix::Layout;
use crate::{host, kv};

/// The sizes of packed matrices, of the K/V store and of the kernels' workspace: the same on every instruction set.
///
/// ```
/// use qwen_backend_cpu::CpuFootprint;
/// use qwen_core::backend::{WeightRole, WeightShape};
/// use qwen_core::{Encoding, Footprint};
/// let shape = WeightShape { role: WeightRole::Linear, parts: vec![(Encoding::Bf16, 33)], cols: 64 };
/// // Whole units of 32 rows.
/// assert_eq!(CpuFootprint.weight_bytes(&shape)?, 2 * 64 * 64);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuFootprint;

impl Footprint for CpuFootprint {
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        Ok(Layout::of_shape(shape)?.bytes as u64)
    }

    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        kv::bytes(spec)
    }

    fn workspace_bytes(&self, limits: &Limits, shape: &ModelShape) -> Result<u64> {
        let [panel, best] = workspace(limits, shape).map(|dimensions| size::bytes(4, &dimensions));
        let fixed = 4 * Schedule::MOST_PARTIAL + host::physical_cores() * Scratch::BYTES;
        Ok(panel.saturating_add(best).saturating_add(fixed as u64))
    }

    fn staging_bytes(&self, stored: u64) -> u64 {
        // Each thread reads the rows of one group at a time: two megabytes of f32 for the widest published model.
        stored.min((host::physical_cores() as u64).saturating_mul(4 << 20))
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}

/// Dimensions of the workspaces that grow with a step: the packed activations of the widest product, and the partial
/// argmax of each run of each row of logits.
pub(crate) fn workspace(limits: &Limits, shape: &ModelShape) -> [[usize; 2]; 2] {
    let rows = limits.max_num_batched_tokens.max(limits.max_num_logits);
    let widest = shape.widest_input().checked_next_multiple_of(2).unwrap_or(usize::MAX);
    [[rows, widest], [limits.max_num_logits, 2 * ArgmaxRuns::runs(limits.vocab_size)]]
}
