//! A part of a model as the next part sees it: activations in, activations out, in host memory.

use super::Runner;
use crate::backend::{Interrupt, StepKey};
use crate::error::Result;
use crate::model::batch::{Batch, Damage, StepOutput};
use crate::model::spec::ModelSpec;

/// Some consecutive layers of a model on one device. Object-safe, so that the stages of a
/// [`Pipeline`](super::Pipeline) may be on backends of different types: what passes between them is the residual
/// stream, in host memory.
///
/// As a [`Runner`], a stage copies, reads and writes the K/V of its own layers; [`Runner::execute`] is for a stage that is
/// a whole model.
pub trait Stage: Runner {
    /// The part of the model that this is.
    fn spec(&self) -> &ModelSpec;

    /// Run the backend's warm-up steps before the first request.
    ///
    /// # Errors
    /// What the device reports.
    fn warm_up(&mut self) -> Result<()>;

    /// Compute these layers for a batch. A stage that is not the first takes `hidden`, the residual stream
    /// `[num_tokens, hidden_size]` of the stage before it. Returns the shape that the step had.
    ///
    /// # Errors
    /// As [`Runner::execute`].
    fn run(&mut self, batch: &Batch, hidden: Option<&[f32]>, interrupt: &Interrupt) -> Result<StepKey>;

    /// The residual stream after [`Stage::run`], for the next stage: `num_tokens * hidden_size` values.
    ///
    /// # Errors
    /// What the device reports.
    fn read_hidden(&mut self, num_tokens: usize, hidden: &mut Vec<f32>) -> Result<()>;

    /// What the last stage computed in [`Stage::run`], without the places of damage.
    ///
    /// # Errors
    /// What the device reports.
    fn read_output(&mut self, batch: &Batch, output: &mut StepOutput) -> Result<()>;

    /// Where each sequence first has a non-finite value, before the output head: the step of shape `key` runs again layer
    /// by layer. Sequences that are already damaged in `hidden` are left out.
    ///
    /// # Errors
    /// What the device reports.
    fn locate(&mut self, batch: &Batch, hidden: Option<&[f32]>, key: StepKey) -> Result<Vec<Damage>>;
}
