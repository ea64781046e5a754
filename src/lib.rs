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
//! An [`Engine`] is a loaded model with a thread of its own; it is cheap to clone and may be used from any thread. Its
//! answers come as owned iterators: [`Reply`] of a [`Chat`], [`TextStream`] of a plain completion, [`TokenStream`] by
//! token ids. [`EngineOptions`] chooses the [`Device`], the [`Precision`], the context and the threads; [`plan()`] says
//! what a model will take with them before it is loaded.
//!
//! The same inputs give the same bits, whatever else the engine is doing and however many threads it has.
//!
//! # Features
//!
//! `cpu` (default): the CPU backend. `cuda`: NVIDIA cards, as `Device::Cuda`. `wgpu`: GPUs through Vulkan, Metal or
//! DX12, as `Device::Wgpu`. Features add devices; they never change what a device computes, nor which one runs when the
//! program names it. [`devices`] lists those of the machine.

mod auto;
#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
mod ceilings;
mod chat;
mod device;
mod engine;
mod error;
mod generate;
mod load;
mod options;
mod place;
mod stop;
mod worker;

#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
pub use ceilings::{CeilingMeter, Ceilings};
pub use chat::{Chat, Reply};
pub use device::{Device, DeviceEntry, absent_devices, devices};
pub use engine::Engine;
pub use error::{Error, Result};
pub use generate::{GenerateOptions, Stats, TextStream, TokenStream};
pub use options::{EngineOptions, plan};
#[cfg(feature = "wgpu")]
pub use qwen_backend_wgpu::{AdapterChoice, CapabilitySet};
pub use qwen_core::engine::{Canceller, FinishReason};
pub use qwen_core::memory;
pub use qwen_core::plan::Plan;
pub use qwen_core::ranks::Ranks;
pub use qwen_core::{Config, Encoding, GenerationConfig, Precision};
pub use qwen_tokenizer::{ChatInput, ChatTemplate, Content, FunctionCall, Message, Role, Tokenizer, Tool, ToolCall};

/// The layers below: for backends and programs that work by token ids.
pub use qwen_core as core;
/// The layer of texts: its errors, which [`Error::Text`] holds, and what programs rarely need of it.
pub use qwen_tokenizer as tokenizer;

// The programs in the documents are compiled with the tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/writing-a-backend.md")]
    struct WritingABackend;
    #[doc = include_str!("../docs/ranks.md")]
    struct Ranks;
}
