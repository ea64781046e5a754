//! Loading: from a folder or a file and options to an [`Engine`], or to this process's part of a model that several
//! processes share.

use std::path::Path;
use std::time::Instant;

use qwen_core::backend::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::plan::{Plan, PlanPart};
use qwen_core::model::runner::Runner;
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::float_env::FloatEnv;
use qwen_core::{Backend, Config, Encoding, Error, HumanBytes, Warning};
use qwen_tokenizer::Tokenizer;

use crate::device::Device;
use crate::device::auto::{Candidate, first_that_loads};
use crate::device::factory::{CustomBackend, DeviceFactory, LoadRequest};
use crate::distributed::{self, Fingerprint, Loaded, Peers};
use crate::engine::{Engine, EngineParts};
use crate::error::Result;
use crate::events::{info, warn};
use crate::fingerprint::{self, fnv1a};
use crate::locate::locate;
use crate::options::EngineOptions;
use crate::plan::{OpenAdapters, OpenDraft, Planner, config_of};
use crate::progress::{LoadProgress, LoadStage};
use crate::sentence_transformers::EmbedDefaults;
use crate::stop::stop_token_ids;
use crate::vocabulary;

impl Engine {
    /// Load the model at `path` with the default options: a folder with `config.json` and safetensors, a GGUF file or any
    /// part of a split one, or a folder with one GGUF model ([`Checkpoint::open`]). With the feature `hub` also the name
    /// of a checkpoint on the hub, `owner/name[:quantization][@revision]`, which is downloaded unless it is in the cache; a
    /// path that exists wins over a name.
    ///
    /// # Errors
    /// What is wrong with the checkpoint or the memory, with what to do about it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        EngineOptions::new().load(path)
    }

    /// The default options, as a builder that ends with [`EngineOptions::load`].
    pub fn options() -> EngineOptions {
        EngineOptions::new()
    }
}

impl EngineOptions {
    /// Load the model at `path`.
    ///
    /// # Errors
    /// What is wrong with the checkpoint, the options or the memory, with what to do about it.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Engine> {
        self.load_wrapped(path.as_ref(), Ok)
    }

    /// As [`EngineOptions::load`], with the model's runner wrapped by `wrap`.
    pub(crate) fn load_wrapped(
        self,
        path: &Path,
        wrap: impl FnOnce(Box<dyn Runner>) -> Result<Box<dyn Runner>>,
    ) -> Result<Engine> {
        let candidates = |planner: &Planner<'_>| named_devices(planner, &self.device);
        load_engine(path, &self, candidates, wrap)
    }

    /// Load the model at `path` on the program's own backend, in the backend's precision. Options about devices have no
    /// effect.
    ///
    /// ```no_run
    /// use qwen::core::backend::reference::Reference;
    /// let engine = qwen::EngineOptions::new().context(512).load_with_backend(Reference::new(), "path/to/Qwen2.5-0.5B")?;
    /// assert_eq!(engine.device_name(), "reference");
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`EngineOptions::load`].
    pub fn load_with_backend<B: Backend>(mut self, backend: B, path: impl AsRef<Path>) -> Result<Engine> {
        self.settings.precision = backend.info().precision;
        load_engine(path.as_ref(), &self, |_| own_backend(backend), Ok)
    }

    /// As a rank other than 0, load this rank's part of the model at `path` and compute rank 0's steps until its engine is
    /// dropped. Each rank reads the checkpoint from a local folder; no tokenizer is needed.
    ///
    /// # Errors
    /// As [`EngineOptions::load`], and [`qwen_core::Error::RankFailed`] when another rank fails or disconnects: end the
    /// process then, and let the launcher restart all ranks.
    pub fn run_worker(self, path: impl AsRef<Path>) -> Result<()> {
        let candidates = |planner: &Planner<'_>| named_devices(planner, &self.device);
        load_worker(path.as_ref(), &self, candidates)
    }

    /// As [`EngineOptions::run_worker`], on the program's own backend.
    ///
    /// # Errors
    /// As [`EngineOptions::run_worker`].
    pub fn run_worker_with_backend<B: Backend>(mut self, backend: B, path: impl AsRef<Path>) -> Result<()> {
        self.settings.precision = backend.info().precision;
        load_worker(path.as_ref(), &self, |_| own_backend(backend))
    }
}

/// Devices to try, best first; each is a fallback for the ones before it. A device that this build lacks is an error.
type Candidates = Vec<Candidate<qwen_core::Result<Box<dyn DeviceFactory>>>>;

/// The devices that `device` stands for.
fn named_devices(planner: &Planner<'_>, device: &Device) -> Candidates {
    let candidate = |Candidate { device, reason }: Candidate<Device>| Candidate { device: device.factory(), reason };
    planner.candidates(device).into_iter().map(candidate).collect()
}

fn own_backend<B: Backend>(backend: B) -> Candidates {
    let reason = "it is the program's own backend".into();
    vec![Candidate { device: Ok(Box::new(CustomBackend(backend))), reason }]
}

/// Load the engine of the model at `path`.
fn load_engine(
    path: &Path,
    options: &EngineOptions,
    candidates: impl FnOnce(&Planner<'_>) -> Candidates,
    wrap: impl FnOnce(Box<dyn Runner>) -> Result<Box<dyn Runner>>,
) -> Result<Engine> {
    let _float_env = FloatEnv::enter();
    let started = Instant::now();
    distributed::check_leads(&options.ranks)?;
    let path = &*locate(path, options)?;
    options.observer.report(LoadProgress::of(LoadStage::Opening))?;
    let checkpoint = Checkpoint::open(path)?;
    let config = config_of(&checkpoint, options)?;
    let tokenizer = vocabulary::of_checkpoint(&checkpoint)?;
    let draft = OpenDraft::open(options)?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(draft.iter().flat_map(|draft| draft.checkpoint.warnings()).cloned());
    let of_templates = tokenizer.iter().flat_map(Tokenizer::warnings);
    warnings.extend(of_templates.map(|reason| Warning::ChatTemplate { path: checkpoint.path().into(), reason }));
    for warning in &warnings {
        warn!("{warning}");
    }
    let chosen_by = tokenizer.as_ref().ok().filter(|_| !options.allow_padding_tokens);
    let num_token_ids = chosen_by.map_or(config.vocab_size, Tokenizer::num_ids);
    let adapters = OpenAdapters::open(options, &config)?;
    let mut planner = Planner::new(options, &checkpoint, &config, Some(&adapters), num_token_ids)?;
    if let Some(draft) = &draft {
        let of_draft = vocabulary::of_checkpoint(&draft.checkpoint)?;
        vocabulary::check_draft(&tokenizer, &of_draft, draft.checkpoint.path())?;
        planner.draft = Some(draft.planner(of_draft.map_or(draft.config.vocab_size, |tokenizer| tokenizer.num_ids()))?);
    }
    let candidates = candidates(&planner);
    let LoadedModel { loaded, draft: draft_runner, plan, device, device_name, selection_reason } =
        load_model(&planner, options, &checkpoint, &config, &adapters, candidates)?;
    let (wanted, context) = (options.context.unwrap_or_else(|| planner.longest_context()), plan.context);
    if context < wanted {
        warn!("context reduced from {wanted} to {context} positions to fit the memory");
    }
    info!(
        "loaded {} on {device_name} ({selection_reason}) in {:.1} s: context {context}, {} planned",
        path.display(),
        started.elapsed().as_secs_f64(),
        HumanBytes(plan.total_bytes)
    );
    let generation_config = checkpoint.generation_config().clone();
    let parts = EngineParts {
        kv_facts: facts_of_kv(&checkpoint, &config, &adapters, options)?,
        embedding: EmbedDefaults::of(checkpoint.path()),
        stop_token_ids: stop_token_ids(&config, &generation_config, tokenizer.as_ref().ok()),
        weight_encoding: most_used_encoding(&planner.spec, planner.weights.source())?,
        tokenizer,
        generation_config,
        plan,
        device,
        device_name,
        selection_reason,
        config,
        warnings,
        has_draft_model: draft_runner.is_some(),
    };
    let engine = Engine::start(wrap(loaded.engine()?)?, draft_runner, parts, options)?;
    for adapter in &options.adapters {
        engine.load_adapter(adapter)?;
    }
    Ok(engine)
}

/// The encoding of most values in the layers' matrices: quantised files mix several.
fn most_used_encoding(spec: &ModelSpec, source: &dyn WeightSource) -> qwen_core::Result<Encoding> {
    let mut values: Vec<(Encoding, u64)> = Vec::new();
    for layer in spec.layers.clone() {
        for weight in [spec.qkv_proj(layer), spec.o_proj(layer), spec.gate_up_proj(layer), spec.down_proj(layer)] {
            let shape = weight.shape(source)?;
            for (encoding, rows) in shape.parts {
                let more = rows as u64 * shape.cols as u64;
                match values.iter_mut().find(|(known, _)| *known == encoding) {
                    Some((_, sum)) => *sum += more,
                    None => values.push((encoding, more)),
                }
            }
        }
    }
    let most = values.into_iter().max_by_key(|(_, sum)| *sum);
    most.map_or_else(|| source.encoding(spec.norm()), |(encoding, _)| Ok(encoding))
}

/// Load this process's part of the model at `path`, and compute rank 0's steps until its engine is dropped.
fn load_worker(
    path: &Path,
    options: &EngineOptions,
    candidates: impl FnOnce(&Planner<'_>) -> Candidates,
) -> Result<()> {
    let _float_env = FloatEnv::enter();
    distributed::check_is_worker(&options.ranks)?;
    let path = &*locate(path, options)?;
    options.observer.report(LoadProgress::of(LoadStage::Opening))?;
    let checkpoint = Checkpoint::open(path)?;
    let config = config_of(&checkpoint, options)?;
    // Rank 0 samples the tokens, so no tokenizer is read.
    let adapters = OpenAdapters::open(options, &config)?;
    let planner = Planner::new(options, &checkpoint, &config, Some(&adapters), config.vocab_size)?;
    let candidates = candidates(&planner);
    let LoadedModel { loaded, .. } = load_model(&planner, options, &checkpoint, &config, &adapters, candidates)?;
    drop(checkpoint);
    info!("loaded this rank's part of {}", path.display());
    Ok(loaded.run_worker()?)
}

/// A model on its device, or this process's part of one.
struct LoadedModel {
    loaded: Loaded,
    draft: Option<Box<dyn Runner>>,
    plan: Plan,
    device: Option<Device>,
    device_name: String,
    selection_reason: String,
}

/// Load the model on the first candidate that succeeds: together with the other processes that share it, if there are any.
fn load_model(
    planner: &Planner<'_>,
    options: &EngineOptions,
    checkpoint: &Checkpoint,
    config: &Config,
    adapters: &OpenAdapters,
    mut candidates: Candidates,
) -> qwen_core::Result<LoadedModel> {
    let first = candidates.first().and_then(|candidate| candidate.device.as_ref().ok());
    let device = first.and_then(|factory| factory.device());
    let peers =
        Peers::connect(&options.ranks, || facts_of_ranks(device.as_ref(), checkpoint, config, adapters, options))?;
    if peers.is_some() {
        // All processes load on the same kind of device: none falls back to one that it did not announce.
        candidates.truncate(1);
    }
    let load = |peers: Option<&Peers>| {
        let load_on = |factory: qwen_core::Result<Box<dyn DeviceFactory>>| {
            let factory = factory?;
            let capacity = factory.capacity(&options.settings)?;
            let mut plan = planner.plan_within(&capacity, options.context)?;
            plan.check()?;
            let named = factory.device();
            let opened = factory.open(&options.settings, &plan)?;
            if let Some(peers) = peers {
                // If no exact context was requested, it is the longest that fits in every process.
                let context = peers.all_reduce_min(plan.context as u64)? as usize;
                if context != plan.context {
                    plan = planner.plan_within(&capacity, Some(context))?;
                    plan.check()?;
                }
            }
            let limits = planner.limits(&capacity, plan.context, plan.batch);
            let device_name = opened.name();
            let source = planner.weights.source();
            let request = LoadRequest {
                source,
                config,
                limits: &limits,
                spec: &planner.spec,
                peers,
                observer: &options.observer,
            };
            let loaded = opened.load(request)?;
            let draft = planner.draft.as_ref();
            let draft =
                draft.map(|draft| load_draft(draft, &planner.draft_limits(draft, &limits), options, &plan, &named));
            let device = named.map(|device| device.placed(&plan));
            Ok((loaded, draft.transpose()?, plan, device, device_name))
        };
        let ((loaded, draft, plan, device, device_name), mut selection_reason) = first_that_loads(candidates, load_on)?;
        // Behind the last layer there is nothing left for a device.
        let left_out = |part: &&PlanPart| part.layers.is_empty() && part.layers.end < config.num_hidden_layers;
        for part in plan.parts.iter().filter(left_out) {
            warn!("`{}` computes nothing: no layer fits its memory beside its buffers", part.device);
        }
        for (index, part) in plan.parts.iter().enumerate() {
            selection_reason += &format!("{}{part}", if index == 0 { ": " } else { "; " });
        }
        if let Some(peers) = peers {
            // No process begins before all have loaded.
            peers.all_reduce_min(0)?;
        }
        Ok(LoadedModel { loaded, draft, plan, device, device_name, selection_reason })
    };
    match &peers {
        None => load(None),
        Some(peers) => load(Some(peers)).inspect_err(|error| peers.fail(error)),
    }
}

/// Load the draft model on the device that has the model, or on the first one of several.
fn load_draft(
    draft: &Planner<'_>,
    limits: &Limits,
    options: &EngineOptions,
    plan: &Plan,
    device: &Option<Device>,
) -> qwen_core::Result<Box<dyn Runner>> {
    let Some(device) = device else {
        return Err(Error::argument("draft", "a backend of the program's own holds one model, not two"));
    };
    let opened = device.first().factory()?.open(&options.settings, plan)?;
    let source = draft.weights.source();
    let request = LoadRequest {
        source,
        config: draft.config,
        limits,
        spec: &draft.spec,
        peers: None,
        observer: &options.observer,
    };
    opened.load(request)?.engine()
}

/// What K/V depends on besides the device and the tokens, by name.
fn facts_of_kv(
    checkpoint: &Checkpoint,
    config: &Config,
    adapters: &OpenAdapters,
    options: &EngineOptions,
) -> qwen_core::Result<Vec<(&'static str, String)>> {
    let mut facts = vec![("the digest of the weights", fingerprint::of_weights(checkpoint)?)];
    facts.extend(fingerprint::of_config(config));
    facts.extend(adapters.merged_digest()?.map(|digest| ("the digest of the merged adapter", digest)));
    facts.push(("`quantize`", options.quantize.map_or("off".into(), |encoding| encoding.to_string())));
    facts.push(("`precision`", format!("{:?}", options.settings.precision)));
    Ok(facts)
}

/// What must be the same in all processes that share a model, by name.
fn facts_of_ranks(
    device: Option<&Device>,
    checkpoint: &Checkpoint,
    config: &Config,
    adapters: &OpenAdapters,
    options: &EngineOptions,
) -> qwen_core::Result<Fingerprint> {
    // Two checkpoints of the same shape differ in their norms if they were trained differently.
    let norm = checkpoint.tensor("model.norm.weight")?;
    let kind = device.map_or("the program's own".into(), |device| device.to_string());
    let text = |value: Option<usize>| value.map_or("the default".into(), |value: usize| value.to_string());
    let mut facts = vec![("the version of qwen-rs", env!("CARGO_PKG_VERSION").to_owned())];
    facts.extend(fingerprint::of_config(config));
    facts.extend([
        ("the digest of the weights", format!("{:016x}", fnv1a(norm.data.iter().copied()))),
        ("the digest of the merged adapter", adapters.merged_digest()?.unwrap_or_else(|| "none".into())),
        ("the size of the weights", checkpoint.total_bytes().to_string()),
        // The processes may use different devices of one kind.
        ("the device", kind.split(':').next().unwrap_or_default().to_owned()),
        ("`precision`", format!("{:?}", options.settings.precision)),
        ("`quantize`", options.quantize.map_or("off".into(), |encoding| encoding.to_string())),
        ("`kv_encoding`", options.kv_encoding.map_or("the default".into(), |encoding| encoding.to_string())),
        ("`context`", text(options.context)),
        ("`context_at_most`", text(options.context_at_most)),
        ("`context_at_least`", text(options.context_at_least)),
        ("`batch`", text(options.batch)),
        ("`max_num_batched_tokens`", text(options.max_num_batched_tokens)),
        ("`max_num_logits`", text(options.max_num_logits)),
    ]);
    Ok(facts)
}
