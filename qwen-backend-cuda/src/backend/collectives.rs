//! Collective operations over the GPUs of a group: sums, and activations from stage to stage.

use qwen_core::Result;
use qwen_core::backend::Backend;
use qwen_core::backend::collective::{Collective, ProcessGroup};

use super::CudaBackend;
use super::operands::Words;
use crate::driver::Command;
use crate::nccl::{CollectiveOp, NcclGroup};

impl NcclGroup {
    /// Join the ranks of `processes` as a group of GPUs, on the stream of `backend`. Every rank calls it; it waits for all of
    /// them.
    ///
    /// ```no_run
    /// use qwen_backend_cuda::{CudaBackend, CudaOptions, NcclGroup};
    /// use qwen_core::ranks::Ranks;
    /// let ranks = Ranks::from_env()?;
    /// let backend = CudaBackend::new(CudaOptions::new().ordinal(ranks.local_rank()))?;
    /// let group = NcclGroup::join(&backend, &ranks.rendezvous(&[("model", "the same for all".into())])?)?;
    /// # let _ = group;
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when NCCL is not installed, or the backend has no GPU;
    /// [`qwen_core::Error::RankFailed`] when another rank is lost or cannot join; [`qwen_core::Error::Device`] with NCCL's
    /// errors.
    pub fn join(backend: &CudaBackend, processes: &dyn ProcessGroup) -> Result<Self> {
        Self::join_on(backend.driver(), &backend.info().name, processes)
    }
}

/// The group, if it is an NCCL group.
fn nccl_group(group: &dyn Collective) -> Option<&NcclGroup> {
    (group as &dyn std::any::Any).downcast_ref()
}

impl CudaBackend {
    /// Whether `group` is an NCCL group on this backend's GPU.
    pub(super) fn is_on_this_gpu(&self, group: &dyn Collective) -> bool {
        nccl_group(group).is_some_and(|group| group.is_on(self.driver()))
    }

    /// The command of a collective operation on the first `len` values of `x`; `None` when `group` is not on this GPU.
    pub(super) fn collective(
        &self,
        name: &str,
        op: CollectiveOp,
        x: &Words,
        len: usize,
        group: &dyn Collective,
    ) -> Result<Option<Command>> {
        self.check_len(name, "x", x, len)?;
        self.gpu.check_owner(name, &x.array)?;
        Ok(nccl_group(group).and_then(|group| group.call(op, self.driver(), &x.array, len)))
    }

    /// Queue a transfer between two GPUs of `group`.
    pub(super) fn queue_p2p(
        &mut self,
        name: &str,
        op: CollectiveOp,
        x: &Words,
        len: usize,
        group: &dyn Collective,
    ) -> Result<()> {
        match self.collective(name, op, x, len, group)? {
            Some(command) => self.queue(Some(command)),
            None => Err(self.mismatch(name, "the group is on another device")),
        }
    }
}
