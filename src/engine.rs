//! A loaded model: a handle to a thread that computes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use qwen_core::backend::Interrupt;
use qwen_core::engine::EngineCore;
use qwen_core::plan::Plan;
use qwen_core::runner::Runner;
use qwen_core::{Config, Encoding, GenerationConfig};
use qwen_tokenizer::Tokenizer;

use crate::chat::Chat;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, TextStream, TokenStream};
use crate::worker::{self, Command};

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
    // Both are taken when the last handle goes.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    interrupt: Interrupt,
    parts: EngineParts,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Streams hold a handle, so nobody waits for an answer: end the step, and wait until the memory is given back.
        self.commands = None;
        self.interrupt.raise();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already told to whoever waited for its answers.
            let _ = thread.join();
        }
    }
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
    /// Start the thread that computes with `runner`.
    pub(crate) fn start(runner: Box<dyn Runner>, parts: EngineParts) -> Result<Self> {
        let interrupt = Interrupt::default();
        let core = EngineCore::new(runner, interrupt.clone());
        let (commands, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("qwen-engine".into())
            .spawn(move || worker::run(core, &received))
            .map_err(|source| qwen_core::Error::Io { path: "the engine's thread".into(), source })?;
        let inner = Inner { commands: Some(commands), thread: Some(thread), interrupt, parts };
        Ok(Engine { inner: Arc::new(inner) })
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
    /// For parameters that are out of their bounds. What is wrong with the prompt is the first thing that the stream
    /// gives.
    pub fn generate_ids(&self, prompt: impl Into<Vec<u32>>, options: &GenerateOptions) -> Result<TokenStream> {
        let started = Instant::now();
        let prompt = prompt.into();
        let prompt_tokens = prompt.len();
        let request = options.request(prompt, &self.inner.parts.generation_config, &self.inner.parts.stop_token_ids);
        request.sampling.check()?;
        if prompt_tokens == 0 {
            return Err(qwen_core::Error::EmptyPrompt.into());
        }
        if prompt_tokens >= self.context() {
            return Err(qwen_core::Error::ContextLength { prompt: prompt_tokens, context: self.context() }.into());
        }
        let canceller = EngineCore::canceller(&self.inner.interrupt);
        let (events, receiver) = mpsc::channel();
        self.send(Command::Generate { request, canceller: canceller.clone(), events })?;
        Ok(TokenStream::new(self.clone(), receiver, canceller, prompt_tokens, started))
    }

    pub(crate) fn stream_text(&self, ids: Vec<u32>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder))
    }

    /// The logits after each token of `ids`: `[ids.len(), vocab_size]`.
    ///
    /// # Errors
    /// For ids that are out of the vocabulary, too many of them, or none.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let (reply, received) = mpsc::channel();
        self.send(Command::Logits { ids: ids.to_vec(), reply })?;
        Ok(received.recv().map_err(|_| Error::stopped("its thread has ended"))??)
    }

    fn send(&self, command: Command) -> Result<()> {
        let sent = self.inner.commands.as_ref().and_then(|commands| commands.send(command).ok());
        sent.ok_or_else(|| Error::stopped("its thread has ended"))
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
};
