//! From a model in 16 or 32 bits to one in block formats: while it is loaded, or into a GGUF file.
//!
//! [`TensorMix`] decides which tensor gets which encoding. [`QuantizedWeights`] is a checkpoint seen through a mix: a
//! source of weights like the checkpoint itself, whose rows are quantised when somebody reads them, so that the model
//! that is loaded and the file that [`write_gguf`] writes have the same bits. Not here: the block formats
//! ([`crate::numerics::encoding`]), the layout of GGUF files ([`crate::checkpoint::gguf`]), and the vocabulary that such a
//! file carries (the text layer).
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
