//! How an engine is loaded, and what it will take.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use qwen_core::batch::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::plan::{Plan, PlanInput, limits_for};
use qwen_core::ranks::Ranks;
use qwen_core::{Backend, Config, Precision};
use qwen_tokenizer::Tokenizer;

use crate::device::Device;
use crate::engine::Engine;
use crate::error::Result;
use crate::load;
use crate::place::{Own, Place, Room};

/// The context that is taken when none is asked for: longer ones cost memory, and base models name contexts that need
/// YaRN.
const DEFAULT_CONTEXT: usize = 32_768;

/// How a model is loaded.
///
/// ```no_run
/// use qwen::{Device, EngineOptions, Precision};
/// let engine = EngineOptions::new()
///     .device(Device::Cpu)
///     .precision(Precision::Exact)
///     .context(8192)
///     .threads(4)
///     .load("path/to/Qwen2.5-7B-Instruct")?;
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Default)]
pub struct EngineOptions {
    device: Device,
    pub(crate) precision: Precision,
    context: Option<usize>,
    batch: Option<usize>,
    yarn_factor: Option<f64>,
    threads: Option<usize>,
    #[cfg(feature = "cpu")]
    pool: Option<Arc<rayon::ThreadPool>>,
    prompt_chunk: Option<usize>,
    max_num_logits: Option<usize>,
    padding_ids: bool,
    pub(crate) memory_budget: Option<u64>,
    pub(crate) ranks: Ranks,
    progress: Option<Arc<dyn Fn(f32) + Send + Sync>>,
    #[cfg(feature = "wgpu")]
    pub(crate) wgpu_capabilities: qwen_backend_wgpu::CapabilitySet,
}

impl fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineOptions")
            .field("device", &self.device)
            .field("precision", &self.precision)
            .field("context", &self.context)
            .field("batch", &self.batch)
            .field("threads", &self.threads)
            .field("ranks", &self.ranks)
            .finish_non_exhaustive()
    }
}

impl EngineOptions {
    /// The defaults: the CPU, fast precision, one thread for each physical core, the model's own context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to run. Default [`Device::Cpu`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// What may be rounded. Default [`Precision::Fast`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Positions of a conversation, prompt and answer together. Default: what the model was trained for, at most
    /// 32,768, and less where the memory does not hold the K/V of so many.
    pub fn context(mut self, positions: usize) -> Self {
        self.context = Some(positions);
        self
    }

    /// How many conversations have their whole context at the same time. More requests than that run together while
    /// they are short, and wait for each other when they are long. Default 1.
    pub fn batch(mut self, sequences: usize) -> Self {
        self.batch = Some(sequences);
        self
    }

    /// Stretch the context by YaRN, as the model cards say for long texts: 4 makes 131,072 positions of 32,768. It holds
    /// for short texts too, which may lose a little. Default: what config.json says.
    pub fn yarn(mut self, factor: f64) -> Self {
        self.yarn_factor = Some(factor);
        self
    }

    /// Threads that compute. Default: one for each physical core that the process may use, shared among the ranks of this
    /// machine.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Compute on the threads of the host's own pool.
    #[cfg(feature = "cpu")]
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Prompt tokens of a step at most. Larger ones are a little faster and take more memory. Default 512, and 2048 on
    /// NVIDIA cards.
    pub fn prompt_chunk(mut self, tokens: usize) -> Self {
        self.prompt_chunk = Some(tokens);
        self
    }

    /// Rows of logits of a step at most; matters for [`Engine::logits`] alone. Default 16.
    pub fn max_num_logits(mut self, rows: usize) -> Self {
        self.max_num_logits = Some(rows);
        self
    }

    /// Let ids be chosen that the tokenizer does not know: rows that only pad the embedding table. For comparisons with
    /// programs that do not mask them, on weights that were never trained. Default false.
    pub fn padding_ids(mut self, choose: bool) -> Self {
        self.padding_ids = choose;
        self
    }

    /// Bytes that the engine may take in this process. Default: what the system and the process's cgroup leave, shared
    /// among the ranks of this machine, or the memory of a GPU.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = Some(bytes);
        self
    }

    /// Run one model with other processes, of which this is one. Rank 0 has the engine ([`EngineOptions::load`]), the
    /// others help it ([`EngineOptions::follow`]). Default: alone.
    ///
    /// ```no_run
    /// use qwen::{EngineOptions, Ranks};
    /// let ranks = Ranks::from_env()?;
    /// let options = EngineOptions::new().ranks(ranks.clone());
    /// if !ranks.is_leader() {
    ///     return options.follow("path/to/Qwen2.5-72B-Instruct");
    /// }
    /// let engine = options.load("path/to/Qwen2.5-72B-Instruct")?;
    /// println!("{}", engine.chat().send("Hello!")?.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn ranks(mut self, ranks: Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// Be told the share of the weights that is loaded, from 0 to 1.
    pub fn progress(mut self, report: impl Fn(f32) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// How much of a GPU's limits and features is used through wgpu. Default [`crate::CapabilitySet::Default`];
    /// [`crate::CapabilitySet::Best`] multiplies prompts by cooperative matrices (tensor cores) in [`Precision::Fast`],
    /// where the driver offers them, by a feature that wgpu calls experimental.
    ///
    /// ```no_run
    /// use qwen::{AdapterChoice, CapabilitySet, Device, EngineOptions};
    /// let engine = EngineOptions::new()
    ///     .device(Device::Wgpu(AdapterChoice::Best))
    ///     .wgpu_capabilities(CapabilitySet::Best)
    ///     .load("path/to/Qwen2.5-7B-Instruct")?;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    #[cfg(feature = "wgpu")]
    pub fn wgpu_capabilities(mut self, capabilities: qwen_backend_wgpu::CapabilitySet) -> Self {
        self.wgpu_capabilities = capabilities;
        self
    }

    /// Load the model at `path`.
    ///
    /// # Errors
    /// What is wrong with the checkpoint, the options or the memory, with what to do about it.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Engine> {
        let device = self.device.clone();
        Engine::load_with(path.as_ref(), self, device)
    }

    /// Load the model at `path` on a backend of the program's own, in its precision. Options about other devices have
    /// no part in it.
    ///
    /// ```no_run
    /// use qwen::core::reference::Reference;
    /// let engine = qwen::EngineOptions::new().context(512).load_on(Reference::new(), "path/to/Qwen2.5-0.5B")?;
    /// assert_eq!(engine.device(), "reference");
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`EngineOptions::load`].
    pub fn load_on<B: Backend>(mut self, backend: B, path: impl AsRef<Path>) -> Result<Engine> {
        self.precision = backend.info().precision;
        Engine::load_with(path.as_ref(), self, Own(backend))
    }

    /// As a rank other than 0, hold this rank's part of the model at `path` and compute with rank 0, until its engine is
    /// dropped. Each rank reads the checkpoint from a folder of its own machine; no tokenizer is needed.
    ///
    /// # Errors
    /// As [`EngineOptions::load`], and [`qwen_core::Error::RankFailed`] when another rank fails or is lost: end the
    /// process then, and let its launcher start all of them again.
    pub fn follow(self, path: impl AsRef<Path>) -> Result<()> {
        let device = self.device.clone();
        load::follow(path.as_ref(), self, device)
    }

    /// As [`EngineOptions::follow`], on a backend of the program's own.
    ///
    /// # Errors
    /// As [`EngineOptions::follow`].
    pub fn follow_on<B: Backend>(mut self, backend: B, path: impl AsRef<Path>) -> Result<()> {
        self.precision = backend.info().precision;
        load::follow(path.as_ref(), self, Own(backend))
    }

    pub(crate) fn set_context(&mut self, positions: usize) {
        self.context = Some(positions);
    }

    /// The options that all ranks must have in common, by name.
    pub(crate) fn fingerprint(&self) -> [(&'static str, String); 6] {
        let text = |value: Option<usize>| value.map_or("the default".into(), |value: usize| value.to_string());
        [
            ("what ranks share", if self.ranks.is_by_layers() { "layers" } else { "heads" }.to_owned()),
            ("`precision`", format!("{:?}", self.precision)),
            ("`context`", text(self.context)),
            ("`batch`", text(self.batch)),
            ("`prompt_chunk`", text(self.prompt_chunk)),
            ("`max_num_logits`", text(self.max_num_logits)),
        ]
    }

    pub(crate) fn config(&self, checkpoint: &Checkpoint) -> Result<Config> {
        let config = checkpoint.config().clone();
        Ok(match self.yarn_factor {
            Some(factor) => config.with_yarn(factor)?,
            None => config,
        })
    }

    pub(crate) fn plan_for(
        &self,
        place: &impl Place,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> qwen_core::Result<Plan> {
        self.plan_in(&place.room(self)?, checkpoint, config, num_token_ids)
    }

    pub(crate) fn plan_in(
        &self,
        room: &Room,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> qwen_core::Result<Plan> {
        let model_context = config.max_context();
        let batch = self.batch.unwrap_or(1);
        if let Some(context) = self.context.filter(|context| *context > model_context || *context < 2) {
            let reason = format!("must be 2 to {model_context}, the model's context, is {context}; YaRN stretches it");
            return Err(qwen_core::Error::argument("context", reason));
        }
        for (name, value) in [("batch", self.batch), ("prompt_chunk", self.prompt_chunk), ("threads", self.threads)] {
            if value == Some(0) {
                return Err(qwen_core::Error::argument(name, "must be at least 1, is 0"));
            }
        }
        let spec = self.ranks.part(config)?;
        let input = |context: usize| PlanInput {
            spec: &spec,
            limits: self.limits(room, context, batch, config, num_token_ids),
            precision: self.precision,
            context,
            batch,
            model_context,
            available_bytes: self.memory_budget.or(room.available_bytes),
        };
        let context = self.context.unwrap_or(model_context.min(DEFAULT_CONTEXT));
        let plan = Plan::new(checkpoint, &input(context), &*room.footprint)?;
        match plan.max_context {
            // No context was asked for: the longest that fits will do.
            Some(fits) if self.context.is_none() && !plan.fits => Plan::new(checkpoint, &input(fits), &*room.footprint),
            _ => Ok(plan),
        }
    }

    /// The context that was asked for, or any.
    pub(crate) fn asked_context(&self) -> usize {
        self.context.unwrap_or(usize::MAX)
    }

    pub(crate) fn limits(
        &self,
        room: &Room,
        context: usize,
        batch: usize,
        config: &Config,
        num_token_ids: usize,
    ) -> Limits {
        let max_num_seqs = batch.max(8);
        let limits = Limits {
            max_model_len: context,
            max_num_batched_tokens: self.prompt_chunk.unwrap_or(room.prompt_chunk),
            max_num_seqs,
            max_num_logits: self.max_num_logits.unwrap_or(16).max(max_num_seqs),
            block_size: 32,
            num_blocks: 0,
            vocab_size: config.vocab_size,
            num_token_ids: num_token_ids.min(config.vocab_size),
        };
        limits_for(&limits, context, batch)
    }

    /// How many ids may be chosen: all up to the highest one of the tokenizer, whose ids may have gaps.
    pub(crate) fn num_token_ids(&self, tokenizer: Option<&Tokenizer>, config: &Config) -> usize {
        tokenizer.filter(|_| !self.padding_ids).map_or(config.vocab_size, Tokenizer::num_ids)
    }

    pub(crate) fn report(&self, share: f32) {
        if let Some(progress) = &self.progress {
            progress(share);
        }
    }

    #[cfg(feature = "cpu")]
    pub(crate) fn cpu(&self) -> qwen_backend_cpu::CpuOptions {
        let mut options = qwen_backend_cpu::CpuOptions::new().precision(self.precision);
        let shared = || match self.ranks.local_world_size() {
            1 => None,
            ranks => Some((qwen_backend_cpu::physical_cores() / ranks).max(1)),
        };
        if let Some(threads) = self.threads.or_else(shared) {
            options = options.threads(threads);
        }
        if let Some(pool) = &self.pool {
            options = options.pool(pool.clone());
        }
        options
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&self, ordinal: usize) -> qwen_core::Result<qwen_backend_cuda::CudaOptions> {
        Ok(qwen_backend_cuda::CudaOptions::new().ordinal(self.card(ordinal)?).precision(self.precision))
    }

    /// The card of this rank: the ranks of one machine take one each, from the one that was named on.
    #[cfg(feature = "cuda")]
    pub(crate) fn card(&self, ordinal: usize) -> qwen_core::Result<usize> {
        card_of_rank(ordinal, &self.ranks, qwen_backend_cuda::cards()?.len())
    }

    #[cfg(feature = "wgpu")]
    pub(crate) fn wgpu(&self, adapter: &qwen_backend_wgpu::AdapterChoice) -> qwen_backend_wgpu::WgpuOptions {
        qwen_backend_wgpu::WgpuOptions::new()
            .adapter(adapter.clone())
            .precision(self.precision)
            .capabilities(self.wgpu_capabilities)
    }
}

/// Which of the `seen` cards a rank takes. Where it sees a single one, the launcher has given it that.
#[cfg(feature = "cuda")]
fn card_of_rank(ordinal: usize, ranks: &Ranks, seen: usize) -> qwen_core::Result<usize> {
    let needed = ranks.local_world_size();
    if needed == 1 || seen <= 1 {
        return Ok(ordinal);
    }
    if ordinal.saturating_add(needed) > seen {
        let reason = format!(
            "the {needed} ranks of this machine take a card each, from `cuda:{ordinal}` on, and see {seen}: name a \
             lower one, start fewer ranks, or show each its own card (CUDA_VISIBLE_DEVICES)"
        );
        return Err(qwen_core::Error::argument("device", reason));
    }
    Ok(ordinal + ranks.local_rank())
}

/// What the model at `path` takes with `options`, from its headers and key biases alone. Of several ranks: what the one
/// that the options name takes.
///
/// ```no_run
/// let options = qwen::EngineOptions::new().context(8192);
/// let plan = qwen::plan("path/to/Qwen2.5-7B-Instruct", &options)?;
/// println!("{} bytes; fits: {}", plan.total_bytes, plan.fits);
/// # Ok::<(), qwen::Error>(())
/// ```
///
/// # Errors
/// What is wrong with the checkpoint or the options. That it does not fit is not an error but said in the plan.
pub fn plan(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Plan> {
    let checkpoint = Checkpoint::open(path)?;
    let config = options.config(&checkpoint)?;
    let candidates = options.device.clone().candidates(options, &checkpoint, &config, config.vocab_size)?;
    let device = candidates.first().map_or(&options.device, |(device, _)| device);
    Ok(options.plan_for(device, &checkpoint, &config, config.vocab_size)?)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_machine_take_a_card_each() {
        let ranks = Ranks::new(2, 4).unwrap();
        let card = |ordinal: usize, ranks: &Ranks, seen: usize| card_of_rank(ordinal, ranks, seen).unwrap();
        assert_eq!(card(0, &ranks, 4), 2);
        assert_eq!(card(4, &ranks, 8), 6);
        // Each sees its own alone.
        assert_eq!(card(0, &ranks, 1), 0);
        assert_eq!(card(3, &Ranks::alone(), 8), 3);
        assert_eq!(card(9, &Ranks::alone(), 8), 9);
    }

    #[test]
    fn ranks_that_see_too_few_cards_are_refused() {
        for (ordinal, seen) in [(6, 8), (0, 3), (usize::MAX, 8)] {
            let text = card_of_rank(ordinal, &Ranks::new(0, 4).unwrap(), seen).unwrap_err().to_string();
            let expected = format!("take a card each, from `cuda:{ordinal}` on, and see {seen}");
            assert!(text.contains(&expected), "{text}");
        }
    }
}
