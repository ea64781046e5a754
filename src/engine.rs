//! A loaded model: a handle to a thread that computes.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use qwen_core::backend::Interrupt;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::engine::EngineCore;
use qwen_core::plan::Plan;
use qwen_core::{Config, Encoding, GenerationConfig};
use qwen_tokenizer::Tokenizer;

use crate::chat::Chat;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, TextStream, TokenStream};
use crate::load;
use crate::options::EngineOptions;
use crate::place::{Part, Place};
use crate::stop::stop_token_ids;
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
    tokenizer: std::result::Result<Tokenizer, Missing>,
    config: Config,
    generation_config: GenerationConfig,
    stop_token_ids: Vec<u32>,
    plan: Plan,
    device: String,
    device_reason: String,
    placed_on: Option<Device>,
    weight_encoding: Encoding,
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
struct Missing(std::path::PathBuf);

impl Engine {
    /// Load the model in the folder `path` with the default options.
    ///
    /// # Errors
    /// What is wrong with the checkpoint or the memory, with what to do about it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        EngineOptions::new().load(path)
    }

    /// [`EngineOptions::new`], to be changed and ended by [`EngineOptions::load`].
    pub fn options() -> EngineOptions {
        EngineOptions::new()
    }

    pub(crate) fn load_with(path: &Path, mut options: EngineOptions, place: impl Place) -> Result<Self> {
        if !options.ranks.is_leader() {
            return Err(load::no_engine(&options).into());
        }
        let checkpoint = Checkpoint::open(path)?;
        let config = options.config(&checkpoint)?;
        let generation_config = checkpoint.generation_config().clone();
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let tokenizer = match folder.join("tokenizer.json").exists() {
            true => Ok(Tokenizer::from_dir(folder)?),
            false => Err(Missing(folder.to_owned())),
        };
        let num_token_ids = options.num_token_ids(tokenizer.as_ref().ok(), &config);
        let loaded = load::load(place, &checkpoint, &config, num_token_ids, &mut options)?;
        let Part::Engine(runner) = loaded.part else { return Err(load::no_engine(&options).into()) };
        let interrupt = Interrupt::default();
        let core = EngineCore::new(runner, interrupt.clone());
        let (commands, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("qwen-engine".into())
            .spawn(move || worker::run(core, &received))
            .map_err(|source| qwen_core::Error::Io { path: "the engine's thread".into(), source })?;
        let stop_token_ids = stop_token_ids(&config, &generation_config, tokenizer.as_ref().ok());
        let weight_encoding = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")?.encoding;
        Ok(Engine {
            inner: Arc::new(Inner {
                commands: Some(commands),
                thread: Some(thread),
                interrupt,
                tokenizer,
                config,
                generation_config,
                stop_token_ids,
                plan: loaded.plan,
                device: loaded.device,
                device_reason: loaded.device_reason,
                placed_on: loaded.placed_on,
                weight_encoding,
            }),
        })
    }

    /// A new conversation.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone())
    }

    /// Continue `prompt`, without a chat template. Control tokens in it take effect, as in transformers.
    ///
    /// # Errors
    /// Without a tokenizer; for an empty prompt; for one beyond the context, which costs little however long it is.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<TextStream> {
        self.stream_text(self.tokenizer()?.encode_within(prompt, true, self.prompt_room())?, options)
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
        let request = options.request(prompt, &self.inner.generation_config, &self.inner.stop_token_ids);
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

    /// The most tokens of a prompt, which leave room for one more.
    pub(crate) fn prompt_room(&self) -> usize {
        self.context().saturating_sub(1)
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
        self.inner.tokenizer.as_ref().map_err(|Missing(path)| {
            let reason = "there is no tokenizer.json: put it beside the weights, or work by token ids";
            qwen_core::Error::unsupported(format!("text with {}", path.display()), reason).into()
        })
    }

    /// What config.json says, with the options' YaRN.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// What generation_config.json says.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.generation_config
    }

    /// Tokens that end an answer: of config.json, generation_config.json and the tokenizer together.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.inner.stop_token_ids
    }

    /// Positions of a conversation.
    pub fn context(&self) -> usize {
        self.inner.plan.context
    }

    /// What the model takes.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// How the checkpoint's matrices are encoded.
    pub fn weight_encoding(&self) -> Encoding {
        self.inner.weight_encoding
    }

    /// The device that runs it.
    pub fn device(&self) -> &str {
        &self.inner.device
    }

    /// Why it runs on this device, in a few words: that the program asked for it, or what [`Device::Auto`] found.
    pub fn device_reason(&self) -> &str {
        &self.inner.device_reason
    }

    /// The device that runs it as a value: what [`Device::Auto`] became. `None` on a backend of the program's own.
    pub fn placed_on(&self) -> Option<&Device> {
        self.inner.placed_on.as_ref()
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
