//! From a 16- or 32-bit model to block formats: while it is loaded, or into a GGUF file.
//!
//! [`TensorMix`] decides which tensor gets which encoding. [`QuantizedWeights`] is a checkpoint with a mix applied: a
//! source of weights like the checkpoint itself, whose rows are quantised when they are read, so that a loaded model
//! and a file written by [`write_gguf`] have the same bits. Not here: the block formats
//! ([`crate::numerics::encoding`]), the layout of GGUF files ([`crate::checkpoint::gguf`]), and the vocabulary in such
//! a file (the text layer).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod file;
mod importance;
mod mix;
mod rows;
mod weights;

pub use file::{Progress, write_gguf};
pub use importance::Importances;
pub use mix::{ModelFacts, TensorMix};
pub use weights::QuantizedWeights;
