//! Sums over cards, and activations from card to card, by NCCL, straight on their memory.
//!
//! NCCL is not part of the driver: `library` looks for it under the name that its packages install (`libnccl.so.2`),
//! and calls seven of its functions.
//!
//! NCCL waits for all ranks, in its calls and on the card, and does not notice when one fails. The [`ProcessGroup`] does:
//! NCCL is then told to abort, on a thread of its own, since the abort waits until every recorded step with a sum is
//! forgotten.

mod library;
#[cfg(test)]
pub(crate) mod tests;

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qwen_core::backend::Backend;
use qwen_core::collective::{Collective, ProcessGroup};
use qwen_core::{Error, Result};

use crate::backend::CudaBackend;
use crate::driver::{Array, Driver, Fault, Outcome};
use crate::gpu::{Gpu, Work};
pub(crate) use library::Deed;
use library::{Comm, ID_BYTES, Nccl, UniqueId};

/// How long an abort waits for a call of NCCL that has begun: it may be stuck itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether there is an NCCL on this machine.
///
/// # Errors
/// [`Error::Unsupported`] when there is none.
pub fn nccl_present() -> Result<()> {
    Nccl::get().map(|_| ())
}

/// The cards that one model is cut over: a [`Collective`] whose sums [`CudaBackend`] makes on the card, and by which
/// stages hand activations on.
///
/// All ranks get the same bits. In which order NCCL adds them is its own choice: that of one machine and one number of
/// ranks does not change, but another number gives other roundings.
///
/// ```no_run
/// use qwen_backend_cuda::{CudaBackend, CudaOptions, NcclGroup};
/// use qwen_core::ranks::Ranks;
/// let ranks = Ranks::from_env()?;
/// let backend = CudaBackend::new(CudaOptions::new().ordinal(ranks.local_rank()))?;
/// let group = NcclGroup::join(&backend, &ranks.rendezvous(&[("model", "one for all".into())])?)?;
/// # let _ = group;
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct NcclGroup {
    shared: Arc<Communicator>,
    /// Where values of the host are summed.
    host: Mutex<Option<Array>>,
}

impl NcclGroup {
    /// Join the ranks of `processes` as a group of cards, in the stream of `backend`. All ranks call it; it returns once
    /// all have.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no NCCL on this machine, or no card behind the backend;
    /// [`Error::RankFailed`] when another rank is lost or cannot join; [`Error::Device`] with what NCCL reports.
    pub fn join(backend: &CudaBackend, processes: &dyn ProcessGroup) -> Result<Self> {
        if backend.driver().stream().is_none() {
            return Err(Error::unsupported("NCCL on this backend", "there is no card behind it"));
        }
        Self::join_by(Nccl::get()?, backend, processes)
    }

    fn join_by(nccl: &'static Nccl, backend: &CudaBackend, processes: &dyn ProcessGroup) -> Result<Self> {
        let failed = |reason| Error::Device { device: backend.info().name, op: "join a group".into(), reason };
        // A rank that has no NCCL has failed by now, where the others hear of it; within NCCL they would wait for it.
        processes.all_reduce_min(0)?;
        let mut id = match processes.rank() {
            0 => nccl.unique_id().map_err(failed)?.0.to_vec(),
            _ => Vec::new(),
        };
        processes.broadcast(&mut id)?;
        let id = <[u8; ID_BYTES]>::try_from(id).map_err(|id| failed(format!("an id of {} bytes", id.len())))?;
        let comm = Self::meet(nccl, backend.driver(), processes, UniqueId(id)).map_err(|reason| match reason {
            Some(reason) => failed(reason),
            // The next call says which rank it was.
            None => processes.all_reduce_min(0).err().unwrap_or_else(|| failed("another rank was lost".into())),
        })?;
        let group = Self::of(nccl, comm, backend.driver());
        let shared = Arc::downgrade(&group.shared);
        processes.on_peer_failure(Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.lose();
            }
        }));
        Ok(group)
    }

    /// The group of a communicator that was made on this driver's card.
    fn of(nccl: &'static Nccl, comm: Comm, driver: &Arc<dyn Driver>) -> Self {
        let (lost, calls) = (AtomicBool::new(false), Arc::default());
        let shared = Communicator { nccl, comm, driver: driver.clone(), lost, calls };
        NcclGroup { shared: Arc::new(shared), host: Mutex::default() }
    }

    /// Wait for all ranks within NCCL, or for the loss of one. The error is what NCCL says; none for a loss, which
    /// leaves a thread behind that waits in NCCL.
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
                // SAFETY: the card's context is current.
                unsafe { nccl.join(id, rank, ranks) }
            });
            if let Err(mpsc::SendError(Ok(comm))) = joined.send(comm.map_err(Some)) {
                // Nobody waits for it any more.
                abort(nccl, &*driver, comm);
            }
        };
        std::thread::Builder::new()
            .name("qwen-nccl-join".into())
            .spawn(waits)
            .map_err(|error| Some(error.to_string()))?;
        outcome.recv().unwrap_or_else(|_| Err(Some("its thread ended".into())))
    }

    /// Whether it is a group of this card.
    pub(crate) fn is_of(&self, driver: &Arc<dyn Driver>) -> bool {
        Arc::ptr_eq(driver, &self.shared.driver)
    }

    /// What the ranks do with the first `len` values of `array`, in place; none when the group is another card's.
    pub(crate) fn exchange(&self, deed: Deed, driver: &Arc<dyn Driver>, array: &Array, len: usize) -> Option<Exchange> {
        let own = self.is_of(driver) && 4 * len <= array.bytes;
        own.then(|| Exchange { communicator: self.shared.clone(), deed, array: array.clone(), len })
    }
}

impl Collective for NcclGroup {
    /// The sum of values on the host: over the card. In the order that NCCL chooses.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let mut gpu = Gpu::new(self.shared.driver.clone(), false);
        let mut held = lock(&self.host);
        let array = match held.take().filter(|array| array.bytes >= 4 * values.len()) {
            Some(array) => array,
            None => gpu.array("sums of the host", 4 * values.len())?,
        };
        gpu.write_f32("all_reduce", &array, values)?;
        if let Some(sum) = self.exchange(Deed::Sum, &self.shared.driver, &array, values.len()) {
            gpu.issue(&Work::Exchange(sum))?;
        }
        gpu.read_f32("all_reduce", &array, values)?;
        *held = Some(array);
        Ok(())
    }
}

/// A rank's place in the group.
struct Communicator {
    nccl: &'static Nccl,
    comm: Comm,
    driver: Arc<dyn Driver>,
    /// Whether another rank is gone. NCCL is then told to abort, and `comm` no longer ours.
    lost: AtomicBool,
    /// Held while something is queued: a communicator takes one call at a time.
    calls: Arc<Mutex<()>>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Communicator {
    /// Another rank is gone: sums that wait for it end, with any values, and later ones are refused.
    fn lose(&self) {
        if self.lost.swap(true, Ordering::SeqCst) {
            return;
        }
        let (nccl, comm, driver, calls) = (self.nccl, self.comm, self.driver.clone(), self.calls.clone());
        let aborts = move || {
            let begun = Instant::now();
            let mut call = calls.try_lock();
            while call.is_err() && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(5));
                call = calls.try_lock();
            }
            abort(nccl, &*driver, comm);
        };
        // Without a thread there is nothing to be done; the ranks that wait are ended by their launcher.
        let _ = std::thread::Builder::new().name("qwen-nccl-abort".into()).spawn(aborts);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // All ranks are idle between steps. `ncclCommDestroy` would wait for them to destroy theirs, too, also for one
        // that goes because it failed.
        if !*self.lost.get_mut() {
            abort(self.nccl, &*self.driver, self.comm);
        }
    }
}

/// Give a communicator back.
fn abort(nccl: &Nccl, driver: &dyn Driver, comm: Comm) {
    if let Ok(_entered) = driver.enter() {
        // SAFETY: made by `Nccl::join`, given back once, and used no more but by a call that is stuck, which this ends.
        unsafe { (nccl.comm_abort)(comm.0) };
    }
}

/// Something that ranks do together, which waits to be queued.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    communicator: Arc<Communicator>,
    deed: Deed,
    array: Array,
    len: usize,
}

impl Exchange {
    /// The operation that it is part of.
    pub(crate) fn op(&self) -> &'static str {
        match self.deed {
            Deed::Sum => "all_reduce",
            Deed::Send(_) => "send",
            Deed::Receive(_) => "receive",
        }
    }

    /// Whether a rank of it is gone, so that it would never end.
    pub(crate) fn is_lost(&self) -> bool {
        self.communicator.lost.load(Ordering::SeqCst)
    }

    /// Queue it.
    pub(crate) fn issue(&self, driver: &dyn Driver) -> Outcome<()> {
        let Communicator { nccl, comm, calls, .. } = &*self.communicator;
        let _entered = driver.enter()?;
        let stream = driver.stream().unwrap_or_default();
        let _call = lock(calls);
        if self.is_lost() {
            return Err(Fault::Refused(LOST.into()));
        }
        let values = self.array.address as *mut c_void;
        // SAFETY: the array holds so many values and is kept alive by this; communicator and stream are those of its
        // card, whose context is current.
        unsafe { nccl.exchange(self.deed, values, self.len, *comm, stream) }.map_err(Fault::Refused)
    }
}

/// Why sums are refused.
pub(crate) const LOST: &str = "another rank was lost";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
