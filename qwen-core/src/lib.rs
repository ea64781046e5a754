//! Checkpoints, the transformer over a [`Backend`] trait, batches, K/V, sampling, and an engine by token ids.
//!
//! This crate knows no text and no kernel. The way of a token: [`engine::EngineCore`] schedules a
//! [`model::batch::Batch`], a [`model::runner::Runner`] carries it to a device, [`model::Model`] issues the operations of
//! a [`Backend`], and [`engine::sampling::Sampler`] draws from the logits that come back.
//!
//! # Map
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | which sequences run in which steps, their K/V blocks, and what is drawn from their logits |
//! | [`model`] | the transformer over a backend, the batch of a step, and the plan of what a model takes |
//! | [`backend`] | the seam to devices: the trait, its operations, their specification, collectives between ranks |
//! | [`checkpoint`] | files: configuration, headers, tensors by name |
//! | [`numerics`] | how numbers are stored, what may be rounded, and arithmetic of sizes that cannot wrap |
//! | [`quantize`] | a model in 16 bits to block formats, while it is loaded or into a GGUF file |
//! | [`ranks`] | one model in several processes |
//! | [`memory`], [`error`], [`warning`] | the machine, what goes wrong, and what is only noticed |

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
pub mod warning;

pub use backend::{Backend, Footprint, StoredSizes};
pub use checkpoint::{Checkpoint, Config, GenerationConfig, RopeScaling};
pub use error::{Error, ErrorKind, Result};
pub use model::rope::Rope;
pub use numerics::{Encoding, HumanBytes, Precision};
pub use warning::Warning;
