//! From plain batches to a device and back: the boundary between plain code and code that is generic over backends.
//!
//! Everything above [`Runner`] (scheduler, engine, chat) is plain code that a scripted runner can drive in tests;
//! everything below is generic over [`Backend`](crate::Backend). [`ModelRunner`] is a model, or some of its layers, on one
//! backend; [`Pipeline`] runs a model whose layers are on several backends, also of different types: each is a [`Stage`].

mod inputs;
mod model_runner;
mod pipeline;
mod stage;

use crate::backend::{Interrupt, KvSpec, Limits};
use crate::error::{Error, Result};
use crate::model::batch::{AdapterId, Batch, BlockId, CopyBlock, StepOutput};
use crate::model::source::LowRankSource;
pub use model_runner::ModelRunner;
pub use pipeline::Pipeline;
pub use stage::Stage;

/// Runs batches: plain data in, plain data out.
pub trait Runner: Send {
    /// The limits that this runner was built for.
    fn limits(&self) -> &Limits;

    /// Compute one step. A non-finite value is not an error: `output` names the sequences that it damaged.
    ///
    /// # Errors
    /// What [`Batch::check`] finds, [`Error::Cancelled`] when `interrupt` was raised (then no K/V of the step counts), and
    /// what the device reports.
    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()>;

    /// The most positions of a sequence in each stage of RoPE, in ascending order (see
    /// [`RopeStages`](crate::model::rope::RopeStages)). Default: none, so that all sequences are in the same stage.
    fn rope_contexts(&self) -> &[usize] {
        &[]
    }

    /// Copy K/V blocks that are about to be written while shared.
    ///
    /// # Errors
    /// What the device reports.
    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()>;

    /// Load a low-rank adapter beside the model, under a number that no other one has had. Sequences of a batch may
    /// choose it from then on ([`Batch::adapters`]).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a runner without adapters, which is the default, and for a model that is split over
    /// ranks; [`Error::DoesNotFit`] with the figures; what the file and the device report.
    fn load_adapter(&mut self, id: AdapterId, adapter: &dyn LowRankSource) -> Result<()> {
        let _ = id;
        self.adapter_bytes(adapter).map(drop)
    }

    /// Free an adapter that no sequence uses any more. Nothing for one that is not there.
    fn unload_adapter(&mut self, id: AdapterId) {
        let _ = id;
    }

    /// Bytes that an adapter takes on the devices, before it is loaded, without the buffers that all adapters share.
    ///
    /// # Errors
    /// As [`Runner::load_adapter`].
    fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        let reason = "this runner computes the model alone, as when it is split over ranks: merge the adapter at load";
        Err(Error::unsupported(format!("the adapter {} beside the model", adapter.name()), reason))
    }

    /// What [`Runner::read_blocks`] gives: the K/V of all layers of the model, in the order of the layers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where K/V cannot leave the devices. That is the default.
    fn stored_kv(&self) -> Result<KvSpec> {
        Err(Error::unsupported("saved K/V", "this runner keeps its K/V to itself: save the messages alone"))
    }

    /// Copy whole blocks of all layers to `out`, in the layout of [`Backend::read_blocks`](crate::Backend::read_blocks).
    ///
    /// # Errors
    /// As [`Runner::stored_kv`], for another number of bytes, and what the device reports.
    fn read_blocks(&mut self, blocks: &[BlockId], out: &mut [u8]) -> Result<()> {
        let _ = (blocks, out);
        self.stored_kv().map(drop)
    }

    /// The contrary of [`Runner::read_blocks`].
    ///
    /// # Errors
    /// As [`Runner::read_blocks`].
    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        let _ = (blocks, bytes);
        self.stored_kv().map(drop)
    }
}
