//! Checkpoints, the transformer over a `Backend` trait, batches, K/V and sampling.

pub mod dtype;
pub mod error;

pub use dtype::{Encoding, Precision};
pub use error::{Error, Result};
