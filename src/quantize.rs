//! Writes a 16- or 32-bit model as one GGUF file: its tensors in the encodings of a mix, its configuration and
//! tokenizer.
//!
//! Here: collecting what goes into the file from the files of a folder. Not here: the quantiser and the file layout
//! (core), and the contents of a vocabulary (the text layer).

use std::fmt;
use std::num::NonZero;
use std::path::Path;
use std::thread::available_parallelism;

use qwen_core::checkpoint::Checkpoint;
use qwen_core::checkpoint::gguf::{Array, Metadata, Value, describe};
use qwen_core::numerics::float_env::FloatEnv;
use qwen_core::quantize::{Importances, Progress, QuantizedWeights, TensorMix, write_gguf};
use qwen_tokenizer::OwnedGgufVocabulary;

use crate::device::factory::LoadRequest;
use crate::error::Result;
use crate::options::EngineOptions;
use crate::plan::{Planner, config_of};
use crate::progress::{LoadProgress, LoadStage};
use crate::vocabulary;

/// Tokens per piece of the text used to measure importances.
const PIECE_TOKENS: usize = 512;

/// The tokens that end an answer even if no file names them.
const KNOWN_ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Writes a 16- or 32-bit model to a GGUF file in block formats, which this library, llama.cpp and programs built on it
/// can read.
///
/// ```
/// use qwen::{Quantizer, TensorMix};
///
/// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
/// let out = std::env::temp_dir().join(format!("qwen-doc-{}-q4_k_m.gguf", std::process::id()));
/// let file = Quantizer::new(TensorMix::Q4KM).write(model, &out)?;
/// assert!(file.bytes < 3_000_000 && file.has_tokenizer);
/// println!("{}", qwen::Engine::load(&out)?.chat().send("Hello!")?.text()?);
/// # std::fs::remove_file(&out).unwrap();
/// # Ok::<(), qwen::Error>(())
/// ```
#[must_use = "a quantiser writes nothing until `write` is called"]
pub struct Quantizer<'a> {
    mix: TensorMix,
    importances: Option<&'a Importances>,
    threads: Option<NonZero<usize>>,
    progress: Box<dyn FnMut(&Progress<'_>) + 'a>,
}

/// What a [`Quantizer`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizedFile {
    /// The length of the file.
    pub bytes: u64,
    /// Whether the model, and so the file, has a tokenizer. Without one, only programs that work on token ids can use
    /// the file, and llama.cpp refuses it.
    pub has_tokenizer: bool,
}

impl fmt::Debug for Quantizer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quantizer").field("mix", &self.mix).field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl<'a> Quantizer<'a> {
    /// A quantiser to the encodings of `mix`, which `"q4_k_m".parse()` gives by name.
    pub fn new(mix: TensorMix) -> Self {
        Quantizer { mix, importances: None, threads: None, progress: Box::new(|_| {}) }
    }

    /// Weight the errors of each column by its importance. Default: all equal.
    pub fn importances(mut self, importances: &'a Importances) -> Self {
        self.importances = Some(importances);
        self
    }

    /// Threads that quantise. Default: the system's available parallelism.
    pub fn threads(mut self, threads: NonZero<usize>) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Call `report` as the file grows.
    pub fn progress(mut self, report: impl FnMut(&Progress<'_>) + 'a) -> Self {
        self.progress = Box::new(report);
        self
    }

    /// Write the model at `model`, a folder or a GGUF file, to the file `out`. An existing file of that name is
    /// replaced once the new one is complete; on an error it is left as it is. Memory use is small, whatever the
    /// model's size.
    ///
    /// # Errors
    /// What is wrong with the model, by file and key; [`qwen_core::Error::Unsupported`] for a model that is already
    /// quantised, and for what a GGUF file cannot express: a tokenizer with its own way of splitting texts, YaRN
    /// without `truncate`; [`qwen_core::Error::InvalidTensor`] for non-finite values;
    /// [`qwen_core::Error::Io`].
    pub fn write(mut self, model: impl AsRef<Path>, out: impl AsRef<Path>) -> Result<QuantizedFile> {
        let _float_env = FloatEnv::enter();
        let checkpoint = Checkpoint::open(model)?;
        let mut weights = QuantizedWeights::new(&checkpoint, self.mix)?;
        if let Some(importances) = self.importances {
            weights = weights.with_importances(importances)?;
        }
        let (metadata, has_tokenizer) = metadata_of(&checkpoint)?;
        let one = NonZero::<usize>::MIN;
        let threads = self.threads.unwrap_or_else(|| available_parallelism().unwrap_or(one));
        let bytes = write_gguf(out, &weights, metadata, threads, &mut self.progress)?;
        Ok(QuantizedFile { bytes, has_tokenizer })
    }
}

impl EngineOptions {
    /// Load the model at `path`, run it on `text`, and measure how much errors matter in each column of its matrices,
    /// for [`Quantizer::importances`]. The text should be like what the model is used for, such as chats; control
    /// tokens in it take effect. 20,000 tokens are plenty. It is cut into pieces of [`EngineOptions::context`] tokens,
    /// 512 by default.
    ///
    /// ```
    /// use qwen::{EngineOptions, Quantizer, TensorMix};
    ///
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let importances = EngineOptions::new().measure_importances(model, "What is 3 + 4? 3 + 4 is 7.")?;
    /// # let out = std::env::temp_dir().join(format!("qwen-doc-{}-importances.gguf", std::process::id()));
    /// Quantizer::new(TensorMix::Q4KM).importances(&importances).write(model, &out)?;
    /// # std::fs::remove_file(&out).unwrap();
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`EngineOptions::load`]; [`qwen_core::Error::InvalidArgument`] for a text without a token, and for ranks.
    pub fn measure_importances(self, path: impl AsRef<Path>, text: &str) -> Result<Importances> {
        let _float_env = FloatEnv::enter();
        if self.ranks.world_size() > 1 {
            let reason = "importances are measured on a whole model in one process";
            return Err(qwen_core::Error::argument("ranks", reason).into());
        }
        self.observer.report(LoadProgress::of(LoadStage::Opening))?;
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = vocabulary::of_checkpoint(&checkpoint)?.map_err(crate::Error::from)?;
        let ids = tokenizer.encode(text, true)?;
        let config = config_of(&checkpoint, &self)?;
        let planner = Planner::new(&self, &checkpoint, &config, None, config.vocab_size)?;
        let piece = self.context.unwrap_or(PIECE_TOKENS).min(config.max_context());
        let candidate = planner.candidates(&self.device).into_iter().next();
        let factory = candidate.map_or(self.device.clone(), |candidate| candidate.device).factory()?;
        let capacity = factory.capacity(&self.settings)?;
        let plan = planner.plan_within(&capacity, Some(piece))?;
        plan.check()?;
        let limits = planner.limits(&capacity, piece, 1);
        let pieces: Vec<&[u32]> = ids.chunks(piece.min(limits.max_num_batched_tokens)).collect();
        let (source, spec) = (planner.weights.source(), &planner.spec);
        let request =
            LoadRequest { source, config: &config, limits: &limits, spec, peers: None, observer: &self.observer };
        Ok(factory.open(&self.settings, &plan)?.measure(request, &pieces)?)
    }
}

/// All keys of the file except those about encodings, and whether they include a tokenizer.
fn metadata_of(checkpoint: &Checkpoint) -> Result<(Metadata, bool)> {
    if let Some(metadata) = checkpoint.gguf_metadata() {
        // The keys that describe the parts of a split file do not apply to the whole.
        let kept = metadata.iter().filter(|(key, _)| !key.starts_with("split.") && *key != "general.alignment");
        let mut all = Metadata::default();
        kept.for_each(|(key, value)| drop(all.insert(key, value.clone())));
        return Ok((all, metadata.get("tokenizer.ggml.tokens").is_some()));
    }
    let mut metadata = describe(checkpoint.config(), checkpoint.generation_config())?;
    let folder = checkpoint.path();
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        metadata.insert("general.name", Value::String(name.into()));
    }
    let has_tokenizer = folder.join("tokenizer.json").exists();
    if has_tokenizer {
        let vocabulary = OwnedGgufVocabulary::from_dir(folder, checkpoint.config().vocab_size)?;
        add_vocabulary(checkpoint, vocabulary, &mut metadata);
    } else {
        add_ends(checkpoint.config().eos_token_id.first().copied(), stops(checkpoint), &mut metadata);
    }
    Ok((metadata, has_tokenizer))
}

/// Add the tokenizer's keys.
fn add_vocabulary(checkpoint: &Checkpoint, vocabulary: OwnedGgufVocabulary, metadata: &mut Metadata) {
    const KEYS: &str = "tokenizer.ggml";
    const UNUSED: i32 = 5;
    let config = checkpoint.config();
    // An id that only pads the vocabulary is not a token, and readers refuse it.
    let types = &vocabulary.token_types;
    let is_token = |id: &u32| types.get(*id as usize).is_some_and(|kind| *kind != UNUSED);
    let eos = vocabulary.eos_token_id.or(config.eos_token_id.first().copied().filter(is_token));
    let bos = vocabulary.bos_token_id.or(config.bos_token_id.filter(is_token));
    let is_known = |id: &u32| vocabulary.tokens.get(*id as usize).is_some_and(|token| KNOWN_ENDS.contains(&&token[..]));
    let ends = stops(checkpoint).into_iter().filter(|id| is_token(id) && !is_known(id)).collect();
    add_ends(eos, ends, metadata);
    let ids = [("bos_token_id", bos), ("padding_token_id", vocabulary.padding_token_id)];
    for (name, id) in ids {
        if let Some(id) = id {
            metadata.insert(format!("{KEYS}.{name}"), Value::U32(id));
        }
    }
    metadata.insert(format!("{KEYS}.add_bos_token"), Value::Bool(false));
    metadata.insert(format!("{KEYS}.model"), Value::String(vocabulary.model.into()));
    metadata.insert(format!("{KEYS}.pre"), Value::String(vocabulary.pre.into()));
    metadata.insert(format!("{KEYS}.token_type"), Value::Array(Array::I32(vocabulary.token_types)));
    metadata.insert(format!("{KEYS}.tokens"), Value::Array(Array::String(vocabulary.tokens.into_iter().collect())));
    metadata.insert(format!("{KEYS}.merges"), Value::Array(Array::String(vocabulary.merges.into_iter().collect())));
    if let Some(template) = vocabulary.chat_template {
        metadata.insert("tokenizer.chat_template", Value::String(template));
    }
    for (name, template) in vocabulary.named_chat_templates {
        metadata.insert(format!("tokenizer.chat_template.{name}"), Value::String(template));
    }
}

/// The end ids that the configuration files name.
fn stops(checkpoint: &Checkpoint) -> Vec<u32> {
    let (config, generation) = (checkpoint.config(), checkpoint.generation_config());
    let mut ids: Vec<u32> = config.eos_token_id.iter().chain(&generation.eos_token_id).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Add the id that ends a turn, and as many other end ids as there are keys for.
fn add_ends(eos: Option<u32>, ends: Vec<u32>, metadata: &mut Metadata) {
    let others = ends.into_iter().filter(|id| Some(*id) != eos);
    let keys = ["eot_token_id", "eom_token_id"].into_iter().zip(others);
    for (name, id) in eos.map(|eos| ("eos_token_id", eos)).into_iter().chain(keys) {
        metadata.insert(format!("tokenizer.ggml.{name}"), Value::U32(id));
    }
}
