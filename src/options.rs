//! The options that an engine is loaded with: a builder, and nothing else. `load.rs` loads with them, `plan.rs` plans.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use qwen_core::backend::CapabilitySet;
use qwen_core::{Encoding, Error, Precision};

use crate::adapter_registry::AdapterLimits;
use crate::device::Device;
use crate::device::factory::DeviceSettings;
use crate::distributed::{Position, Ranks};
use crate::draft::DraftModel;
use crate::progress::{LoadCanceller, LoadObserver, LoadProgress};

/// The most threads that compute.
const MAX_THREADS: usize = 1024;

/// Which sequences get YaRN, and its factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum YarnOption {
    Always(f64),
    Auto(f64),
}

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
#[derive(Clone, Default)]
#[must_use = "options load nothing until `load` is called"]
pub struct EngineOptions {
    pub(crate) device: Device,
    pub(crate) settings: DeviceSettings,
    pub(crate) kv_encoding: Option<Encoding>,
    pub(crate) context: Option<usize>,
    pub(crate) context_at_most: Option<usize>,
    pub(crate) context_at_least: Option<usize>,
    pub(crate) batch: Option<usize>,
    pub(crate) yarn: Option<YarnOption>,
    pub(crate) max_num_batched_tokens: Option<usize>,
    pub(crate) max_num_logits: Option<usize>,
    pub(crate) allow_padding_tokens: bool,
    pub(crate) max_waiting: Option<usize>,
    pub(crate) prefix_cache: Option<bool>,
    pub(crate) max_step_time: Option<Duration>,
    pub(crate) is_manual: bool,
    pub(crate) memory_budget: Option<u64>,
    pub(crate) ranks: Ranks,
    pub(crate) quantize: Option<Encoding>,
    pub(crate) draft: Option<DraftModel>,
    pub(crate) adapters: Vec<PathBuf>,
    pub(crate) merged_adapter: Option<PathBuf>,
    pub(crate) adapter_limits: AdapterLimits,
    pub(crate) observer: LoadObserver,
    #[cfg(feature = "hub")]
    pub(crate) hub: Option<crate::hub::Hub>,
}

impl fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineOptions")
            .field("device", &self.device)
            .field("precision", &self.settings.precision)
            .field("kv_encoding", &self.kv_encoding)
            .field("context", &self.context)
            .field("context_at_most", &self.context_at_most)
            .field("context_at_least", &self.context_at_least)
            .field("batch", &self.batch)
            .field("threads", &self.settings.threads)
            .field("ranks", &self.ranks)
            .field("quantize", &self.quantize)
            .field("draft", &self.draft)
            .field("adapters", &self.adapters)
            .field("merged_adapter", &self.merged_adapter)
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
        self.settings.precision = precision;
        self
    }

    /// How K/V is stored: [`Encoding::F32`], [`Encoding::F16`], or [`Encoding::Q8_0`], which takes 53% of the memory of
    /// F16 and rounds values to signed bytes. Layers with large key biases store their keys with more bits. Default:
    /// F32 in [`Precision::Exact`] and F16 in [`Precision::Fast`].
    ///
    /// ```
    /// use qwen::{Encoding, EngineOptions};
    /// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let plan = |encoding| qwen::plan(path, &EngineOptions::new().context(1024).kv_encoding(encoding));
    /// let (f16, q8_0) = (plan(Encoding::F16)?, plan(Encoding::Q8_0)?);
    /// assert!(q8_0.kv_bytes < f16.kv_bytes * 6 / 10);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn kv_encoding(mut self, encoding: Encoding) -> Self {
        self.kv_encoding = Some(encoding);
        self
    }

    /// Positions of a conversation, prompt and answer together: exactly this many, or loading fails. Default: see
    /// [`EngineOptions::context_at_most`].
    pub fn context(mut self, positions: usize) -> Self {
        self.context = Some(positions);
        self
    }

    /// The longest context that the program needs: the engine gets as many of these positions as memory can hold K/V
    /// for. Default: the context that the model was trained for, at most 32,768.
    /// [`Engine::context`](crate::Engine::context) returns the result. Has no effect together with
    /// [`EngineOptions::context`].
    ///
    /// ```
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let options = qwen::EngineOptions::new().context_at_most(300).context_at_least(100);
    /// assert_eq!(options.load(model)?.context(), 300);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn context_at_most(mut self, positions: usize) -> Self {
        self.context_at_most = Some(positions);
        self
    }

    /// The shortest acceptable context: loading fails if memory cannot hold K/V for this many positions. Default: any.
    /// Has no effect together with [`EngineOptions::context`].
    pub fn context_at_least(mut self, positions: usize) -> Self {
        self.context_at_least = Some(positions);
        self
    }

    /// The batch size that memory is planned for: the K/V store holds `sequences` conversations of the whole context.
    /// It bounds memory, not requests: more of them run together while they are short, and wait for each other when
    /// they are long. Default 1.
    pub fn batch(mut self, sequences: usize) -> Self {
        self.batch = Some(sequences);
        self
    }

    /// Extend the context by YaRN, as the model cards advise for long texts: a factor of 4 makes 32,768 positions
    /// 131,072. The factor applies to short texts too, whose answers may become slightly worse. Default: as in
    /// config.json.
    pub fn yarn(mut self, factor: f64) -> Self {
        self.yarn = Some(YarnOption::Always(factor));
        self
    }

    /// Extend the context by YaRN for the requests that need it: one that ends within the original context is computed
    /// without YaRN, a longer one with the factor that it needs, rounded up to a whole number and up to `factor`. What
    /// counts is the prompt and [`GenerateOptions::max_new_tokens`](crate::GenerateOptions::max_new_tokens); without that
    /// bound 8,192 tokens are expected, and the answer ends where the context ends with the factor for these. Requests
    /// with different factors share no K/V, so a conversation that grows beyond the original context is computed again,
    /// once.
    pub fn auto_yarn(mut self, factor: f64) -> Self {
        self.yarn = Some(YarnOption::Auto(factor));
        self
    }

    /// Threads that compute, 1 to 1024. Default: one per physical core that the process may use, divided by the ranks
    /// on this machine. Also the most threads that draw tokens, up to 16, where a step has many sequences; by default all.
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = Some(threads);
        self
    }

    /// Compute on the threads of the program's own rayon pool, instead of a new one. Devices other than the CPU do not
    /// use it.
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.settings.pool = Some(pool);
        self
    }

    /// The most tokens per step, over all requests: longer prompts are computed in chunks. Larger steps are a little
    /// faster for prompts, take more memory, and delay the tokens of other requests. Default 512, and 2048 on NVIDIA
    /// GPUs; the least of its devices' for a [`Device::Split`].
    pub fn max_num_batched_tokens(mut self, tokens: usize) -> Self {
        self.max_num_batched_tokens = Some(tokens);
        self
    }

    /// The most rows of logits per step, which matters only for [`crate::Engine::logits`]. Values below the number of
    /// requests that run together count as that number. Default 16.
    pub fn max_num_logits(mut self, rows: usize) -> Self {
        self.max_num_logits = Some(rows);
        self
    }

    /// Allow answers to contain token ids that the tokenizer does not know: rows that only pad the embedding table. For
    /// comparisons with programs that do not mask these rows, on weights that were never trained. Default false.
    pub fn allow_padding_tokens(mut self, allow: bool) -> Self {
        self.allow_padding_tokens = allow;
        self
    }

    /// How many requests may wait until the engine has room for them; further ones are refused with
    /// [`qwen_core::Error::QueueFull`]. Default 1024.
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.max_waiting = Some(requests);
        self
    }

    /// How long a running answer may be held up by a part of another request's prompt, for which prompts are computed in
    /// parts of as many tokens as the device computed in this time lately, at least 16. A long prompt alone is computed
    /// in parts of [`EngineOptions::max_num_batched_tokens`]. Default 200 ms.
    pub fn max_step_time(mut self, time: Duration) -> Self {
        self.max_step_time = Some(time);
        self
    }

    /// Keep the K/V of what was computed while memory is not wanted for other things, so that a request computes only
    /// what no earlier one began with: the new turn of a conversation, the text after a common system message. Answers
    /// are the same with and without. Default true; see also
    /// [`GenerateOptions::cache_salt`](crate::GenerateOptions::cache_salt).
    pub fn prefix_cache(mut self, on: bool) -> Self {
        self.prefix_cache = Some(on);
        self
    }

    /// Start no thread that steps the engine: the program calls [`Engine::step`](crate::Engine::step), for example once for
    /// each frame of a game, and reads with [`TextStream::try_next`](crate::TextStream::try_next) or as a task. Whoever
    /// blocks on an answer steps the engine, too, so nothing waits forever. The threads that compute inside a step are
    /// another matter: [`EngineOptions::threads`] of 1 or a [pool](EngineOptions::pool). Default: the engine has its own
    /// thread.
    ///
    /// ```
    /// use std::task::Poll;
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let engine = qwen::EngineOptions::new().manual().threads(1).load(model)?;
    /// let mut reply = engine.chat().send("What is 3 + 4?")?;
    /// let mut text = String::new();
    /// loop {
    ///     engine.step()?; // one token
    ///     match reply.try_next() {
    ///         Poll::Ready(Some(piece)) => text += &piece?,
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => {}
    ///     }
    /// }
    /// println!("{text}");
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn manual(mut self) -> Self {
        self.is_manual = true;
        self
    }

    /// The most bytes that the engine may use in this process. Default: what the system and the process's cgroup leave
    /// free, divided by the ranks on this machine; on a GPU its free memory. Of a [`Device::Split`] the budget bounds all
    /// devices together, and each is bounded by its own memory, too.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = Some(bytes);
        self
    }

    /// Share one model with other processes. Rank 0 has the engine ([`EngineOptions::load`]), the others compute for it
    /// ([`EngineOptions::run_worker`]). Default: this process runs the whole model.
    ///
    /// ```no_run
    /// use qwen::{EngineOptions, Ranks};
    /// let ranks = Ranks::from_env()?;
    /// let options = EngineOptions::new().ranks(ranks.clone());
    /// if !ranks.is_leader() {
    ///     return options.run_worker("path/to/Qwen2.5-72B-Instruct");
    /// }
    /// let engine = options.load("path/to/Qwen2.5-72B-Instruct")?;
    /// println!("{}", engine.chat().send("Hello!")?.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn ranks(mut self, ranks: Ranks) -> Self {
        self.settings.position = Position::from(&ranks);
        self.ranks = ranks;
        self
    }

    /// Quantise the matrices of a 16- or 32-bit model to this encoding while it is loaded. The result is bit for bit
    /// that of a file written by [`Quantizer`](crate::Quantizer) with
    /// [`TensorMix::Uniform`](crate::TensorMix::Uniform). The output head keeps at least Q6_K. Loading takes longer, by
    /// 5 (Q8_0) to 50 (Q5_K) thread-seconds per billion parameters; a quantised file loads fast. Default: the encodings
    /// of the file.
    ///
    /// Loading refuses, by name, a model that is already quantised, and encodings without a quantiser (IQ2, IQ3 and
    /// groups).
    ///
    /// ```
    /// use qwen::{Encoding, EngineOptions};
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let engine = EngineOptions::new().quantize(Encoding::Q8_0).load(model)?;
    /// assert_eq!(engine.weight_encoding(), Encoding::Q8_0);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn quantize(mut self, encoding: Encoding) -> Self {
        self.quantize = Some(encoding);
        self
    }

    /// Load a second, small model of the same family beside the model, on the same device (the first one of a
    /// [`Device::Split`]), which guesses the next tokens of answers with
    /// [`Speculation::Draft`](crate::Speculation::Draft): `docs/speculation.md` says when that pays. Both must have the
    /// same tokenizer, or loading fails; the sizes of their padded vocabularies may differ. The plan counts its memory
    /// ([`Plan::draft`](crate::Plan::draft)), and its K/V has room for the same conversations. If several processes share
    /// the model, rank 0 has all of the draft model. Default: none.
    ///
    /// ```no_run
    /// use qwen::{EngineOptions, GenerateOptions, Speculation};
    /// let engine = EngineOptions::new().draft("path/to/Qwen2.5-0.5B-Instruct").load("path/to/Qwen2.5-7B-Instruct")?;
    /// let options = GenerateOptions::new().speculation(Speculation::Draft);
    /// println!("{}", engine.chat().options(options).send("Why is the sky blue?")?.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn draft(mut self, model: impl Into<DraftModel>) -> Self {
        self.draft = Some(model.into());
        self
    }

    /// Load this low-rank adapter with the model, as [`Engine::load_adapter`](crate::Engine::load_adapter) does; once for
    /// each of several. The plan counts its memory. Default: none, and requests choose none.
    ///
    /// ```no_run
    /// use qwen::{EngineOptions, GenerateOptions};
    /// let engine = EngineOptions::new().adapter("adapters/poet").load("path/to/Qwen2.5-0.5B-Instruct")?;
    /// let options = GenerateOptions::new().adapter(engine.adapter("poet").as_ref());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn adapter(mut self, path: impl Into<PathBuf>) -> Self {
        self.adapters.push(path.into());
        self
    }

    /// Add this low-rank adapter to the weights while they are loaded: one model as fast as a plain one, without a choice.
    /// Its weights are rounded to the encoding of the model, which is one of 16 or 32 bits: a quantised one is refused by
    /// name. Default: none.
    pub fn merge_adapter(mut self, path: impl Into<PathBuf>) -> Self {
        self.merged_adapter = Some(path.into());
        self
    }

    /// How many adapters may be loaded beside the model at the same time. Default 16.
    pub fn max_adapters(mut self, adapters: usize) -> Self {
        self.adapter_limits.count = adapters;
        self
    }

    /// The largest rank of an adapter. Default 512, more than is read of any.
    pub fn max_adapter_rank(mut self, rank: usize) -> Self {
        self.adapter_limits.rank = rank;
        self
    }

    /// The bytes that adapters may take together, which the plan sets aside, so that the context leaves room for them.
    /// Default: what is free when one is loaded, and nothing is set aside but for [`EngineOptions::adapter`].
    pub fn adapter_memory(mut self, bytes: u64) -> Self {
        self.adapter_limits.bytes = Some(bytes);
        self
    }

    /// Call `report` while the model is loaded: at the beginning of each stage, and after each matrix with the bytes
    /// loaded so far. If [`Device::Auto`] falls back to another device, and for a draft model, the count of the weights
    /// starts again.
    ///
    /// ```
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let options = qwen::EngineOptions::new().progress(|progress| match progress.share() {
    ///     Some(share) => eprintln!("{}: {:.0}%", progress.stage, 100.0 * share),
    ///     None => eprintln!("{}", progress.stage),
    /// });
    /// options.load(model)?;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn progress(mut self, report: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.observer.report = Some(Arc::new(report));
        self
    }

    /// Where checkpoints come from that are given by name. Default: [`Hub::new`](crate::hub::Hub::new).
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: crate::hub::Hub) -> Self {
        self.hub = Some(hub);
        self
    }

    /// Let `canceller` cancel the load, which then fails with [`qwen_core::Error::Cancelled`]. A loaded engine is not
    /// affected.
    pub fn load_canceller(mut self, canceller: LoadCanceller) -> Self {
        self.observer.canceller = canceller;
        self
    }

    /// Which of a GPU's limits and features are used through wgpu. Default [`crate::CapabilitySet::Default`];
    /// [`crate::CapabilitySet::Best`] computes prompts with cooperative matrices (tensor cores) in [`Precision::Fast`],
    /// where the driver offers them, through a feature that wgpu calls experimental.
    ///
    /// ```no_run
    /// use qwen::{AdapterChoice, CapabilitySet, Device, EngineOptions};
    /// let engine = EngineOptions::new()
    ///     .device(Device::Wgpu(AdapterChoice::Best))
    ///     .wgpu_capabilities(CapabilitySet::Best)
    ///     .load("path/to/Qwen2.5-7B-Instruct")?;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn wgpu_capabilities(mut self, capabilities: CapabilitySet) -> Self {
        self.settings.wgpu_capabilities = capabilities;
        self
    }

    /// The most threads that draw tokens, where a step has many sequences.
    pub(crate) fn sampling_threads(&self) -> usize {
        let pool = self.settings.pool.as_ref().map(|pool| pool.current_num_threads());
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.settings.threads.or(pool).unwrap_or_else(all)
    }

    /// Refuse numbers that make no sense for any model.
    pub(crate) fn check(&self) -> qwen_core::Result<()> {
        let counts = [
            ("batch", self.batch),
            ("threads", self.settings.threads),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_num_logits", self.max_num_logits),
        ];
        for (name, count) in counts {
            if count == Some(0) {
                return Err(Error::argument(name, "must be at least 1, is 0"));
            }
        }
        if self.ranks.world_size() > 1 && matches!(self.device, Device::Split(_)) {
            let reason = "each rank runs on one device: give ranks the layers (`Ranks::pipeline_parallel`), or share them \
                          among the devices of one process";
            return Err(Error::unsupported(format!("device `{}` on several ranks", self.device), reason));
        }
        match self.settings.threads {
            Some(threads) if threads > MAX_THREADS => {
                Err(Error::argument("threads", format!("must be at most {MAX_THREADS}, is {threads}")))
            }
            _ => Ok(()),
        }
    }
}
