//! Checkpoints, the transformer over a `Backend` trait, batches, K/V and sampling.

pub mod backend;
pub mod collective;
pub mod composed;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod dtype;
pub mod error;
pub mod reference;

pub use backend::Backend;
pub use dtype::{Encoding, Precision};
pub use error::{Error, Result};
