//! The functions of NCCL that collectives need, from its library, which is opened when a group is created.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;
use qwen_core::{Error, Result};

/// Bytes of the identifier that the ranks of a group share.
pub(super) const ID_BYTES: usize = 128;

/// `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; ID_BYTES]);

/// A communicator of the library.
#[derive(Clone, Copy)]
pub(super) struct Comm(pub(super) *mut c_void);

// SAFETY: a handle, which any thread may pass to the library.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

type SendTo = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> c_int;
type ReceiveFrom = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> c_int;

/// A collective operation of the ranks on f32 values, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CollectiveOp {
    /// Replace the values by their sum over all ranks.
    AllReduce,
    /// Send the values to a rank.
    Send(usize),
    /// Receive the values from a rank.
    Receive(usize),
}

/// The functions of the library.
pub(super) struct Nccl {
    pub(super) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(super) comm_init_rank: unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int,
    pub(super) comm_abort: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub(super) all_reduce: AllReduce,
    pub(super) send: SendTo,
    pub(super) recv: ReceiveFrom,
    pub(super) get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions loaded.
    pub(super) _library: Option<Library>,
}

impl Nccl {
    /// The library, opened once in a process.
    pub(super) fn get() -> Result<&'static Nccl> {
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
                all_reduce: *library.get(b"ncclAllReduce")?,
                send: *library.get(b"ncclSend")?,
                recv: *library.get(b"ncclRecv")?,
                get_error_string: *library.get(b"ncclGetErrorString")?,
                _library: Some(library),
            })
        }
    }

    /// A new identifier.
    pub(super) fn unique_id(&self) -> std::result::Result<UniqueId, String> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: it writes an identifier.
        let code = unsafe { (self.get_unique_id)(&mut id) };
        self.check("ncclGetUniqueId", code).map(|()| id)
    }

    /// Join the group of `id`. Waits for the other ranks.
    ///
    /// # Safety
    /// The GPU's context is current on this thread.
    pub(super) unsafe fn join(&self, id: UniqueId, rank: usize, ranks: usize) -> std::result::Result<Comm, String> {
        let mut comm = std::ptr::null_mut();
        // SAFETY: as the caller says; it writes a communicator.
        let code = unsafe { (self.comm_init_rank)(&mut comm, ranks as c_int, id, rank as c_int) };
        self.check("ncclCommInitRank", code).map(|()| Comm(comm))
    }

    /// Queue a collective operation on `len` values.
    ///
    /// # Safety
    /// The GPU's context is current on this thread; `values` are on the GPU and stay alive until the operation has run,
    /// `stream` is a stream of the GPU, and `comm` a communicator that was not aborted.
    pub(super) unsafe fn queue(
        &self,
        op: CollectiveOp,
        values: *mut c_void,
        len: usize,
        comm: Comm,
        stream: *mut c_void,
    ) -> std::result::Result<(), String> {
        // SAFETY: as the caller says.
        unsafe {
            match op {
                CollectiveOp::AllReduce => {
                    self.check("ncclAllReduce", (self.all_reduce)(values, values, len, FLOAT32, SUM, comm.0, stream))
                }
                CollectiveOp::Send(to) => {
                    self.check("ncclSend", (self.send)(values, len, FLOAT32, to as c_int, comm.0, stream))
                }
                CollectiveOp::Receive(from) => {
                    self.check("ncclRecv", (self.recv)(values, len, FLOAT32, from as c_int, comm.0, stream))
                }
            }
        }
    }

    /// Turn a result other than success into NCCL's description of it.
    fn check(&self, op: &str, code: c_int) -> std::result::Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it returns a static text for every code.
        let text = unsafe { (self.get_error_string)(code) };
        let text = match text.is_null() {
            true => format!("error {code}"),
            // SAFETY: a null-terminated string of the library.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(format!("{op}: {text}"))
    }
}
