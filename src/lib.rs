//! Run Qwen2.5 language models inside a Rust program: text in, text out.
//!
//! ```no_run
//! let engine = qwen::Engine::load("path/to/Qwen2.5-0.5B-Instruct")?;
//! let mut chat = engine.chat().system("You are terse.");
//! for piece in chat.send("Why is the sky blue?")? {
//!     print!("{}", piece?);
//! }
//! # Ok::<(), qwen::Error>(())
//! ```
//!
//! An [`Engine`] is a loaded model with its own thread; it is cheap to clone and may be used from any thread. Answers are
//! owned iterators: [`Reply`] of a [`Chat`], [`TextStream`] of a plain completion, [`TokenStream`] of token ids.
//! [`EngineOptions`] chooses the [`Device`], the [`Precision`], the context and the threads; [`plan()`] says how much
//! memory a model takes with these options, before it is loaded.
//!
//! The same inputs give the same bits, whatever else the engine is doing and however many threads it has.
//!
//! Several requests run at the same time on one engine:
//!
//! ```no_run
//! use qwen::{EngineOptions, GenerateOptions};
//! let engine = EngineOptions::new().context(2048).batch(2).load("path/to/Qwen2.5-0.5B")?;
//! let options = GenerateOptions::new().max_new_tokens(20);
//! let (sky, sea) = (engine.generate("The sky is", &options)?, engine.generate("The sea is", &options)?);
//! let sea = std::thread::spawn(move || sea.text());
//! println!("{}\n{}", sky.text()?, sea.join().expect("the thread ended")?);
//! # Ok::<(), qwen::Error>(())
//! ```
//!
//! A list of prompts is one call ([`Engine::generate_batch`]). A [`Chat`] can be changed, answered again, forked, saved and
//! resumed ([`Chat::state`]), also with its K/V in a file ([`Chat::save`], [`Engine::restore`]). Answers are read by threads, by tasks of any async runtime, or without waiting, and an engine
//! may have no thread at all ([`EngineOptions::manual`]): `docs/sessions.md` and `docs/batching.md`.
//!
//! Low-rank adapters run beside the model, chosen by each request ([`Engine::load_adapter`]): `docs/adapters.md`.
//!
//! # Errors and data
//!
//! Everything fails with [`enum@Error`]: its text is for people, its [`kind`](Error::kind) for programs, and
//! `docs/cookbook.md` lists the kinds with what to do about each. What programs store, send or show is data under the
//! field's names, by serde and as `Display` text: [`GenerateOptions`], [`Stats`], [`FinishReason`], [`Plan`], [`Device`],
//! [`Precision`], [`Encoding`], [`ErrorKind`], [`Warning`]. Sizes are bytes in fields and [`HumanBytes`] in texts.
//!
//! # Features
//!
//! `cpu` (default): the CPU backend. `cuda`: NVIDIA GPUs, as `Device::Cuda`. `wgpu`: GPUs through Vulkan, Metal or DX12,
//! as `Device::Wgpu`. Several of them may share a model, as `Device::Split`: `docs/devices.md`. Features only add devices: they never change what a device computes, nor which device runs when the
//! program names one. [`devices`] lists the devices of the machine. `log` (default): events through the `log` crate, which
//! cost nothing without a logger: what was loaded where and why, fallbacks, warnings, requests that wait. `stream`:
//! `futures_core::Stream` for all answers, which have the same as `poll_next` without it. `structure`: answers that fit a
//! [`Grammar`] or a Rust type. `tools`: [`Toolbox`] functions by Rust types. `hub`: checkpoints by name, in the
//! module `hub`. `mpi`: ranks that MPI starts and connects.

mod adapter;
mod adapter_registry;
mod batch;
mod beam;
#[doc(hidden)]
pub mod bench_support;
mod channel;
mod chat;
mod device;
mod distributed;
mod draft;
mod embed;
mod engine;
mod error;
mod events;
mod fill;
mod fingerprint;
#[cfg(feature = "stream")]
mod futures;
mod generate;
mod grammar;
#[cfg(feature = "hub")]
pub mod hub;
mod load;
mod locate;
mod logits;
// Without the hub only the shape of a name matters, for the hint in an error.
#[cfg_attr(not(feature = "hub"), allow(dead_code, unreachable_pub))]
mod model_name;
mod options;
mod perplexity;
mod plan;
mod progress;
mod quantize;
mod requests;
mod score;
mod sentence_transformers;
mod stats;
mod stop;
mod stop_strings;
mod stream;
#[cfg(feature = "structure")]
mod structure;
#[cfg(feature = "structure")]
mod structured;
mod tool_choice;
mod toolbox;
mod vocabulary;
mod words;
mod worker;

pub use adapter_registry::Adapter;
pub use batch::Answer;
pub use beam::{Beam, BeamOptions, EarlyStopping};
pub use chat::{Chat, ChatState, Deltas, Reply};
pub use device::{Device, DeviceEntry, ParseDeviceError, Split, SplitPart, absent_devices, devices};
pub use distributed::Ranks;
pub use draft::DraftModel;
pub use embed::{EmbedOptions, Embedding};
pub use engine::Engine;
pub use error::{Error, ErrorKind, PromptLength, Result};
pub use fill::Fill;
#[cfg(feature = "stream")]
pub use futures::AnswerStream;
pub use generate::{Dry, GenerateOptions};
pub use grammar::{Grammar, Whitespace};
pub use logits::LogitsRows;
pub use options::EngineOptions;
pub use perplexity::{Perplexity, PerplexityOptions};
pub use plan::plan;
pub use progress::{LoadCanceller, LoadProgress, LoadStage};
pub use quantize::{QuantizedFile, Quantizer};
/// What [`Error::Model`] holds.
pub use qwen_core::Error as ModelError;
pub use qwen_core::backend::{AdapterChoice, CapabilitySet};
pub use qwen_core::checkpoint::config::{GptqFormat, QuantMethod, Quantization, Yarn};
pub use qwen_core::engine::sampling::{
    History, LogitsProcessor, Logprobs, Mirostat, Preset, Processors, Stage, TokenLogprob,
};
pub use qwen_core::engine::{Canceller, EngineStats, FinishReason, Pooling, Speculation, Work};
pub use qwen_core::memory::{self, MemoryInfo};
pub use qwen_core::model::plan::{DraftPlan, Plan, PlanPart};
pub use qwen_core::numerics::encoding::{Block, GroupBits, GroupEncoding};
pub use qwen_core::quantize::{Importances, ModelFacts, Progress as QuantizeProgress, TensorMix};
pub use qwen_core::{Backend, Config, Encoding, GenerationConfig, HumanBytes, Precision, RopeScaling, Warning};
/// What [`Error::Text`] holds.
pub use qwen_tokenizer::Error as TextError;
pub use qwen_tokenizer::{
    AnswerParser, Arguments, BrokenCall, CallForms, ChatInput, ChatTemplate, Content, ContentPart, DecodeStream, Delta,
    EncodedChat,
};
pub use qwen_tokenizer::{FunctionCall, Message, Role, Tokenizer, Tool, ToolCall, ToolCallDelta};
pub use score::{LabelScore, Score};
pub use stats::{PromptProgress, Stats};
pub use stream::{StoppedBy, TextStream, TokenStream};
pub use tool_choice::ToolChoice;
pub use toolbox::Toolbox;
pub use vocabulary::load_tokenizer;

/// The layers below the facade: for backends, and for programs that work on token ids.
pub use qwen_core as core;
/// The layer of texts: what programs rarely need of it.
pub use qwen_tokenizer as tokenizer;
/// The crate that derives the schemas of `Toolbox::function` and `Engine::generate_as`.
#[cfg(any(feature = "tools", feature = "structure"))]
pub use schemars;

// Clones of one engine are used from many threads, and streams are moved between threads.
const _: () = {
    const fn shared<T: Clone + Send + Sync + 'static>() {}
    const fn moved<T: Send + 'static>() {}
    shared::<Engine>();
    moved::<Chat>();
    moved::<Reply>();
    moved::<TextStream>();
    moved::<TokenStream>();
    moved::<LogitsRows>();
};

// The programs in the documents are compiled with the tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/cookbook.md")]
    struct Cookbook;
    #[doc = include_str!("../docs/generation.md")]
    struct Generation;
    #[doc = include_str!("../docs/sessions.md")]
    struct Sessions;
    #[doc = include_str!("../docs/tools.md")]
    struct Tools;
    #[doc = include_str!("../docs/adapters.md")]
    struct Adapters;
    #[cfg(feature = "structure")]
    #[doc = include_str!("../docs/structured-output.md")]
    struct StructuredOutput;
    #[cfg(feature = "cpu")]
    #[doc = include_str!("../docs/devices.md")]
    struct Devices;
    #[doc = include_str!("../docs/batching.md")]
    struct Batching;
    #[doc = include_str!("../docs/scoring.md")]
    struct Scoring;
    #[doc = include_str!("../docs/speculation.md")]
    struct Speculation;
    #[doc = include_str!("../docs/writing-a-backend.md")]
    struct WritingABackend;
    #[doc = include_str!("../docs/ranks.md")]
    struct Ranks;
    #[cfg(feature = "hub")]
    #[doc = include_str!("../docs/hub.md")]
    struct Hub;
}
