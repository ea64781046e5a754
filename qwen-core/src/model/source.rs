//! Where the transformer's weights come from: a checkpoint on disk, or values made up in a test. Not here: how files
//! are found and read ([`crate::checkpoint`]), and which tensors a model needs (`model/spec.rs`).

use std::sync::Arc;

use crate::backend::MatrixPart;
use crate::checkpoint::{Checkpoint, LoraCheckpoint, LoraModule};
use crate::error::Result;
use crate::numerics::encoding::Encoding;

/// Provides tensors by the names of published safetensors checkpoints.
pub trait WeightSource {
    /// A stored matrix of `rows` x `cols`. A source on disk reads it row by row, when it is packed.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`], and [`crate::Error::InvalidTensor`] when its shape differs.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>>;

    /// A stored vector of `len` values, decoded.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`], and [`crate::Error::Io`] when it cannot be read.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>>;

    /// The encoding of a tensor, from headers only.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`].
    fn encoding(&self, name: &str) -> Result<Encoding>;

    /// The input feature of each column of a matrix, if its columns are stored in another order.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    fn column_order(&self, _name: &str) -> Result<Option<Arc<[u32]>>> {
        Ok(None)
    }
}

/// Provides a low-rank adapter's parts by the names of a model's modules, such as `model.layers.0.self_attn.q_proj`: a
/// folder on disk, or values made up in a test. Their shapes are those of the model.
pub trait LowRankSource: std::fmt::Debug + Send + Sync {
    /// A name for errors.
    fn name(&self) -> String;

    /// The encodings of both halves beside `module` and their rank, if it has a part there, from headers only.
    ///
    /// # Errors
    /// [`crate::Error::InvalidTensor`] for other element types than F32, F16 and BF16.
    fn encodings(&self, module: &str) -> Result<Option<([Encoding; 2], usize)>>;

    /// Its part beside `module`, if it has one.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when it cannot be read.
    fn module(&self, module: &str) -> Result<Option<LoraModule>>;
}

impl LowRankSource for LoraCheckpoint {
    fn name(&self) -> String {
        self.path().display().to_string()
    }

    fn encodings(&self, module: &str) -> Result<Option<([Encoding; 2], usize)>> {
        LoraCheckpoint::encodings(self, module)
    }

    fn module(&self, module: &str) -> Result<Option<LoraModule>> {
        LoraCheckpoint::module(self, module)
    }
}

impl WeightSource for Checkpoint {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        Checkpoint::matrix(self, name, rows, cols)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensor_of_shape(name, &[len])?.to_f32())
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        Checkpoint::encoding(self, name)
    }

    fn column_order(&self, name: &str) -> Result<Option<Arc<[u32]>>> {
        Checkpoint::column_order(self, name)
    }
}
