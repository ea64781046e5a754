//! How much memory a model takes, before it is loaded: from headers and key biases, without a device.

use std::path::Path;

use qwen_core::backend::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::float_env::FloatEnv;
use qwen_core::quantize::{QuantizedWeights, TensorMix};
use qwen_core::{Config, Error, Warning};

use crate::device::Device;
use crate::device::auto::{self, Candidate, Wanted};
use crate::device::factory::{Capacity, DeviceFactory};
use crate::distributed;
use crate::error::Result;
use crate::locate::locate;
use crate::options::{EngineOptions, YarnOption};

/// The longest default context: longer ones cost memory, and base models specify contexts that need YaRN.
const DEFAULT_CONTEXT: usize = 32_768;

/// Positions of a K/V block.
const BLOCK_SIZE: usize = 32;

/// Buffers are sized for at least this many sequences per step: short requests run together whatever the batch size.
const LEAST_NUM_SEQS: usize = 8;

/// The default number of rows of logits per step.
const MAX_NUM_LOGITS: usize = 16;

/// How much memory the model at `path` takes with `options`, from its headers and key biases. If several processes
/// share the model: how much this one takes.
///
/// ```no_run
/// let options = qwen::EngineOptions::new().context(8192);
/// let plan = qwen::plan("path/to/Qwen2.5-7B-Instruct", &options)?;
/// println!("{plan}");
/// # Ok::<(), qwen::Error>(())
/// ```
///
/// # Errors
/// What is wrong with the checkpoint or the options. A model that does not fit is not an error: see [`Plan::fits`].
pub fn plan(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Plan> {
    let _float_env = FloatEnv::enter();
    let checkpoint = Checkpoint::open(locate(path.as_ref(), options)?)?;
    let config = config_of(&checkpoint, options)?;
    let draft = OpenDraft::open(options)?;
    let mut planner = Planner::new(options, &checkpoint, &config, config.vocab_size)?;
    planner.draft = draft.as_ref().map(|draft| draft.planner(draft.config.vocab_size)).transpose()?;
    let candidates = planner.candidates(&options.device);
    let device = candidates.first().map_or(&options.device, |candidate| &candidate.device);
    Ok(planner.plan(&*device.factory()?)?)
}

/// The configuration of the checkpoint, with the YaRN of the options.
pub(crate) fn config_of(checkpoint: &Checkpoint, options: &EngineOptions) -> qwen_core::Result<Config> {
    let config = checkpoint.config().clone();
    match options.yarn {
        Some(YarnOption::Always(factor)) => config.with_yarn(factor),
        Some(YarnOption::Auto(factor)) => config.with_auto_yarn(factor),
        None => Ok(config),
    }
}

/// Refuse contexts that the model does not support, and bounds that contradict each other.
fn check_contexts(options: &EngineOptions, config: &Config) -> qwen_core::Result<()> {
    let most = config.max_context();
    let EngineOptions { context, context_at_most, context_at_least, .. } = *options;
    for (name, context) in [("context", context), ("context_at_least", context_at_least)] {
        if let Some(context) = context.filter(|context| *context > most || *context < 2) {
            let reason = format!("must be 2 to {most}, the model's context, is {context}; YaRN stretches it");
            return Err(Error::argument(name, reason));
        }
    }
    let least = context_at_least.unwrap_or(2);
    match context_at_most {
        Some(at_most) if at_most < least => {
            let reason = format!("must be at least {least}, the shortest context that is acceptable, is {at_most}");
            Err(Error::argument("context_at_most", reason))
        }
        _ => Ok(()),
    }
}

/// Where the weights come from: the files as they are, or through a quantiser.
pub(crate) enum Weights<'a> {
    Stored(&'a Checkpoint),
    Quantized(QuantizedWeights<'a>),
}

impl Weights<'_> {
    pub(crate) fn source(&self) -> &dyn WeightSource {
        match self {
            Weights::Stored(checkpoint) => *checkpoint,
            Weights::Quantized(weights) => weights,
        }
    }
}

/// The checkpoint of a draft model.
pub(crate) struct OpenDraft {
    /// The engine's options, as far as they concern it too.
    options: EngineOptions,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) config: Config,
}

impl OpenDraft {
    /// The draft model of the options, if they have one and it runs in this process.
    pub(crate) fn open(options: &EngineOptions) -> Result<Option<Self>> {
        let Some(draft) = options.draft.as_ref().filter(|_| options.ranks.is_leader()) else { return Ok(None) };
        let checkpoint = Checkpoint::open(locate(&draft.path, options)?)?;
        let config = config_of(&checkpoint, options)?;
        let EngineOptions { settings, kv_encoding, .. } = options.clone();
        let options = EngineOptions { settings, kv_encoding, quantize: draft.quantize, ..EngineOptions::default() };
        Ok(Some(OpenDraft { options, checkpoint, config }))
    }

    /// Plans the draft model; ids from `num_token_ids` on are never guessed.
    pub(crate) fn planner(&self, num_token_ids: usize) -> qwen_core::Result<Box<Planner<'_>>> {
        Planner::new(&self.options, &self.checkpoint, &self.config, num_token_ids).map(Box::new)
    }
}

/// Plans one model for any device.
pub(crate) struct Planner<'a> {
    options: &'a EngineOptions,
    /// The weights as they will be loaded.
    pub(crate) weights: Weights<'a>,
    pub(crate) config: &'a Config,
    warnings: &'a [Warning],
    /// Ids from this one on are never chosen.
    num_token_ids: usize,
    /// The model, or the part of it that this process holds.
    pub(crate) spec: ModelSpec,
    /// The draft model beside it.
    pub(crate) draft: Option<Box<Planner<'a>>>,
}

impl<'a> Planner<'a> {
    /// # Errors
    /// For options that are invalid for this model, or for any.
    pub(crate) fn new(
        options: &'a EngineOptions,
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        num_token_ids: usize,
    ) -> qwen_core::Result<Self> {
        options.check()?;
        check_contexts(options, config)?;
        let mut spec = distributed::part_of(&options.ranks, config)?;
        if let Some(encoding) = options.kv_encoding {
            spec = spec.with_kv_encoding(encoding)?;
        }
        let weights = match options.quantize {
            None => Weights::Stored(checkpoint),
            Some(encoding) => Weights::Quantized(QuantizedWeights::new(checkpoint, TensorMix::Uniform(encoding))?),
        };
        Ok(Planner { options, weights, config, warnings: checkpoint.warnings(), num_token_ids, spec, draft: None })
    }

    /// The devices that `device` stands for, best first.
    pub(crate) fn candidates(&self, device: &Device) -> Vec<Candidate<Device>> {
        if *device != Device::Auto {
            return vec![Candidate { device: device.clone(), reason: "the program asked for it".into() }];
        }
        let wanted = Wanted {
            context: self.options.context.or(self.options.context_at_most),
            context_at_least: self.options.context_at_least,
            model_context: self.config.max_context(),
            has_memory_budget: self.options.memory_budget.is_some(),
        };
        auto::candidates(&wanted, |device| self.plan(&*device.factory()?))
    }

    /// The plan for a device.
    pub(crate) fn plan(&self, device: &dyn DeviceFactory) -> qwen_core::Result<Plan> {
        self.plan_within(&device.capacity(&self.options.settings)?, self.options.context)
    }

    /// The plan for a device of this capacity. Without a `context` it uses the longest one that fits and that the
    /// options allow, but at least the shortest that they accept.
    pub(crate) fn plan_within(&self, capacity: &Capacity, context: Option<usize>) -> qwen_core::Result<Plan> {
        let model_context = self.config.max_context();
        let batch = self.options.batch.unwrap_or(1);
        let plan_at = |context: usize| {
            let input = PlanInput {
                spec: &self.spec,
                limits: self.limits(capacity, context, batch),
                precision: self.options.settings.precision,
                context,
                batch,
                model_context,
                available_bytes: self.options.memory_budget.or(capacity.available_bytes),
            };
            let draft = self.draft.as_ref().map(|draft| {
                let (limits, model_context) = (self.draft_limits(draft, &input.limits), draft.config.max_context());
                (draft.weights.source(), PlanInput { spec: &draft.spec, limits, model_context, ..input.clone() })
            });
            let draft = draft.as_ref().map(|(source, input)| (*source, input));
            Plan::with_draft(self.weights.source(), &input, draft, &*capacity.footprint)
        };
        let plan = plan_at(context.unwrap_or(self.longest_context()))?;
        let mut plan = match plan.max_context {
            Some(fits) if context.is_none() && !plan.fits => {
                plan_at(fits.max(self.options.context_at_least.unwrap_or(fits)))?
            }
            _ => plan,
        };
        plan.warnings = self.warnings.to_vec();
        Ok(plan)
    }

    /// The context if memory is no limit and the options do not set an exact one.
    pub(crate) fn longest_context(&self) -> usize {
        let EngineOptions { context_at_most, context_at_least, .. } = self.options;
        let most = context_at_most.unwrap_or(DEFAULT_CONTEXT.max(context_at_least.unwrap_or(0)));
        most.min(self.config.max_context())
    }

    /// The sizes of steps and of the K/V store.
    pub(crate) fn limits(&self, capacity: &Capacity, context: usize, batch: usize) -> Limits {
        let max_num_seqs = batch.max(LEAST_NUM_SEQS);
        let limits = Limits {
            max_model_len: context,
            max_num_batched_tokens: self.options.max_num_batched_tokens.unwrap_or(capacity.max_num_batched_tokens),
            max_num_seqs,
            max_num_logits: self.options.max_num_logits.unwrap_or(MAX_NUM_LOGITS).max(max_num_seqs),
            block_size: BLOCK_SIZE,
            num_blocks: 0,
            vocab_size: self.config.vocab_size,
            num_token_ids: self.num_token_ids.min(self.config.vocab_size),
        };
        limits_for(&limits, context, batch)
    }

    /// The sizes of a draft model's steps and K/V store, beside a model with these `limits`.
    pub(crate) fn draft_limits(&self, draft: &Planner<'_>, limits: &Limits) -> Limits {
        let vocab_size = draft.config.vocab_size;
        let batch = self.options.batch.unwrap_or(1);
        let limits = Limits {
            // Each sequence has one guess at a time.
            max_num_logits: limits.max_num_seqs,
            vocab_size,
            num_token_ids: draft.num_token_ids.min(limits.num_token_ids).min(vocab_size),
            ..limits.clone()
        };
        limits_for(&limits, limits.max_model_len.min(draft.config.max_context()), batch)
    }
}
