//! The bytes of a model's parts on a device with a footprint: what depends on the context, and what does not.

use super::{DraftPlan, Plan, PlanInput};
use crate::backend::{Footprint, KvSpec, Limits, ModelShape, WeightRole, WeightShape};
use crate::error::Result;
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;
use crate::numerics::encoding::Encoding;
use crate::numerics::size;

/// Bytes of the parts that are held in converted form while they are read, since their files do not store rows.
fn converted_bytes(shape: &WeightShape) -> Result<u64> {
    let parts = shape.parts.iter().filter(|(encoding, _)| matches!(encoding, Encoding::Group(_)));
    WeightShape { parts: parts.copied().collect(), ..*shape }.stored_bytes()
}

/// What a model, or some of its layers, takes whatever the context is.
#[derive(Debug, Clone)]
pub(super) struct Part {
    weight_bytes: u64,
    /// The part of an embedding table that is not the output head.
    table_bytes: u64,
    load_bytes: u64,
    kv: KvSpec,
    shape: ModelShape,
    has_head: bool,
}

impl Part {
    /// The part `spec` on a device with this footprint, where its layers have the K/V store `kv`.
    pub(super) fn new(
        source: &dyn WeightSource,
        spec: &ModelSpec,
        kv: KvSpec,
        footprint: &dyn Footprint,
    ) -> Result<Self> {
        let mut weight_bytes = spec.vector_bytes();
        let (mut load_bytes, mut table_bytes) = (0, 0);
        for weight in spec.weights() {
            let shape = weight.shape(source)?;
            let packed = footprint.weight_bytes(&shape)?.saturating_add(weight.column_order_bytes(source)?);
            weight_bytes += packed;
            if shape.role == WeightRole::Embedding && !(spec.tie_word_embeddings && spec.has_head()) {
                table_bytes = packed;
            }
            let staging = footprint.staging_bytes(shape.stored_bytes()?);
            // Matrices of several tensors are converted in host memory, which counts if the device shares it.
            let converted = if staging > 0 { converted_bytes(&shape)? } else { 0 };
            load_bytes = load_bytes.max(weight_bytes + staging.saturating_add(converted));
        }
        Ok(Part { weight_bytes, table_bytes, load_bytes, kv, shape: spec.shape(), has_head: spec.has_head() })
    }

    /// What it takes more with this context.
    fn sized(&self, limits: &Limits, context: usize, batch: usize, footprint: &dyn Footprint) -> Variable {
        let limits = limits_for(limits, context, batch);
        let kv_spec = KvSpec { num_blocks: limits.num_blocks, ..self.kv.clone() };
        let activations = activation_bytes(&limits, &self.shape, self.has_head, !footprint.fuses_gate_up());
        // A device is only asked about plausible sizes, so that its own arithmetic does not overflow.
        let asked =
            limits.check().map(|()| (footprint.kv_bytes(&kv_spec), footprint.workspace_bytes(&limits, &self.shape)));
        let (kv, workspace, refused) = match asked {
            Ok((kv, workspace)) => {
                (kv.as_ref().ok().copied(), workspace.as_ref().ok().copied(), kv.and(workspace).err())
            }
            Err(error) => (None, None, Some(error)),
        };
        Variable {
            kv: kv.unwrap_or_else(|| kv_spec.stored_bytes()),
            activations: activations.saturating_add(workspace.unwrap_or(0)),
            refused: refused.map(|error| error.to_string()),
        }
    }
}

/// What depends on the context.
struct Variable {
    kv: u64,
    activations: u64,
    refused: Option<String>,
}

/// What one device is to hold.
pub(super) struct Holding<'a> {
    pub(super) footprint: &'a dyn Footprint,
    /// The model or some of its layers.
    pub(super) part: Option<Part>,
    /// A draft model beside it, which is loaded second.
    pub(super) draft: Option<(Part, &'a PlanInput<'a>)>,
}

impl Holding<'_> {
    /// The bytes of all of it with this context, whatever memory there is.
    pub(super) fn plan(&self, input: &PlanInput<'_>, context: usize) -> Plan {
        let (footprint, batch) = (self.footprint, input.batch);
        let own = self.part.as_ref().map(|part| (part, part.sized(&input.limits, context, batch, footprint)));
        let draft = self.draft.as_ref().map(|(part, draft)| {
            let sized = part.sized(&draft.limits, context.min(draft.model_context), batch, footprint);
            let plan = DraftPlan {
                weight_bytes: part.weight_bytes,
                kv_bytes: sized.kv,
                activation_bytes: sized.activations,
                load_bytes: part.load_bytes,
            };
            (plan, sized.refused.map(|reason| format!("the draft model: {reason}")))
        });
        let (draft, draft_refused) = draft.map_or((None, None), |(plan, refused)| (Some(plan), refused));
        let beside = draft.as_ref().map_or(0, DraftPlan::total_bytes);
        let mut plan = Plan { draft, total_bytes: beside, ..Plan::empty(context, batch) };
        if let Some((part, sized)) = own {
            plan.weight_bytes = part.weight_bytes;
            plan.read_bytes = part.weight_bytes - part.table_bytes;
            plan.kv_bytes = sized.kv;
            plan.activation_bytes = sized.activations;
            plan.load_bytes = part.load_bytes;
            let loaded = part.weight_bytes.saturating_add(sized.kv).saturating_add(sized.activations);
            plan.total_bytes = part.load_bytes.max(loaded.saturating_add(beside));
            plan.refused = sized.refused;
        }
        plan.refused = plan.refused.or(draft_refused);
        plan
    }
}

/// The longest context for which `fits` is true, in whole blocks and within the model's, by bisection: memory grows with
/// the context.
pub(super) fn longest_context(
    input: &PlanInput<'_>,
    mut fits: impl FnMut(usize) -> Result<bool>,
) -> Result<Option<usize>> {
    let block_size = input.limits.block_size.max(1);
    let (mut low, mut high) = (0, input.model_context.div_ceil(block_size));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle * block_size)? { low = middle } else { high = middle - 1 }
    }
    Ok((low > 0).then(|| (low * block_size).min(input.model_context)))
}

/// `limits` for `batch` sequences of `context` positions.
pub fn limits_for(limits: &Limits, context: usize, batch: usize) -> Limits {
    Limits {
        max_model_len: context,
        num_blocks: context.div_ceil(limits.block_size.max(1)).saturating_mul(batch),
        max_num_batched_tokens: limits.max_num_batched_tokens.min(context.saturating_mul(batch)),
        ..limits.clone()
    }
}

/// Bytes of the f32 and u32 buffers that [`crate::model::Model`] allocates for these limits; `u64::MAX` if they
/// overflow.
fn activation_bytes(limits: &Limits, shape: &ModelShape, has_head: bool, gate_up_scratch: bool) -> u64 {
    let ModelShape { hidden_size, intermediate_size, heads, .. } = *shape;
    let per_token = 3 * hidden_size
        + heads.qkv_size()
        + heads.q_size()
        + intermediate_size * if gate_up_scratch { 3 } else { 1 }
        + heads.head_dim
        + 2;
    let per_seq = limits.max_blocks_per_seq().saturating_add(2);
    // Each row also has its index among the step's inputs, which every part gets.
    let per_row = limits.vocab_size.saturating_add(hidden_size).saturating_add(1);
    [
        size::bytes(4, &[limits.max_num_batched_tokens, per_token]),
        size::bytes(4, &[limits.max_num_seqs, per_seq]),
        size::bytes(4, &[if has_head { limits.max_num_logits } else { 0 }, per_row]),
        size::bytes(4, &[limits.max_num_logits]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}
