//! Checkpoints, the transformer over a [`Backend`] trait, batches, K/V, sampling, and an engine that works on token
//! ids.
//!
//! This crate knows nothing about text or kernels. The path of a token: [`engine::EngineCore`] schedules a
//! [`model::batch::Batch`], a [`model::runner::Runner`] runs it on a device, [`model::Model`] issues the operations of
//! a [`Backend`], and [`engine::sampling::Sampler`] samples from the resulting logits.
//!
//! # Map
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | which sequences run in which steps, their K/V blocks, and sampling |
//! | [`model`] | the transformer over a backend, the batch of a step, and the plan of a model's memory |
//! | [`backend`] | the interface to devices: the trait, its operations, their specification, collectives between ranks
//! |
//! | [`checkpoint`] | files: configuration, headers, tensors by name |
//! | [`numerics`] | how numbers are stored, what may be rounded, and size arithmetic that cannot overflow |
//! | [`quantize`] | from a 16-bit model to block formats, while it is loaded or into a GGUF file |
//! | [`ranks`] | one model in several processes |
//! | [`memory`], [`error`], [`warning`] | the machine's memory; errors; warnings |

#[macro_use]
mod by_text;

pub mod backend;
#[doc(hidden)]
pub mod ceilings;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod memory;
pub mod model;
pub mod numerics;
pub mod quantize;
pub mod ranks;
#[doc(hidden)]
pub mod seconds;
pub mod warning;

pub use backend::{Backend, Footprint, StoredSizes};
pub use checkpoint::{Checkpoint, Config, GenerationConfig, RopeScaling};
pub use error::{Error, ErrorKind, Result};
pub use model::rope::{Rope, RopeStages};
pub use numerics::{Encoding, HumanBytes, Precision};
pub use warning::Warning;
