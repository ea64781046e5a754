//! Sums over cards by NCCL, straight on their memory.
//!
//! NCCL is not part of the driver. Its library is looked for when a group is made, under the name that its packages
//! install (`libnccl.so.2`); six of its functions are called.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;
use qwen_core::backend::Backend;
use qwen_core::collective::Collective;
use qwen_core::{Error, Result};

use crate::backend::CudaBackend;
use crate::driver::{Array, Driver, Fault, Outcome};
use crate::gpu::{Gpu, Work};

/// Bytes of the id that the ranks of a group share.
const ID_BYTES: usize = 128;

/// `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

type Comm = *mut c_void;
type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;

/// The functions of the library.
struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    all_reduce: AllReduce,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions there.
    _library: Library,
}

impl Nccl {
    /// The library, opened once in a process.
    fn get() -> Result<&'static Nccl> {
        static OPENED: OnceLock<std::result::Result<Nccl, String>> = OnceLock::new();
        let opened = OPENED.get_or_init(|| Self::open().map_err(|error| error.to_string()));
        opened.as_ref().map_err(|reason| Error::unsupported("NCCL", format!("{reason}: install NCCL 2")))
    }

    fn open() -> std::result::Result<Nccl, libloading::Error> {
        // SAFETY: libraries of this name are NCCL, version 2, whose functions have these types in all its releases.
        unsafe {
            let library = Library::new("libnccl.so.2").or_else(|_| Library::new("libnccl.so"))?;
            Ok(Nccl {
                get_unique_id: *library.get(b"ncclGetUniqueId")?,
                comm_init_rank: *library.get(b"ncclCommInitRank")?,
                comm_abort: *library.get(b"ncclCommAbort")?,
                comm_destroy: *library.get(b"ncclCommDestroy")?,
                all_reduce: *library.get(b"ncclAllReduce")?,
                get_error_string: *library.get(b"ncclGetErrorString")?,
                _library: library,
            })
        }
    }

    /// What NCCL says of a result other than success.
    fn check(&self, op: &str, code: c_int) -> std::result::Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it gives a text that stays, for every number.
        let text = unsafe { (self.get_error_string)(code) };
        let text = match text.is_null() {
            true => format!("error {code}"),
            // SAFETY: a text of the library, ended by a zero.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(format!("{op}: {text}"))
    }
}

/// Whether there is an NCCL on this machine.
///
/// # Errors
/// [`Error::Unsupported`] when there is none.
pub fn nccl_present() -> Result<()> {
    Nccl::get().map(|_| ())
}

/// A new id for a group: rank 0 makes it and hands it to the others.
///
/// # Errors
/// [`Error::Unsupported`] when there is no NCCL on this machine, [`Error::Device`] with what it reports.
pub fn unique_id() -> Result<Vec<u8>> {
    let nccl = Nccl::get()?;
    let mut id = UniqueId([0; ID_BYTES]);
    // SAFETY: it writes an id.
    let code = unsafe { (nccl.get_unique_id)(&mut id) };
    let made = nccl.check("ncclGetUniqueId", code);
    made.map_err(|reason| Error::Device { device: "NCCL".into(), op: "unique_id".into(), reason })?;
    Ok(id.0.to_vec())
}

/// The cards that one model is cut over: a [`Collective`] whose sums [`CudaBackend`] makes on the card.
///
/// All ranks get the same bits. In which order NCCL adds them is its own choice: that of one machine and one number of
/// ranks does not change, but another number gives other roundings.
///
/// ```no_run
/// use qwen_backend_cuda::{CudaBackend, CudaOptions, NcclGroup, unique_id};
/// # let (rank, ranks, handed_over) = (0, 2, Vec::new());
/// let backend = CudaBackend::new(CudaOptions::new().ordinal(rank))?;
/// let id = if rank == 0 { unique_id()? } else { handed_over };
/// let group = NcclGroup::new(&backend, rank, ranks, &id)?;
/// # let _ = group;
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct NcclGroup {
    shared: Arc<Communicator>,
    /// Where values of the host are summed.
    host: Mutex<Option<Array>>,
}

struct Communicator {
    nccl: &'static Nccl,
    comm: Comm,
    driver: Arc<dyn Driver>,
    rank: usize,
    ranks: usize,
    /// Held while NCCL is called; whether it was told to give up.
    aborted: Mutex<bool>,
}

// SAFETY: NCCL's communicators may be used by any thread, one at a time, which `aborted` sees to.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank).field("ranks", &self.ranks).finish_non_exhaustive()
    }
}

impl Communicator {
    fn aborted(&self) -> MutexGuard<'_, bool> {
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Give up: sums that wait for a rank that is gone end, with any values.
    fn abort(&self) {
        let mut aborted = self.aborted();
        if !std::mem::replace(&mut *aborted, true)
            && let Ok(_entered) = self.driver.enter()
        {
            // SAFETY: made by `NcclGroup::new`; after this it is used no more.
            unsafe { (self.nccl.comm_abort)(self.comm) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let driver = self.driver.clone();
        let entered = driver.enter();
        if !*self.aborted() && entered.is_ok() && driver.wait().is_ok() {
            // SAFETY: made by `NcclGroup::new`, not aborted, given back once; what was queued has run.
            unsafe { (self.nccl.comm_destroy)(self.comm) };
        } else {
            self.abort();
        }
    }
}

impl NcclGroup {
    /// Join the group with this id as rank `rank` of `ranks`, on the card and in the stream of `backend`. Waits until
    /// all ranks have joined.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id that is none or a rank that is not below the number of ranks;
    /// [`Error::Unsupported`] when there is no NCCL, or no card behind the backend; [`Error::Device`] with what NCCL
    /// reports.
    pub fn new(backend: &CudaBackend, rank: usize, ranks: usize, id: &[u8]) -> Result<Self> {
        let Ok(id) = <[u8; ID_BYTES]>::try_from(id) else {
            return Err(Error::argument("id", format!("{} bytes, an id of NCCL has {ID_BYTES}", id.len())));
        };
        if rank >= ranks {
            return Err(Error::argument("rank", format!("{rank} is not below {ranks} ranks")));
        }
        let driver = backend.driver().clone();
        if driver.stream().is_none() {
            return Err(Error::unsupported("NCCL on this backend", "there is no card behind it"));
        }
        let nccl = Nccl::get()?;
        let failed = |reason| Error::Device { device: backend.info().name, op: "join a group".into(), reason };
        let entered = driver.enter().map_err(|fault| failed(fault.to_string()))?;
        let mut comm = std::ptr::null_mut();
        // SAFETY: the card's context is current; it writes a communicator.
        let code = unsafe { (nccl.comm_init_rank)(&mut comm, ranks as c_int, UniqueId(id), rank as c_int) };
        nccl.check("ncclCommInitRank", code).map_err(failed)?;
        drop(entered);
        let shared = Communicator { nccl, comm, driver, rank, ranks, aborted: Mutex::new(false) };
        Ok(NcclGroup { shared: Arc::new(shared), host: Mutex::default() })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.shared.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.shared.ranks
    }

    /// What to call, from any thread, when another rank is lost: sums that wait for it end, and later ones are refused.
    pub fn abort_on_loss(&self) -> impl FnOnce() + Send + use<> {
        let group = Arc::downgrade(&self.shared);
        move || {
            if let Some(group) = group.upgrade() {
                group.abort();
            }
        }
    }

    /// The sum of the first `len` values of `array` in place; none when the group is another card's.
    pub(crate) fn sum(&self, driver: &Arc<dyn Driver>, array: &Array, len: usize) -> Option<Sum> {
        let own = Arc::ptr_eq(driver, &self.shared.driver) && 4 * len <= array.bytes;
        own.then(|| Sum { communicator: self.shared.clone(), array: array.clone(), len })
    }
}

impl Collective for NcclGroup {
    /// The sum of values on the host: over the card. In the order that NCCL chooses.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let mut gpu = Gpu::new(self.shared.driver.clone(), false);
        let mut held = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let array = match held.take().filter(|array| array.bytes >= 4 * values.len()) {
            Some(array) => array,
            None => gpu.array("sums of the host", 4 * values.len())?,
        };
        gpu.write_f32("all_reduce", &array, values)?;
        if let Some(sum) = self.sum(&self.shared.driver, &array, values.len()) {
            gpu.issue(&Work::Sum(sum))?;
        }
        gpu.read_f32("all_reduce", &array, values)?;
        *held = Some(array);
        Ok(())
    }
}

/// A sum over ranks that waits to be queued.
#[derive(Debug, Clone)]
pub(crate) struct Sum {
    communicator: Arc<Communicator>,
    array: Array,
    len: usize,
}

impl Sum {
    /// Queue it.
    pub(crate) fn issue(&self, driver: &dyn Driver) -> Outcome<()> {
        let Communicator { nccl, comm, .. } = &*self.communicator;
        let _entered = driver.enter()?;
        let Some(stream) = driver.stream() else {
            return Err(Fault::Refused("there is no card behind this backend".into()));
        };
        let aborted = self.communicator.aborted();
        if *aborted {
            return Err(Fault::Refused("another rank was lost".into()));
        }
        let values = self.array.address as *mut c_void;
        // SAFETY: the array holds so many values and is kept alive by this; communicator and stream are those of its
        // card.
        let code = unsafe { (nccl.all_reduce)(values, values, self.len, FLOAT32, SUM, *comm, stream) };
        drop(aborted);
        nccl.check("ncclAllReduce", code).map_err(Fault::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_nccl_says_so() {
        match unique_id() {
            Ok(id) => assert_eq!(id.len(), ID_BYTES),
            Err(error) => assert!(matches!(error, Error::Unsupported { .. }), "{error}"),
        }
    }
}
