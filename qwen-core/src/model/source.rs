//! Where the transformer's weights come from: a checkpoint on disk, or values made in a test.

use crate::backend::MatrixPart;
use crate::checkpoint::Checkpoint;
use crate::dtype::Encoding;
use crate::error::Result;

/// Gives tensors by the names of published safetensors checkpoints.
pub trait WeightSource {
    /// A stored matrix of `rows` x `cols`.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`] and [`crate::Error::InvalidTensor`].
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>>;

    /// A stored vector of `len` values, decoded.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>>;

    /// How the elements of a tensor are encoded, from headers alone.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`].
    fn encoding(&self, name: &str) -> Result<Encoding>;

    /// The caller will not read this tensor again: its pages may go.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

impl WeightSource for Checkpoint {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let view = self.tensor_of_shape(name, &[rows, cols])?;
        Ok(MatrixPart::whole(view.encoding, rows, cols, view.data))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensor_of_shape(name, &[len])?.to_f32())
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        Ok(self.tensor(name)?.encoding)
    }

    fn release(&self, name: &str) {
        Checkpoint::release(self, name);
    }
}
