//! A loaded model: a handle to a thread that computes. Requests and their answers are in `generate.rs`, `logits.rs` and
//! `chat/`; `load.rs` creates the engine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use qwen_core::engine::sampling::Constraint;
use qwen_core::engine::{EngineCore, EngineStats, Intake, Pooling};
use qwen_core::model::plan::Plan;
use qwen_core::model::runner::Runner;
use qwen_core::{Config, Encoding, GenerationConfig, Warning};
use qwen_tokenizer::Tokenizer;

use crate::adapter_registry::{Adapter, Adapters};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fingerprint;
use crate::grammar::Grammar;
use crate::options::EngineOptions;
use crate::sentence_transformers::EmbedDefaults;
#[cfg(feature = "structure")]
use crate::structure::Structure;
use crate::words::Breakers;
use crate::worker::Worker;

/// How long a running answer waits at most for a part of another request's prompt.
const MAX_STEP_TIME: Duration = Duration::from_millis(200);

/// The most threads that compute the masks of grammars while the device computes logits.
#[cfg(feature = "structure")]
const MASK_THREADS: usize = 4;

/// A loaded model. Cheap to clone; all clones share one model and may be used from any thread.
///
/// ```no_run
/// use qwen::{Engine, GenerateOptions};
/// let engine = Engine::load("path/to/Qwen2.5-0.5B")?;
/// for piece in engine.generate("The sky is", &GenerateOptions::new().max_new_tokens(20))? {
///     print!("{}", piece?);
/// }
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "dropping the last handle unloads the model"]
pub struct Engine {
    inner: Arc<Inner>,
    /// That of requests which name none.
    adapter: Option<Adapter>,
}

#[derive(Debug)]
struct Inner {
    worker: Arc<Worker>,
    /// Of the tokenizer. Computed when a conversation is saved.
    fingerprint: OnceLock<String>,
    parts: EngineParts,
    breakers: Breakers,
    #[cfg(feature = "structure")]
    structure: Structure,
    adapters: Adapters,
}

/// Why a model has no tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct MissingTokenizer {
    path: PathBuf,
    reason: &'static str,
}

impl MissingTokenizer {
    pub(crate) fn in_folder(path: &Path) -> Self {
        let reason = "there is no tokenizer.json: put it beside the weights, or work on token ids";
        MissingTokenizer { path: path.into(), reason }
    }

    pub(crate) fn in_gguf(path: &Path) -> Self {
        let reason = "the file has no vocabulary (key `tokenizer.ggml.tokens`): use another one, or work on token ids";
        MissingTokenizer { path: path.into(), reason }
    }
}

impl From<MissingTokenizer> for Error {
    fn from(MissingTokenizer { path, reason }: MissingTokenizer) -> Self {
        qwen_core::Error::unsupported(format!("text with {}", path.display()), reason).into()
    }
}

/// What a handle knows about its model.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) tokenizer: std::result::Result<Tokenizer, MissingTokenizer>,
    /// What saved K/V depends on besides the device and the tokens, by name.
    pub(crate) kv_facts: Vec<(&'static str, String)>,
    pub(crate) config: Config,
    pub(crate) generation_config: GenerationConfig,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) embedding: EmbedDefaults,
    pub(crate) plan: Plan,
    pub(crate) device: Option<Device>,
    pub(crate) device_name: String,
    pub(crate) selection_reason: String,
    pub(crate) weight_encoding: Encoding,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) has_draft_model: bool,
}

impl Engine {
    /// Start the thread that computes with `runner`, and guesses with `draft`, unless the host steps the engine.
    pub(crate) fn start(
        runner: Box<dyn Runner>,
        draft: Option<Box<dyn Runner>>,
        parts: EngineParts,
        options: &EngineOptions,
    ) -> Result<Self> {
        let intake = Intake::new(options.max_waiting.unwrap_or(Intake::MAX_WAITING));
        let mut core = EngineCore::new(runner, intake.clone())
            .with_prefix_cache(options.prefix_cache.unwrap_or(true))
            .with_max_step_time(options.max_step_time.unwrap_or(MAX_STEP_TIME))
            .with_sampling_threads(options.sampling_threads());
        if let Some(draft) = draft {
            core = core.with_draft(draft);
        }
        let worker = if options.is_manual { Worker::manual(core, intake)? } else { Worker::start(core, intake)? };
        let (worker, fingerprint, breakers) = (Arc::new(worker), OnceLock::new(), Breakers::default());
        let adapters = Adapters::new(options.adapter_limits);
        Ok(Engine {
            inner: Arc::new(Inner {
                worker,
                fingerprint,
                parts,
                breakers,
                #[cfg(feature = "structure")]
                structure: Structure::default(),
                adapters,
            }),
            adapter: None,
        })
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.inner.worker
    }

    /// A handle of the same engine whose requests have `adapter`, whatever they ask for: answers, conversations, scores,
    /// perplexity, embeddings, logits. Options that name an adapter
    /// ([`GenerateOptions::adapter`](crate::GenerateOptions::adapter)) win.
    ///
    /// ```no_run
    /// let engine = qwen::Engine::load("path/to/Qwen2.5-0.5B-Instruct")?;
    /// let poet = engine.with_adapter(&engine.load_adapter("adapters/poet")?);
    /// println!("{}", poet.chat().send("Why is the sky blue?")?.text()?);
    /// println!("{}", poet.perplexity("The sky is blue because it is so wide.")?.perplexity());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn with_adapter<'a>(&self, adapter: impl Into<Option<&'a Adapter>>) -> Engine {
        Engine { inner: self.inner.clone(), adapter: adapter.into().cloned() }
    }

    /// The adapter of requests that name none.
    pub(crate) fn default_adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    pub(crate) fn adapters_by_name(&self) -> &Adapters {
        &self.inner.adapters
    }

    /// What is known of texts that repetitions do not reach over.
    pub(crate) fn breakers(&self) -> &Breakers {
        &self.inner.breakers
    }

    /// What a grammar allows in answers that end with one of these tokens.
    ///
    /// # Errors
    /// What is wrong with it, and without the feature.
    #[cfg(feature = "structure")]
    pub(crate) fn constraint(&self, grammar: &Grammar, stop_token_ids: &[u32]) -> Result<Arc<dyn Constraint>> {
        // A host that steps the engine itself wants no threads.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if self.worker().is_manual() { 0 } else { MASK_THREADS.min(cores) };
        self.inner.structure.constraint(grammar, stop_token_ids, self.tokenizer()?, threads)
    }

    #[cfg(not(feature = "structure"))]
    pub(crate) fn constraint(&self, _: &Grammar, _: &[u32]) -> Result<Arc<dyn Constraint>> {
        let reason = "this build has no grammars: compile with the feature `structure`";
        Err(qwen_core::Error::unsupported("`grammar`", reason).into())
    }

    /// The most tokens that a prompt may have: one position is left for the answer.
    pub(crate) fn prompt_room(&self) -> usize {
        self.context().saturating_sub(1)
    }

    /// The pooling of embeddings that the checkpoint asks for.
    pub(crate) fn default_pooling(&self) -> Result<Pooling> {
        let pooling = self.inner.parts.embedding.pooling.as_ref();
        pooling.copied().map_err(|reason| qwen_core::Error::unsupported("the model's pooling", reason.as_str()).into())
    }

    /// Whether the checkpoint wants embeddings of length 1.
    pub(crate) fn normalises(&self) -> bool {
        self.inner.parts.embedding.normalise
    }

    /// Run one step of an engine without a thread of its own ([`EngineOptions::manual`](crate::EngineOptions::manual)):
    /// the next token of each running answer, and parts of prompts. False if there was nothing to compute, because nobody
    /// asks for anything or every reader has to read first. While another thread runs a step, this waits for its end.
    ///
    /// # Errors
    /// On an engine with a thread of its own, and after a step that panicked. What goes wrong in a step ends the streams
    /// that it computes for.
    pub fn step(&self) -> Result<bool> {
        self.worker().step()
    }

    /// What the engine does and has done: running and waiting requests, K/V blocks, computed and cached tokens, times
    /// of steps, and what cancels cost. Cheap enough to be polled.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat();
    /// chat.send("What is 3 + 4?")?.text()?;
    /// chat.send("And 2 + 2?")?.text()?;
    /// let stats = engine.stats();
    /// println!("{} of {} K/V blocks are in use", stats.used_blocks, stats.num_blocks);
    /// // The second question did not compute the first one again.
    /// assert!(stats.cached_tokens > 0);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn stats(&self) -> EngineStats {
        self.inner.worker.intake().stats()
    }

    /// Whether the engine was loaded with a draft model ([`EngineOptions::draft`](crate::EngineOptions::draft)), so that
    /// requests may ask for [`Speculation::Draft`](crate::Speculation::Draft).
    pub fn has_draft_model(&self) -> bool {
        self.inner.parts.has_draft_model
    }

    /// Why the draft model is not used any more, if its device failed or ran out of memory. Answers go on without it.
    pub fn draft_error(&self) -> Option<String> {
        self.inner.worker.intake().draft_error().map(|error| error.to_string())
    }

    /// The tokenizer of the checkpoint.
    ///
    /// # Errors
    /// When the checkpoint has none: such an engine works on token ids only.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.inner.parts.tokenizer.as_ref().map_err(|missing| missing.clone().into())
    }

    /// What the tokenizer's ids stand for, as a fingerprint; `None` without a tokenizer.
    pub(crate) fn fingerprint(&self) -> Option<&str> {
        let tokenizer = self.inner.parts.tokenizer.as_ref().ok()?;
        Some(self.inner.fingerprint.get_or_init(|| fingerprint::of_vocabulary(tokenizer)))
    }

    /// See [`EngineParts::kv_facts`].
    pub(crate) fn kv_facts(&self) -> &[(&'static str, String)] {
        &self.inner.parts.kv_facts
    }

    /// The configuration of config.json or of the GGUF file, with the YaRN factor of the options.
    pub fn config(&self) -> &Config {
        &self.inner.parts.config
    }

    /// The contents of generation_config.json, or their equivalent in the GGUF file.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.parts.generation_config
    }

    /// Problems that did not stop loading, in the order in which they were found: keys without effect, wrong values
    /// that are not used, unused tensors. Empty for most models; show them to whoever chose the model.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// for warning in engine.warnings() {
    ///     eprintln!("warning: {warning}");
    /// }
    /// # assert_eq!(engine.warnings(), []);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn warnings(&self) -> &[Warning] {
        &self.inner.parts.warnings
    }

    /// Tokens that end an answer: of config.json, generation_config.json (or a GGUF file) and the tokenizer together, and
    /// the one that the chat template writes after an answer.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.inner.parts.stop_token_ids
    }

    /// Positions of a conversation.
    pub fn context(&self) -> usize {
        self.inner.parts.plan.context
    }

    /// How much memory the model takes.
    pub fn plan(&self) -> &Plan {
        &self.inner.parts.plan
    }

    /// The encoding of the checkpoint's matrices: if there are several, the one of most values in the layers.
    pub fn weight_encoding(&self) -> Encoding {
        self.inner.parts.weight_encoding
    }

    /// The device that the model runs on, which is never [`Device::Auto`]; `None` for a backend of the program's own.
    pub fn device(&self) -> Option<&Device> {
        self.inner.parts.device.as_ref()
    }

    /// The name of the device that the model runs on.
    pub fn device_name(&self) -> &str {
        &self.inner.parts.device_name
    }

    /// Why the model runs on this device, in a few words: the program asked for it, or what [`Device::Auto`] found.
    pub fn selection_reason(&self) -> &str {
        &self.inner.parts.selection_reason
    }
}
