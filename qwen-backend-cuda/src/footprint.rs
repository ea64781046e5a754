//! What a model takes on a card, from shapes alone.

use qwen_core::backend::ModelShape;
use qwen_core::backend::{KvSpec, WeightShape};
use qwen_core::batch::Limits;
use qwen_core::{Footprint, Precision, Result};

use crate::card_info::CardInfo;
use crate::geometry::WEIGHT_ALIGN;
use crate::gpu::taken_bytes;
use crate::kv;
use crate::records::{records_held, span_count, token_records};
use crate::weight::Layout;

/// The bytes of matrices, K/V and workspace on a card. No card is opened.
///
/// What the context, the compiled kernels and recorded steps take is not among them: [`crate::free_bytes`] asks for what
/// is free beside a context.
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
    /// The footprint on `card`.
    pub fn on(card: &CardInfo, precision: Precision) -> Self {
        Self::new(card.has_tensor_cores(), precision)
    }

    /// The footprint on a card of compute capability 8.0 or more (`tensor_cores`), or less.
    pub fn new(tensor_cores: bool, precision: Precision) -> Self {
        CudaFootprint { tensor_cores, precision }
    }

    /// Activations rounded for tensor cores, and the factors of their rows.
    fn half_bytes(&self, limits: &Limits, shape: &ModelShape) -> u64 {
        if !self.tensor_cores || self.precision == Precision::Exact {
            return 0;
        }
        let widest = shape.hidden_size.max(shape.heads.q_size()).max(shape.intermediate_size);
        let tokens = limits.max_num_batched_tokens.max(limits.max_num_logits);
        taken_bytes(tokens * 2 * widest.next_multiple_of(WEIGHT_ALIGN)) + taken_bytes(tokens * 4)
    }

    /// Records of attention's spans in steps of a token for each sequence.
    fn record_bytes(&self, limits: &Limits, shape: &ModelShape) -> u64 {
        let spans = span_count(limits.max_blocks_per_seq(), limits.block_size);
        if spans <= 1 {
            return 0;
        }
        let token = token_records(shape.heads.num_attention_heads, spans, shape.heads.head_dim);
        taken_bytes(token * records_held(limits.max_num_seqs, token))
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
        Ok(self.half_bytes(limits, shape) + self.record_bytes(limits, shape))
    }

    /// Matrices come through pinned memory of the host.
    fn staging_bytes(&self, _stored: u64) -> u64 {
        0
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}
