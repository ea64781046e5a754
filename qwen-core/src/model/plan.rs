//! How much memory a model will take, before it is loaded: from headers and key biases alone, without a device.

use std::fmt;

use serde::Serialize;

use crate::backend::{Footprint, KvSpec, Limits, ModelShape, WeightRole, WeightShape};
use crate::error::{Error, Result};
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;
use crate::numerics::encoding::Encoding;
use crate::numerics::human_bytes::HumanBytes;
use crate::numerics::precision::Precision;
use crate::numerics::size;
use crate::warning::Warning;

/// The bytes that a model takes on a device, and whether they are available, as data: to print, serialise, or decide
/// by. Its `Display` form is one line, without the warnings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[must_use = "a plan loads nothing: look at what it says"]
#[non_exhaustive]
pub struct Plan {
    /// Packed matrices, norms and biases.
    pub weight_bytes: u64,
    /// The part of the weights that generating a token reads: all except an embedding table that is not the output
    /// head.
    pub read_bytes: u64,
    /// The K/V store for `context` positions of `batch` sequences.
    pub kv_bytes: u64,
    /// Activations, step inputs, logits and the kernels' workspace.
    pub activation_bytes: u64,
    /// The peak while loading: the matrices packed so far and, if it is in the same memory, the stored one being
    /// packed.
    pub load_bytes: u64,
    /// The peak at any time: weights, K/V and activations, or the peak while loading.
    pub total_bytes: u64,
    /// What the process may use on the device; `None` if unknown.
    pub available_bytes: Option<u64>,
    /// Whether `total_bytes` are available, and nothing was refused.
    pub fits: bool,
    /// Why the device cannot hold the K/V or the buffers of these sizes, however much memory it has. `kv_bytes` and
    /// `activation_bytes` are then what they would take on another device.
    pub refused: Option<String>,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences that have their whole context at the same time.
    pub batch: usize,
    /// The longest context that would fit with this batch; `None` when none does.
    pub max_context: Option<usize>,
    /// What a draft model takes on the same device, beside the figures of the model itself. It is part of
    /// `total_bytes`.
    pub draft: Option<DraftPlan>,
    /// What is set aside for low-rank adapters that are loaded beside the model. It is part of `total_bytes`.
    pub adapter_bytes: u64,
    /// The [warnings](crate::Checkpoint::warnings) of the checkpoint. Empty for plans from other sources.
    pub warnings: Vec<Warning>,
}

/// The bytes that a draft model takes beside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DraftPlan {
    /// Packed matrices, norms and biases.
    pub weight_bytes: u64,
    /// The K/V store, for as many sequences as the model itself holds, of as many positions or of the draft model's
    /// longest context.
    pub kv_bytes: u64,
    /// Activations, step inputs, logits and the kernels' workspace.
    pub activation_bytes: u64,
    /// The peak while loading, which comes after the model itself is loaded.
    pub load_bytes: u64,
}

impl DraftPlan {
    /// The peak at any time.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let DraftPlan { weight_bytes, kv_bytes, activation_bytes, load_bytes } = *self;
        load_bytes.max(weight_bytes.saturating_add(kv_bytes).saturating_add(activation_bytes))
    }
}

/// The sizes that a plan is made for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanInput<'a> {
    /// The model or a part of it.
    pub spec: &'a ModelSpec,
    /// Sizes of steps and of the K/V store; `num_blocks` and `max_model_len` follow from `context` and `batch`.
    pub limits: Limits,
    /// Decides the element type of the K/V store.
    pub precision: Precision,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences that have their whole context at the same time.
    pub batch: usize,
    /// The longest context that the model allows.
    pub model_context: usize,
    /// What the process may use on the device.
    pub available_bytes: Option<u64>,
}

impl Plan {
    /// Plan for a device with this footprint.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the checkpoint lacks one that the model needs; [`Error::Unsupported`] when the
    /// device cannot hold one of its matrices.
    pub fn new(source: &dyn WeightSource, input: &PlanInput<'_>, footprint: &dyn Footprint) -> Result<Self> {
        Self::with_draft(source, input, None, footprint)
    }

    /// Plan for a device with this footprint that also holds a draft model, which is loaded second. Of its input,
    /// `context`, `batch` and `available_bytes` are not used.
    ///
    /// # Errors
    /// As [`Plan::new`], for both models.
    pub fn with_draft(
        source: &dyn WeightSource,
        input: &PlanInput<'_>,
        draft: Option<(&dyn WeightSource, &PlanInput<'_>)>,
        footprint: &dyn Footprint,
    ) -> Result<Self> {
        let PlanInput { context, batch, .. } = *input;
        let part = Part::new(source, input, footprint)?;
        let draft = draft.map(|(source, draft)| Part::new(source, draft, footprint).map(|part| (part, draft)));
        let draft = draft.transpose()?;
        let sized = |context: usize| {
            let own = part.sized(&input.limits, context, batch, footprint);
            let beside = draft.as_ref().map(|(part, draft)| {
                let sized = part.sized(&draft.limits, context.min(draft.model_context), batch, footprint);
                let plan = DraftPlan {
                    weight_bytes: part.weight_bytes,
                    kv_bytes: sized.kv,
                    activation_bytes: sized.activations,
                    load_bytes: part.load_bytes,
                };
                (plan, sized.refused)
            });
            (own, beside)
        };
        let total = |(own, beside): &(Variable, Option<(DraftPlan, Option<String>)>)| {
            let loaded = part.weight_bytes.saturating_add(own.kv).saturating_add(own.activations);
            let beside = beside.as_ref().map_or(0, |(plan, _)| plan.total_bytes());
            part.load_bytes.max(loaded.saturating_add(beside))
        };
        let is_refused = |(own, beside): &(Variable, Option<(DraftPlan, Option<String>)>)| {
            own.refused.is_some() || beside.as_ref().is_some_and(|(_, refused)| refused.is_some())
        };
        let holds =
            |sized: &_| !is_refused(sized) && input.available_bytes.is_none_or(|available| total(sized) <= available);
        let block_size = input.limits.block_size.max(1);
        // The largest number of blocks that fits, by bisection: memory grows with the context.
        let (mut low, mut high) = (0, input.model_context.div_ceil(block_size));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if holds(&sized(middle * block_size)) { low = middle } else { high = middle - 1 }
        }
        let sized = sized(context);
        let (total_bytes, fits) = (total(&sized), holds(&sized));
        let (own, beside) = sized;
        let (draft, draft_refused) = beside.map_or((None, None), |(plan, refused)| (Some(plan), refused));
        Ok(Plan {
            weight_bytes: part.weight_bytes,
            read_bytes: part.weight_bytes - part.table_bytes,
            kv_bytes: own.kv,
            activation_bytes: own.activations,
            load_bytes: part.load_bytes,
            total_bytes,
            available_bytes: input.available_bytes,
            fits,
            refused: own.refused.or(draft_refused.map(|reason| format!("the draft model: {reason}"))),
            context,
            batch,
            max_context: (low > 0).then(|| (low * block_size).min(input.model_context)),
            draft,
            adapter_bytes: 0,
            warnings: Vec::new(),
        })
    }

    /// The same plan with `bytes` set aside for adapters, where it was made for as many bytes less than are available.
    pub fn with_adapters(mut self, bytes: u64) -> Self {
        self.adapter_bytes = bytes;
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        self.available_bytes = self.available_bytes.map(|available| available.saturating_add(bytes));
        self
    }

    /// Refuse what does not fit.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with the figures and what would fit; [`Error::Unsupported`] when the device refuses these
    /// sizes.
    pub fn check(&self) -> Result<()> {
        let shorter =
            self.max_context.map(|fits| format!(": a context of {fits} instead of {} would fit", self.context));
        match (&self.refused, self.available_bytes) {
            (Some(reason), _) => Err(Error::unsupported(
                format!("a context of {} for {} sequences on this device", self.context, self.batch),
                format!("{reason}{}", shorter.unwrap_or_default()),
            )),
            (None, Some(available)) if !self.fits => Err(Error::DoesNotFit {
                needed: self.total_bytes,
                available,
                advice: shorter.unwrap_or_else(|| {
                    let weights = HumanBytes(self.weight_bytes);
                    match &self.draft {
                        None => format!(": the weights alone take {weights}"),
                        Some(draft) => {
                            let draft = HumanBytes(draft.weight_bytes);
                            format!(": the weights alone take {weights}, those of the draft model {draft}")
                        }
                    }
                }),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, weights, kv, activations] =
            [self.total_bytes, self.weight_bytes, self.kv_bytes, self.activation_bytes].map(HumanBytes);
        write!(f, "{total}: weights {weights}, K/V {kv} (")?;
        if self.batch > 1 {
            write!(f, "{} x ", self.batch)?;
        }
        write!(f, "{} positions), activations {activations}", self.context)?;
        if let Some(DraftPlan { weight_bytes, kv_bytes, activation_bytes, .. }) = self.draft {
            let [weights, kv, activations] = [weight_bytes, kv_bytes, activation_bytes].map(HumanBytes);
            write!(f, ", draft model: weights {weights}, K/V {kv}, activations {activations}")?;
        }
        if self.adapter_bytes > 0 {
            write!(f, ", adapters {}", HumanBytes(self.adapter_bytes))?;
        }
        f.write_str("; ")?;
        match (&self.refused, self.available_bytes) {
            (Some(reason), _) => write!(f, "refused: {reason}"),
            (None, Some(available)) => {
                write!(
                    f,
                    "{}, {} are available",
                    if self.fits { "fits" } else { "does not fit" },
                    HumanBytes(available)
                )
            }
            (None, None) => f.write_str("what is available is not known"),
        }
    }
}

/// Bytes of the parts that are held in converted form while they are read, since their files do not store rows.
fn converted_bytes(shape: &WeightShape) -> Result<u64> {
    let parts = shape.parts.iter().filter(|(encoding, _)| matches!(encoding, Encoding::Group(_)));
    WeightShape { parts: parts.copied().collect(), ..*shape }.stored_bytes()
}

/// What a model takes whatever the context is.
struct Part {
    weight_bytes: u64,
    /// The part of an embedding table that is not the output head.
    table_bytes: u64,
    load_bytes: u64,
    kv: KvSpec,
    shape: ModelShape,
}

impl Part {
    fn new(source: &dyn WeightSource, input: &PlanInput<'_>, footprint: &dyn Footprint) -> Result<Self> {
        let spec = input.spec;
        let mut weight_bytes = spec.vector_bytes();
        let (mut load_bytes, mut table_bytes) = (0, 0);
        for weight in spec.weights() {
            let shape = weight.shape(source)?;
            let packed = footprint.weight_bytes(&shape)?.saturating_add(weight.column_order_bytes(source)?);
            weight_bytes += packed;
            if shape.role == WeightRole::Embedding && !spec.tie_word_embeddings {
                table_bytes = packed;
            }
            let staging = footprint.staging_bytes(shape.stored_bytes()?);
            // Matrices of several tensors are converted in host memory, which counts if the device shares it.
            let converted = if staging > 0 { converted_bytes(&shape)? } else { 0 };
            load_bytes = load_bytes.max(weight_bytes + staging.saturating_add(converted));
        }
        let kv = spec.kv(&input.limits, input.precision, source)?;
        Ok(Part { weight_bytes, table_bytes, load_bytes, kv, shape: spec.shape() })
    }

    /// What it takes more with this context.
    fn sized(&self, limits: &Limits, context: usize, batch: usize, footprint: &dyn Footprint) -> Variable {
        let limits = limits_for(limits, context, batch);
        let kv_spec = KvSpec { num_blocks: limits.num_blocks, ..self.kv.clone() };
        let activations = activation_bytes(&limits, &self.shape, !footprint.fuses_gate_up());
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
fn activation_bytes(limits: &Limits, shape: &ModelShape, gate_up_scratch: bool) -> u64 {
    let ModelShape { hidden_size, intermediate_size, heads, .. } = *shape;
    let per_token = 3 * hidden_size
        + heads.qkv_size()
        + heads.q_size()
        + intermediate_size * if gate_up_scratch { 3 } else { 1 }
        + heads.head_dim
        + 2;
    let per_seq = limits.max_blocks_per_seq().saturating_add(2);
    let per_row = limits.vocab_size.saturating_add(hidden_size).saturating_add(2);
    [
        size::bytes(4, &[limits.max_num_batched_tokens, per_token]),
        size::bytes(4, &[limits.max_num_seqs, per_seq]),
        size::bytes(4, &[limits.max_num_logits, per_row]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}
