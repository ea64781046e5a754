//! Checkpoints, the transformer over a [`Backend`] trait, batches, K/V, sampling, and an engine by token ids.
//!
//! This crate knows no text and no kernel. The way of a token: [`engine::EngineCore`] schedules a [`batch::Batch`], a
//! [`runner::Runner`] carries it to a device, [`model::Model`] issues the operations of a [`Backend`], and
//! [`sampling::Sampler`] draws from the logits that come back.
//!
//! # Map
//!
//! | part | modules |
//! |---|---|
//! | the engine, plain code on integers | [`engine`], [`sampling`], [`batch`], [`kv`] |
//! | the model, generic over a backend | [`model`], [`runner`], [`rope`], [`plan`] |
//! | the seam to devices | [`backend`], [`mod@reference`] (the specification of every operation), [`collective`] |
//! | checkpoints | [`checkpoint`], [`config`], [`generation_config`] |
//! | numerics | [`encoding`], [`precision`], [`size`], [`float_env`] |
//! | several processes | [`ranks`] |
//! | the machine, and what goes wrong | [`memory`], [`error`] |

pub mod backend;
pub mod batch;
#[doc(hidden)]
pub mod ceilings;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod encoding;
pub mod engine;
pub mod error;
mod files;
pub mod float_env;
pub mod generation_config;
mod json;
pub mod kv;
pub mod memory;
pub mod model;
pub mod plan;
pub mod precision;
pub mod ranks;
pub mod reference;
pub mod rope;
pub mod runner;
pub mod sampling;
pub mod size;

pub use backend::{Backend, Footprint, StoredSizes};
pub use checkpoint::Checkpoint;
pub use config::{Config, RopeScaling};
pub use encoding::Encoding;
pub use error::{Error, Result};
pub use generation_config::GenerationConfig;
pub use precision::Precision;
pub use rope::Rope;
