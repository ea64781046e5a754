//! A loaded model: a handle to a thread that computes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use qwen_core::engine::{Intake, Work};
use qwen_core::float_env::FloatEnv;
use qwen_core::plan::Plan;
use qwen_core::runner::Runner;
use qwen_core::{Config, Encoding, GenerationConfig};
use qwen_tokenizer::Tokenizer;

use crate::chat::Chat;
use crate::device::Device;
use crate::error::Result;
use crate::generate::{GenerateOptions, TextStream, TokenStream};
use crate::logits::LogitsRows;
use crate::worker::Worker;

/// A loaded model. Cheap to clone; all clones are one model, and may be used from any thread.
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
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    worker: Worker,
    parts: EngineParts,
}

/// The folder that holds no tokenizer files.
#[derive(Debug)]
pub(crate) struct MissingTokenizer(pub(crate) PathBuf);

/// What a handle knows about its model.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) tokenizer: std::result::Result<Tokenizer, MissingTokenizer>,
    pub(crate) config: Config,
    pub(crate) generation_config: GenerationConfig,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) plan: Plan,
    pub(crate) device: Option<Device>,
    pub(crate) device_name: String,
    pub(crate) selection_reason: String,
    pub(crate) weight_encoding: Encoding,
}

impl Engine {
    /// Start the thread that computes with `runner`; `max_waiting` requests may wait for it.
    pub(crate) fn start(runner: Box<dyn Runner>, parts: EngineParts, max_waiting: Option<usize>) -> Result<Self> {
        let worker = Worker::start(runner, Intake::new(max_waiting.unwrap_or(Intake::MAX_WAITING)))?;
        Ok(Engine { inner: Arc::new(Inner { worker, parts }) })
    }

    /// A new conversation.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone())
    }

    /// Continue `prompt`, without a chat template. Control tokens in it take effect, as in transformers.
    ///
    /// # Errors
    /// Without a tokenizer; for an empty prompt; for one beyond the context, with both lengths.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<TextStream> {
        self.stream_text(self.tokenizer()?.encode(prompt, true)?, options)
    }

    /// Continue a prompt of token ids.
    ///
    /// # Errors
    /// For parameters that are out of their bounds; for an empty prompt, ids that are out of the vocabulary, and a prompt
    /// beyond the context; and [`qwen_core::Error::QueueFull`] when too many requests wait
    /// ([`EngineOptions::max_waiting`]).
    pub fn generate_ids(&self, prompt: impl Into<Vec<u32>>, options: &GenerateOptions) -> Result<TokenStream> {
        let _float_env = FloatEnv::enter();
        let started = Instant::now();
        let prompt = prompt.into();
        let prompt_tokens = prompt.len();
        let request = options.request(prompt, &self.inner.parts.generation_config, &self.inner.parts.stop_token_ids)?;
        let (events, canceller) = self.inner.worker.submit(request)?;
        Ok(TokenStream::new(self.clone(), events, canceller, prompt_tokens, started))
    }

    pub(crate) fn stream_text(&self, ids: Vec<u32>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder))
    }

    /// The logits after each token of `ids`, row by row, while other requests run. Takes the memory of a few rows,
    /// however long the prompt is. The whole context may be filled.
    ///
    /// ```no_run
    /// let engine = qwen::Engine::load("path/to/Qwen2.5-0.5B")?;
    /// let ids = engine.tokenizer()?.encode("The sky is blue.", true)?;
    /// for (row, next) in engine.logits_rows(ids.as_slice())?.zip(&ids[1..]) {
    ///     println!("{}", row?[*next as usize]);
    /// }
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate_ids`].
    pub fn logits_rows(&self, ids: impl Into<Vec<u32>>) -> Result<LogitsRows> {
        LogitsRows::new(self.clone(), ids.into())
    }

    /// The logits after each token of `ids` at once: `[ids.len(), vocab_size]`. For short prompts: a row of Qwen2.5 has
    /// 600 KB.
    ///
    /// # Errors
    /// As [`Engine::logits_rows`], and [`qwen_core::Error::DoesNotFit`] with the figures when the rows together are
    /// larger than the memory that is free.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let len = ids.len().saturating_mul(self.config().vocab_size);
        let needed = (len as u64).saturating_mul(4);
        let rows = self.logits_rows(ids)?;
        let free = qwen_core::memory::available_memory().map_or(u64::MAX, |memory| memory.available);
        let mut logits: Vec<f32> = Vec::new();
        if needed > free || logits.try_reserve_exact(len).is_err() {
            let advice = format!(": {} rows at once; read them one by one with logits_rows", ids.len());
            return Err(qwen_core::Error::DoesNotFit { needed, available: free, advice }.into());
        }
        for row in rows {
            logits.extend_from_slice(&row?);
        }
        Ok(logits)
    }

    /// What the engine has computed, and what of it was discarded because requests were cancelled: at most a tenth.
    pub fn work(&self) -> Work {
        self.inner.worker.intake().work()
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.inner.worker
    }

    /// The tokenizer of the checkpoint.
    ///
    /// # Errors
    /// When the checkpoint came without one: such an engine works by token ids.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.inner.parts.tokenizer.as_ref().map_err(|MissingTokenizer(path)| {
            let reason = "there is no tokenizer.json: put it beside the weights, or work by token ids";
            qwen_core::Error::unsupported(format!("text with {}", path.display()), reason).into()
        })
    }

    /// What config.json says, with the options' YaRN.
    pub fn config(&self) -> &Config {
        &self.inner.parts.config
    }

    /// What generation_config.json says.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.parts.generation_config
    }

    /// Tokens that end an answer: of config.json, generation_config.json and the tokenizer together.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.inner.parts.stop_token_ids
    }

    /// Positions of a conversation.
    pub fn context(&self) -> usize {
        self.inner.parts.plan.context
    }

    /// What the model takes.
    pub fn plan(&self) -> &Plan {
        &self.inner.parts.plan
    }

    /// How the checkpoint's matrices are encoded.
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

// Clones of one engine are used from many threads, and its streams move between them.
const _: () = {
    const fn shared<T: Clone + Send + Sync + 'static>() {}
    const fn moved<T: Send + 'static>() {}
    shared::<Engine>();
    moved::<Chat>();
    moved::<crate::Reply>();
    moved::<TextStream>();
    moved::<TokenStream>();
    moved::<LogitsRows>();
};
