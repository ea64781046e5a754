//! What a model takes on the CPU.

use qwen_core::backend::{KvSpec, WeightShape};
use qwen_core::batch::Limits;
use qwen_core::model::spec::ModelSpec;
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

    fn workspace_bytes(&self, limits: &Limits, spec: &ModelSpec) -> Result<u64> {
        let (tokens, widest) = (limits.max_num_batched_tokens as u64, spec.widest_row() as u64);
        let fixed = 4 * Schedule::MOST_PARTIAL as u64 + (host::physical_cores() * Scratch::BYTES) as u64;
        // The panel of a product, and the best of each run of a row of logits.
        let token =
            || widest.checked_add(1)?.checked_mul(4)?.checked_add(8 * ArgmaxRuns::runs(spec.widest_row()) as u64);
        token().and_then(|token| tokens.checked_mul(token)?.checked_add(fixed)).ok_or_else(|| {
            let size = format!("{tokens} tokens in rows of {widest} values");
            Error::argument("max_num_batched_tokens", format!("{size} exceed the address space"))
        })
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}
