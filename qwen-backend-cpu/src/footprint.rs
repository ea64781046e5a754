//! What a model takes on the CPU.

use qwen_core::backend::{KvSpec, ModelShape, WeightShape};
use qwen_core::batch::Limits;
use qwen_core::{Error, Footprint, Result};

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
        Ok(Layout::of_shape(shape)?.bytes() as u64)
    }

    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        Ok(kv::bytes(spec)? as u64)
    }

    fn workspace_bytes(&self, limits: &Limits, shape: &ModelShape) -> Result<u64> {
        let workspace = Workspace::of(limits, shape)?;
        let words = workspace.panel as u64 + workspace.best as u64 + Schedule::MOST_PARTIAL as u64;
        Ok(4 * words + (host::physical_cores() * Scratch::BYTES) as u64)
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}

/// Elements of the workspaces that grow with a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workspace {
    /// Packed activations of the widest product.
    pub(crate) panel: usize,
    /// The best of each run of each row of logits.
    pub(crate) best: usize,
}

impl Workspace {
    /// What the largest step takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when that exceeds the address space.
    pub(crate) fn of(limits: &Limits, shape: &ModelShape) -> Result<Workspace> {
        let rows = limits.max_num_batched_tokens.max(limits.max_num_logits);
        let widest = shape.widest_input();
        let sizes = || {
            let panel = rows.checked_mul(widest.checked_next_multiple_of(2)?)?;
            let best = limits.max_num_logits.checked_mul(2 * ArgmaxRuns::runs(limits.vocab_size))?;
            // In bytes, and all of it together.
            panel.checked_add(best)?.checked_add(Schedule::MOST_PARTIAL)?.checked_mul(4)?;
            Some(Workspace { panel, best })
        };
        sizes().ok_or_else(|| {
            let reason = format!("{rows} rows of {widest} values exceed the address space");
            Error::argument("max_num_batched_tokens", reason)
        })
    }
}
