//! How much memory a model will take, before it is loaded: from headers and key biases alone, without a device.

mod sizes;
mod split;

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::backend::{Footprint, Limits};
use crate::error::{Error, Result};
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;
use crate::numerics::human_bytes::HumanBytes;
use crate::numerics::precision::Precision;
use crate::warning::Warning;
pub use sizes::limits_for;
use sizes::{Holding, Part, longest_context};
use split::Splitter;
pub use split::{Reserved, SplitDevice, SplitInput};

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
    /// What each device holds, in the order of the layers, if there are several. The other figures are their sums; where
    /// devices share a memory, `total_bytes` counts that they are loaded one after another.
    pub parts: Vec<PlanPart>,
    /// The [warnings](crate::Checkpoint::warnings) of the checkpoint. Empty for plans from other sources.
    pub warnings: Vec<Warning>,
}

/// What one device holds of a model that several devices share: perhaps no layer, if none fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlanPart {
    /// The device.
    pub device: String,
    /// Its layers. The first device also has the embedding table, the last one the output head; a tied model has the table
    /// on both.
    pub layers: Range<usize>,
    /// The bytes of this part. What is available is that of its memory, which it may share with other devices; it fits if
    /// all of them do.
    pub plan: Plan,
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
        let part = |source: &dyn WeightSource, input: &PlanInput<'_>| {
            // Of a file without weights, the first matrix is named and not a bias of keys, which decide how K/V is stored.
            input.spec.stored_bytes(source)?;
            let kv = input.spec.kv(&input.limits, input.precision, source)?;
            Part::new(source, input.spec, kv, footprint)
        };
        let draft = draft.map(|(source, draft)| part(source, draft).map(|part| (part, draft))).transpose()?;
        let holding = Holding { footprint, part: Some(part(source, input)?), draft };
        let plan_at = |context: usize| {
            let plan = holding.plan(input, context);
            let holds = input.available_bytes.is_none_or(|available| plan.total_bytes <= available);
            Plan { available_bytes: input.available_bytes, fits: holds && plan.refused.is_none(), ..plan }
        };
        let max_context = longest_context(input, |context| Ok(plan_at(context).fits))?;
        Ok(Plan { max_context, ..plan_at(input.context) })
    }

    /// Plan for several devices, each of which holds some consecutive layers: those that `split` names, or as many as fit.
    /// The sums are in the plan itself, what each device holds in [`Plan::parts`]. Of `input`, `available_bytes` is not
    /// used; a draft model is on the first device.
    ///
    /// # Errors
    /// As [`Plan::new`], with the name of the device; [`Error::InvalidArgument`] when the layers of the devices are not
    /// those of the model; [`Error::Unsupported`] for layers by plan on a device whose memory is not known.
    pub fn split(
        source: &dyn WeightSource,
        input: &PlanInput<'_>,
        draft: Option<(&dyn WeightSource, &PlanInput<'_>)>,
        split: &SplitInput<'_>,
    ) -> Result<Self> {
        Splitter::new(source, input, draft, split)?.plan()
    }

    /// The bytes that stay after the load.
    fn held_bytes(&self) -> u64 {
        let beside = self.draft.as_ref().map_or(0, DraftPlan::total_bytes).saturating_add(self.adapter_bytes);
        let parts = [self.weight_bytes, self.kv_bytes, self.activation_bytes, beside];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// A plan of nothing.
    fn empty(context: usize, batch: usize) -> Self {
        Plan {
            weight_bytes: 0,
            read_bytes: 0,
            kv_bytes: 0,
            activation_bytes: 0,
            load_bytes: 0,
            total_bytes: 0,
            available_bytes: None,
            fits: false,
            refused: None,
            context,
            batch,
            max_context: None,
            draft: None,
            adapter_bytes: 0,
            parts: Vec::new(),
            warnings: Vec::new(),
        }
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
            (None, _) if !self.fits && !self.parts.is_empty() => Err(self.overfull(shorter)),
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

    /// The error of several devices that do not hold the model together: the figures of the first one that its part
    /// alone is too large for, if there is one.
    fn overfull(&self, shorter: Option<String>) -> Error {
        let too_large = |plan: &&Plan| plan.available_bytes.is_some_and(|available| plan.total_bytes > available);
        let plan = self.parts.iter().map(|part| &part.plan).find(too_large).unwrap_or(self);
        let parts: Vec<String> = self.parts.iter().map(ToString::to_string).collect();
        Error::DoesNotFit {
            needed: plan.total_bytes,
            available: plan.available_bytes.unwrap_or(0),
            advice: format!(": {}{}", parts.join("; "), shorter.unwrap_or_default()),
        }
    }
}

impl PlanPart {
    /// How its layers are called: counted from 0, the last one included.
    fn name(&self) -> String {
        let (first, next) = (self.layers.start, self.layers.end);
        match self.layers.len() {
            0 => format!("no layer on `{}`", self.device),
            1 => format!("layer {first} on `{}`", self.device),
            _ => format!("layers {first} to {} on `{}`", next - 1, self.device),
        }
    }
}

impl fmt::Display for PlanPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, read] = [self.plan.total_bytes, self.plan.read_bytes].map(HumanBytes);
        write!(f, "{}: {total}, a token reads {read}", self.name())?;
        match (&self.plan.refused, self.plan.available_bytes) {
            (Some(reason), _) => write!(f, ", refused: {reason}"),
            (None, Some(available)) if !self.plan.fits => write!(f, ", {} are available", HumanBytes(available)),
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
        }?;
        self.parts.iter().try_for_each(|part| write!(f, "; {part}"))
    }
}
