//! Collective operations over several GPUs by NCCL, directly on their memory: sums, and activations from stage to
//! stage.
//!
//! NCCL is not part of the driver: `library` opens it under the name that its packages install (`libnccl.so.2`), and calls
//! seven of its functions.
//!
//! NCCL waits for all ranks, in its calls and on the GPU, and does not notice when one fails. The [`ProcessGroup`]
//! does, and then aborts NCCL on a separate thread, because the abort itself waits until every recorded step with a
//! collective operation is dropped.
//!
//! A [`CollectiveCall`] is an [`Enqueue`], which the queue accepts: nothing below this file knows about ranks.

mod library;
#[cfg(test)]
pub(crate) mod tests;

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qwen_core::backend::collective::{Collective, ProcessGroup};
use qwen_core::{Error, Result};

use crate::driver::{Array, Command, Driver, Enqueue, Fault, Outcome};
use crate::gpu::Gpu;
use crate::lock::lock;
pub(crate) use library::CollectiveOp;
use library::{Comm, ID_BYTES, Nccl, UniqueId};

/// How long an abort waits for an NCCL call in progress, which may never return.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Check that NCCL is installed on this machine.
///
/// # Errors
/// [`Error::Unsupported`] when it is not.
///
/// ```
/// if let Err(error) = qwen_backend_cuda::nccl_present() {
///     println!("{error}");
/// }
/// ```
pub fn nccl_present() -> Result<()> {
    Nccl::get().map(|_| ())
}

/// The GPUs over which one model is distributed: a [`Collective`] whose sums [`crate::CudaBackend`] computes on the
/// GPUs, and through which stages send activations.
///
/// All ranks get the same bits. NCCL chooses the order of additions: it is fixed for a machine and a number of ranks,
/// and differs for other numbers.
#[derive(Debug)]
pub struct NcclGroup {
    shared: Arc<Communicator>,
    /// The array in which host values are summed.
    host: Mutex<Option<Array>>,
}

impl NcclGroup {
    /// Join the ranks of `processes` as a group, on the stream of `driver`. `device` names the GPU in errors.
    pub(crate) fn join_on(driver: &Arc<dyn Driver>, device: &str, processes: &dyn ProcessGroup) -> Result<Self> {
        if driver.stream().is_none() {
            return Err(Error::unsupported("NCCL on this backend", "it has no GPU"));
        }
        Self::join_by(Nccl::get()?, driver, device, processes)
    }

    fn join_by(
        nccl: &'static Nccl,
        driver: &Arc<dyn Driver>,
        device: &str,
        processes: &dyn ProcessGroup,
    ) -> Result<Self> {
        let failed = |reason| Error::Device { device: device.into(), op: "join a group".into(), reason };
        // A rank without NCCL has failed by now, and this call reports it; NCCL itself would wait for that rank.
        processes.all_reduce_min(0)?;
        let mut id = match processes.rank() {
            0 => nccl.unique_id().map_err(failed)?.0.to_vec(),
            _ => Vec::new(),
        };
        processes.broadcast(&mut id)?;
        let id = <[u8; ID_BYTES]>::try_from(id).map_err(|id| failed(format!("an identifier of {} bytes", id.len())))?;
        let comm = Self::meet(nccl, driver, processes, UniqueId(id)).map_err(|reason| match reason {
            Some(reason) => failed(reason),
            // The next call names the rank.
            None => processes.all_reduce_min(0).err().unwrap_or_else(|| failed("another rank was lost".into())),
        })?;
        let group = Self::of(nccl, comm, driver);
        let shared = Arc::downgrade(&group.shared);
        processes.on_peer_failure(Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.lose();
            }
        }));
        Ok(group)
    }

    /// The group of a communicator that was made on the GPU of `driver`.
    fn of(nccl: &'static Nccl, comm: Comm, driver: &Arc<dyn Driver>) -> Self {
        let (lost, calls) = (AtomicBool::new(false), Arc::default());
        let shared = Communicator { nccl, comm, driver: driver.clone(), lost, calls };
        NcclGroup { shared: Arc::new(shared), host: Mutex::default() }
    }

    /// Wait for all ranks in NCCL, or for the loss of one. The error is NCCL's, or `None` for a loss, in which case a
    /// thread is still waiting in NCCL.
    fn meet(
        nccl: &'static Nccl,
        driver: &Arc<dyn Driver>,
        processes: &dyn ProcessGroup,
        id: UniqueId,
    ) -> std::result::Result<Comm, Option<String>> {
        let (joined, outcome) = mpsc::channel();
        let lost = joined.clone();
        processes.on_peer_failure(Box::new(move || drop(lost.send(Err(None)))));
        let (driver, rank, ranks) = (driver.clone(), processes.rank(), processes.world_size());
        let waits = move || {
            let comm = driver.enter().map_err(|fault| fault.to_string()).and_then(|_entered| {
                // SAFETY: the GPU's context is current.
                unsafe { nccl.join(id, rank, ranks) }
            });
            if let Err(mpsc::SendError(Ok(comm))) = joined.send(comm.map_err(Some)) {
                // The caller has stopped waiting.
                abort(nccl, &*driver, comm);
            }
        };
        std::thread::Builder::new()
            .name("qwen-nccl-join".into())
            .spawn(waits)
            .map_err(|error| Some(error.to_string()))?;
        outcome.recv().unwrap_or_else(|_| Err(Some("the joining thread ended".into())))
    }

    /// Whether the group is on the GPU of `driver`.
    pub(crate) fn is_on(&self, driver: &Arc<dyn Driver>) -> bool {
        Arc::ptr_eq(driver, &self.shared.driver)
    }

    /// The collective operation `op` on the first `len` values of `array`; `None` when the group is on another GPU, or the
    /// array is shorter.
    pub(crate) fn call(
        &self,
        op: CollectiveOp,
        driver: &Arc<dyn Driver>,
        array: &Array,
        len: usize,
    ) -> Option<Command> {
        let fits = self.is_on(driver) && len <= array.bytes / 4;
        let call = || CollectiveCall { communicator: self.shared.clone(), op, array: array.clone(), len };
        fits.then(|| Command::Call(Arc::new(call())))
    }
}

impl Collective for NcclGroup {
    /// The sum of values of the host, computed on the GPUs in the order that NCCL chooses.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let mut gpu = Gpu::new(self.shared.driver.clone(), false);
        let mut held = lock(&self.host);
        let array = match held.take().filter(|array| array.bytes >= size_of_val(values)) {
            Some(array) => array,
            None => gpu.words("sums of the host", values.len())?,
        };
        gpu.write_f32("all_reduce", &array, values)?;
        if let Some(sum) = self.call(CollectiveOp::AllReduce, &self.shared.driver, &array, values.len()) {
            gpu.issue(&sum)?;
        }
        gpu.read_f32("all_reduce", &array, values)?;
        *held = Some(array);
        Ok(())
    }
}

/// A rank's part of the group.
struct Communicator {
    nccl: &'static Nccl,
    comm: Comm,
    driver: Arc<dyn Driver>,
    /// Whether another rank is lost. NCCL is then told to abort, and `comm` is no longer used.
    lost: AtomicBool,
    /// Held during a call: a communicator takes one at a time.
    calls: Arc<Mutex<()>>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Communicator {
    /// Another rank is lost: operations waiting for it end, with undefined values, and later ones are refused.
    fn lose(&self) {
        if self.lost.swap(true, Ordering::SeqCst) {
            return;
        }
        let (nccl, comm, driver, calls) = (self.nccl, self.comm, self.driver.clone(), self.calls.clone());
        let aborts = move || {
            let begun = Instant::now();
            let mut call = calls.try_lock();
            while call.is_err() && begun.elapsed() < ABORT_TIMEOUT {
                std::thread::sleep(Duration::from_millis(5));
                call = calls.try_lock();
            }
            abort(nccl, &*driver, comm);
        };
        // Without a thread NCCL cannot be aborted; the launcher ends the waiting ranks.
        let _ = std::thread::Builder::new().name("qwen-nccl-abort".into()).spawn(aborts);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // All ranks are idle between steps. `ncclCommDestroy` would wait until all ranks destroy theirs, even if this
        // one ends because it failed.
        if !*self.lost.get_mut() {
            abort(self.nccl, &*self.driver, self.comm);
        }
    }
}

/// Free a communicator.
fn abort(nccl: &Nccl, driver: &dyn Driver, comm: Comm) {
    if let Ok(_entered) = driver.enter() {
        // SAFETY: made by `Nccl::join` and freed once; only a call that never returns may still use it, which this ends.
        unsafe { (nccl.comm_abort)(comm.0) };
    }
}

/// A collective operation on an array, ready to be queued.
#[derive(Debug)]
struct CollectiveCall {
    communicator: Arc<Communicator>,
    op: CollectiveOp,
    array: Array,
    len: usize,
}

impl Enqueue for CollectiveCall {
    fn op(&self) -> &'static str {
        match self.op {
            CollectiveOp::AllReduce => "all_reduce",
            CollectiveOp::Send(_) => "send",
            CollectiveOp::Receive(_) => "receive",
        }
    }

    fn enqueue(&self, driver: &dyn Driver) -> Outcome<()> {
        let Communicator { nccl, comm, calls, .. } = &*self.communicator;
        let _entered = driver.enter()?;
        let stream = driver.stream().unwrap_or_default();
        let _call = lock(calls);
        if self.is_lost() {
            return Err(Fault::Refused(LOST.into()));
        }
        let values = self.array.address as *mut c_void;
        // SAFETY: the array holds `len` values and this call keeps it alive; communicator and stream are those of its
        // GPU, whose context is current.
        unsafe { nccl.queue(self.op, values, self.len, *comm, stream) }.map_err(Fault::Refused)
    }

    fn is_lost(&self) -> bool {
        self.communicator.lost.load(Ordering::SeqCst)
    }
}

/// Why collective operations are refused.
pub(crate) const LOST: &str = "another rank was lost";
