//! How much memory a model takes, before it is loaded: from headers and key biases, without a device.

use std::path::{Path, PathBuf};

use qwen_core::backend::{Footprint, Limits};
use qwen_core::checkpoint::{Checkpoint, LoraCheckpoint};
use qwen_core::model::low_rank;
use qwen_core::model::merged::MergedWeights;
use qwen_core::model::plan::{Plan, PlanInput, SplitDevice, SplitInput, limits_for};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::float_env::FloatEnv;
use qwen_core::quantize::{QuantizedWeights, TensorMix};
use qwen_core::{Config, Error, Warning};

use crate::device::Device;
use crate::device::auto::{self, Candidate, Wanted};
use crate::device::factory::{Capacity, DeviceCapacity, DeviceFactory, Memory, PartCapacity};
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
    let adapters = OpenAdapters::open(options, &config)?;
    let mut planner = Planner::new(options, &checkpoint, &config, Some(&adapters), config.vocab_size)?;
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
    Merged(MergedWeights<'a, Checkpoint>),
}

impl Weights<'_> {
    pub(crate) fn source(&self) -> &dyn WeightSource {
        match self {
            Weights::Stored(checkpoint) => *checkpoint,
            Weights::Quantized(weights) => weights,
            Weights::Merged(weights) => weights,
        }
    }
}

/// The adapters of the options.
#[derive(Default)]
pub(crate) struct OpenAdapters {
    merged: Option<LoraCheckpoint>,
    beside: Vec<LoraCheckpoint>,
}

impl OpenAdapters {
    pub(crate) fn open(options: &EngineOptions, config: &Config) -> qwen_core::Result<Self> {
        let open = |path: &PathBuf| LoraCheckpoint::open(path, config);
        let merged = options.merged_adapter.as_ref().map(open).transpose()?;
        if merged.is_some() && options.quantize.is_some() {
            let reason = "it would be merged and then quantised: write the merged model (peft's merge_and_unload), then \
                          quantise that";
            return Err(Error::unsupported("`merge_adapter` together with `quantize`", reason));
        }
        Ok(OpenAdapters { merged, beside: options.adapters.iter().map(open).collect::<qwen_core::Result<_>>()? })
    }

    /// Tells the merged adapter from others, if there is one.
    pub(crate) fn merged_digest(&self) -> qwen_core::Result<Option<String>> {
        let digest = self.merged.as_ref().map(LoraCheckpoint::digest).transpose()?;
        Ok(digest.map(|digest| format!("{digest:016x}")))
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
        Planner::new(&self.options, &self.checkpoint, &self.config, None, num_token_ids).map(Box::new)
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
    /// The adapters beside it.
    adapters: &'a [LoraCheckpoint],
}

impl<'a> Planner<'a> {
    /// # Errors
    /// For options that are invalid for this model, or for any.
    pub(crate) fn new(
        options: &'a EngineOptions,
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        adapters: Option<&'a OpenAdapters>,
        num_token_ids: usize,
    ) -> qwen_core::Result<Self> {
        options.check()?;
        check_contexts(options, config)?;
        let mut spec = distributed::part_of(&options.ranks, config)?;
        if let Some(encoding) = options.kv_encoding {
            spec = spec.with_kv_encoding(encoding)?;
        }
        let merged = adapters.and_then(|adapters| adapters.merged.as_ref());
        let weights = match (options.quantize, merged) {
            (None, None) => Weights::Stored(checkpoint),
            (None, Some(adapter)) => Weights::Merged(MergedWeights::new(checkpoint, adapter)),
            (Some(encoding), _) => Weights::Quantized(QuantizedWeights::new(checkpoint, TensorMix::Uniform(encoding))?),
        };
        let adapters = adapters.map_or(&[][..], |adapters| &adapters.beside);
        let warnings = checkpoint.warnings();
        Ok(Planner { options, weights, config, warnings, num_token_ids, spec, draft: None, adapters })
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

    /// The plan for devices of this capacity. Without a `context` it uses the longest one that fits and that the
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
                available_bytes: None,
            };
            let draft = self.draft.as_ref().map(|draft| {
                let (limits, model_context) = (self.draft_limits(draft, &input.limits), draft.config.max_context());
                (draft.weights.source(), PlanInput { spec: &draft.spec, limits, model_context, ..input.clone() })
            });
            let draft = draft.as_ref().map(|(source, input)| (*source, input));
            match capacity {
                Capacity::One(device) => self.plan_on(device, input.clone(), draft),
                Capacity::Split(parts) => self.plan_split(parts, &input, draft),
            }
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

    fn plan_on(
        &self,
        device: &DeviceCapacity,
        input: PlanInput<'_>,
        draft: Option<(&dyn WeightSource, &PlanInput<'_>)>,
    ) -> qwen_core::Result<Plan> {
        let for_adapters = self.adapter_bytes(&*device.footprint, &self.spec, &input.limits)?;
        let available = self.options.memory_budget.or(device.available_bytes);
        let available_bytes = available.map(|available| available.saturating_sub(for_adapters));
        let input = PlanInput { available_bytes, ..input };
        let plan = Plan::with_draft(self.weights.source(), &input, draft, &*device.footprint)?;
        Ok(plan.with_adapters(for_adapters))
    }

    fn plan_split(
        &self,
        parts: &[PartCapacity],
        input: &PlanInput<'_>,
        draft: Option<(&dyn WeightSource, &PlanInput<'_>)>,
    ) -> qwen_core::Result<Plan> {
        let mut memories: Vec<(&Memory, Option<u64>)> = Vec::new();
        let mut devices = Vec::with_capacity(parts.len());
        let names: Vec<String> = parts.iter().map(|part| part.device.to_string()).collect();
        for (PartCapacity { layers, capacity, .. }, name) in parts.iter().zip(&names) {
            let available = capacity.available_bytes;
            let memory = memories.iter().position(|(known, _)| **known == capacity.memory).unwrap_or(memories.len());
            match memories.get_mut(memory) {
                Some((_, known)) => *known = known.iter().copied().chain(available).min(),
                None => memories.push((&capacity.memory, available)),
            }
            devices.push(SplitDevice { name, footprint: &*capacity.footprint, layers: *layers, memory });
        }
        let memories: Vec<Option<u64>> = memories.into_iter().map(|(_, available)| available).collect();
        let split = SplitInput {
            devices: &devices,
            memories: &memories,
            budget: self.options.memory_budget,
            reserved: &|footprint, spec| self.adapter_bytes(footprint, spec, &input.limits),
        };
        Plan::split(self.weights.source(), input, draft, &split)
    }

    /// What is set aside for adapters on a device that holds this part of the model.
    fn adapter_bytes(&self, footprint: &dyn Footprint, spec: &ModelSpec, limits: &Limits) -> qwen_core::Result<u64> {
        let bytes = self.options.adapter_limits.bytes;
        if bytes.is_none() && self.adapters.is_empty() {
            return Ok(0);
        }
        // All layers of a model have the same matrices.
        let share = |bytes: u64| {
            let (own, all) = (spec.layers.len() as u128, self.spec.layers.len().max(1) as u128);
            u64::try_from((u128::from(bytes) * own).div_ceil(all)).unwrap_or(u64::MAX)
        };
        let own = |adapter: &LoraCheckpoint| low_rank::adapter_bytes(footprint, spec, limits, adapter);
        let loaded = self.adapters.iter().map(own).sum::<qwen_core::Result<u64>>()?;
        let shared = low_rank::shared_bytes(footprint, spec, limits);
        Ok(bytes.map_or(0, share).max(loaded).saturating_add(shared))
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
            max_num_batched_tokens: self.options.max_num_batched_tokens.unwrap_or(capacity.max_num_batched_tokens()),
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
