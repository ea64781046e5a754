//! A loaded model: a handle to a thread that computes. What it can be asked for is beside the answers: `generate.rs`,
//! `logits.rs` and `chat.rs`; `load.rs` makes it.

use std::path::PathBuf;
use std::sync::Arc;

use qwen_core::engine::{Intake, Work};
use qwen_core::model::plan::Plan;
use qwen_core::model::runner::Runner;
use qwen_core::{Config, Encoding, GenerationConfig};
use qwen_tokenizer::Tokenizer;

use crate::device::Device;
use crate::error::Result;
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
    worker: Arc<Worker>,
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
        Ok(Engine { inner: Arc::new(Inner { worker: Arc::new(worker), parts }) })
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.inner.worker
    }

    /// The most tokens of a prompt, which leave room for one more.
    pub(crate) fn prompt_room(&self) -> usize {
        self.context().saturating_sub(1)
    }

    /// What the engine has computed, and what of it was discarded because requests were cancelled: at most a tenth.
    pub fn work(&self) -> Work {
        self.inner.worker.intake().work()
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
