//! Checkpoints, the transformer over a `Backend` trait, batches, K/V and sampling.

pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod error;
pub mod generation_config;
mod json;
pub mod memory;
pub mod rope;

pub use checkpoint::Checkpoint;
pub use config::{Config, RopeScaling};
pub use dtype::{Encoding, Precision};
pub use error::{Error, Result};
pub use generation_config::GenerationConfig;
pub use rope::Rope;
