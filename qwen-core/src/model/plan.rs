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
    /// The [warnings](crate::Checkpoint::warnings) of the checkpoint. Empty for plans from other sources.
    pub warnings: Vec<Warning>,
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
        let PlanInput { spec, precision, context, batch, .. } = *input;
        let mut weight_bytes = spec.vector_bytes();
        let (mut load_bytes, mut table_bytes) = (0, 0);
        for weight in spec.weights() {
            let shape = weight.shape(source)?;
            let packed = footprint.weight_bytes(&shape)?;
            weight_bytes += packed;
            if shape.role == WeightRole::Embedding && !spec.tie_word_embeddings {
                table_bytes = packed;
            }
            let staging = footprint.staging_bytes(shape.stored_bytes()?);
            // Matrices of several tensors are converted in host memory, which counts if the device shares it.
            let converted = if staging > 0 { converted_bytes(&shape)? } else { 0 };
            load_bytes = load_bytes.max(weight_bytes + staging.saturating_add(converted));
        }
        let kv_spec = spec.kv(&input.limits, precision, source)?;
        let sized = |context: usize| {
            let limits = limits_for(&input.limits, context, batch);
            let kv_spec = KvSpec { num_blocks: limits.num_blocks, ..kv_spec.clone() };
            let scratch = !footprint.fuses_gate_up();
            let activations = activation_bytes(&limits, &spec.shape(), scratch);
            // A device is only asked about plausible sizes, so that its own arithmetic does not overflow.
            let asked = limits
                .check()
                .map(|()| (footprint.kv_bytes(&kv_spec), footprint.workspace_bytes(&limits, &spec.shape())));
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
        };
        let total =
            |sized: &Variable| load_bytes.max(weight_bytes.saturating_add(sized.kv).saturating_add(sized.activations));
        let holds = |sized: &Variable| {
            sized.refused.is_none() && input.available_bytes.is_none_or(|available| total(sized) <= available)
        };
        let block_size = input.limits.block_size.max(1);
        // The largest number of blocks that fits, by bisection: memory grows with the context.
        let (mut low, mut high) = (0, input.model_context.div_ceil(block_size));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if holds(&sized(middle * block_size)) { low = middle } else { high = middle - 1 }
        }
        let sized = sized(context);
        Ok(Plan {
            weight_bytes,
            read_bytes: weight_bytes - table_bytes,
            kv_bytes: sized.kv,
            activation_bytes: sized.activations,
            load_bytes,
            total_bytes: total(&sized),
            available_bytes: input.available_bytes,
            fits: holds(&sized),
            refused: sized.refused,
            context,
            batch,
            max_context: (low > 0).then(|| (low * block_size).min(input.model_context)),
            warnings: Vec::new(),
        })
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
                advice: shorter
                    .unwrap_or_else(|| format!(": the weights alone take {}", HumanBytes(self.weight_bytes))),
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
        write!(f, "{} positions), activations {activations}; ", self.context)?;
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
