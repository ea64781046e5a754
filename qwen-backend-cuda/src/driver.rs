//! The backend's interface to a CUDA driver: memory, copies, kernels, graphs, and waiting. There is one stream, so
//! everything runs in the order in which it was queued.
//!
//! `cuda` is the real driver, for the GPUs that `machine` finds. For tests, `emulated` runs the kernels on the CPU,
//! compiled into a `library`, and `recording` only checks the calls. Nothing here knows about operations, models or
//! ranks.

pub(crate) mod cuda;
#[cfg(feature = "emulator")]
pub(crate) mod emulated;
#[cfg(feature = "emulator")]
pub(crate) mod library;
pub(crate) mod machine;
#[cfg(test)]
pub(crate) mod recording;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::device::DeviceProperties;
use crate::kernel::Kernel;
use crate::params::Packed;

/// Why a call of a driver failed.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// No memory is left, on the GPU or pinnable on the host; the next call may succeed.
    OutOfMemory,
    /// This call failed; the next one may succeed.
    Refused(String),
    /// The context is lost: every later call fails.
    Lost(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::OutOfMemory => f.write_str("out of memory"),
            Fault::Refused(reason) => f.write_str(reason),
            Fault::Lost(reason) => {
                write!(f, "{reason}; the GPU's context is lost: drop this engine and load it again")
            }
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Fault>;

/// A kernel with its grid, its parameters and the arrays that they point to.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "the driver that checks launches reads what they access"))]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) params: Packed,
    /// The arrays that it reads or writes, kept alive by the launch.
    pub(crate) accessed: Vec<Accessed>,
}

/// An array, and how many of its leading bytes a kernel reads or writes.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "as above; the array is kept alive"))]
pub(crate) struct Accessed {
    /// Its name among the operation's arguments.
    pub(crate) name: &'static str,
    pub(crate) array: Array,
    pub(crate) bytes: usize,
}

/// A command for the stream.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "nearly all commands are launches")]
pub(crate) enum Command {
    /// A kernel, and the operation that it is part of.
    Launch(&'static str, Launch),
    /// A call of a library that queues on the stream itself.
    Call(Arc<dyn Enqueue>),
}

/// A call of a library that queues on the stream itself, as NCCL does for ranks.
pub(crate) trait Enqueue: fmt::Debug + Send + Sync {
    /// The operation that it is part of.
    fn op(&self) -> &'static str;

    /// Queue it on the stream of `driver`.
    fn enqueue(&self, driver: &dyn Driver) -> Outcome<()>;

    /// Whether it waits for a peer that is lost, so that it would never end.
    fn is_lost(&self) -> bool;
}

/// Identifies a recorded step of a driver.
pub(crate) type GraphId = u64;

/// Marks that [`Driver::mark`] can set in the stream.
pub(crate) const MARKS: usize = 2;

/// A CUDA driver with one GPU and one stream. All calls except [`Driver::wait`], [`Driver::wait_mark`],
/// [`Driver::alloc`] and [`Driver::free`] return at once.
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// The GPU.
    fn info(&self) -> &DeviceProperties;

    /// Free bytes of the GPU's memory, if known.
    fn free_bytes(&self) -> Option<u64>;

    /// Memory on the GPU, aligned to 256 bytes, with undefined contents. `what` names it in errors.
    fn alloc(&self, what: &str, bytes: usize) -> Outcome<u64>;

    /// Free memory, after the commands queued on it have run.
    ///
    /// # Safety
    /// It came from [`Driver::alloc`], is freed once, and is not used by commands queued later.
    unsafe fn free(&self, address: u64);

    /// Pinned host memory for copies, all zero.
    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>>;

    /// Free pinned memory.
    ///
    /// # Safety
    /// It came from [`Driver::pin`] with `bytes`, and is no longer used.
    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize);

    /// Fill with zeros.
    ///
    /// # Safety
    /// The bytes are in live memory of this driver.
    unsafe fn zero(&self, to: u64, bytes: usize) -> Outcome<()>;

    /// Copy from the host.
    ///
    /// # Safety
    /// The bytes are in live memory of this driver, and `from` in pinned memory that nothing writes before the
    /// copy has run.
    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Outcome<()>;

    /// Copy to the host.
    ///
    /// # Safety
    /// The bytes are in live memory of this driver, and `to` in pinned memory that nothing uses before the copy
    /// has run.
    unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Outcome<()>;

    /// Load a kernel: it may take long, and is not allowed during a capture.
    fn prepare(&self, kernel: Kernel) -> Outcome<()>;

    /// Run a kernel that was prepared.
    ///
    /// # Safety
    /// Its parameters are those of the kernel, and each address in them is the start of an array that is as long as the
    /// kernel expects.
    unsafe fn launch(&self, launch: &Launch) -> Outcome<()>;

    /// Record launches from now on instead of running them.
    fn begin_capture(&self) -> Outcome<()>;

    /// The recorded launches as a graph.
    fn end_capture(&self) -> Outcome<GraphId>;

    /// Run a graph.
    ///
    /// # Safety
    /// The arrays of its launches are alive.
    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()>;

    /// Drop a graph.
    fn drop_graph(&self, graph: GraphId);

    /// Mark this place in the stream.
    fn mark(&self, mark: usize) -> Outcome<()>;

    /// Wait until the stream has passed a mark; returns at once if it was never set.
    fn wait_mark(&self, mark: usize) -> Outcome<()>;

    /// Wait for everything queued.
    fn wait(&self) -> Outcome<()>;

    /// The stream, for libraries that queue commands themselves; `None` without a GPU.
    fn stream(&self) -> Option<*mut std::ffi::c_void> {
        None
    }

    /// Make the GPU's context current on this thread until the result is dropped, for libraries that need it.
    fn enter(&self) -> Outcome<Entered> {
        Ok(Entered::new(|| {}))
    }
}

/// A GPU's context is current on this thread. Dropping this restores the previous one: a program may use CUDA itself.
#[must_use]
pub(crate) struct Entered {
    leave: fn(),
    /// Not `Send`: the current context is per thread.
    _not_send: PhantomData<*const ()>,
}

impl Entered {
    /// `leave` restores the previous context.
    pub(crate) fn new(leave: fn()) -> Self {
        Entered { leave, _not_send: PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        (self.leave)();
    }
}

/// Memory on the GPU; dropping the last clone frees it.
pub(crate) type Array = Arc<Memory>;

/// Memory on the GPU.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made from `alloc` with this address, dropped once; a command that is queued on it holds a clone
        // until then.
        unsafe { self.driver.free(self.address) }
    }
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(crate) struct Pinned {
    driver: Arc<dyn Driver>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory like that of a vector, and only this value owns it.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Outcome<Self> {
        Ok(Pinned { driver: driver.clone(), start: driver.pin(bytes)?, bytes })
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// A range of its bytes.
    ///
    /// # Safety
    /// The range is within it, and no queued copy still reads or writes the bytes.
    pub(crate) unsafe fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        debug_assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY: `pin` returned `self.bytes` initialised bytes, and this value owns them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy may still use the memory.
        let _ = self.driver.wait();
        // SAFETY: made from `pin` with these, dropped once, and no copy is queued any more.
        unsafe { self.driver.unpin(self.start, self.bytes) }
    }
}

/// A recorded step; dropping it removes it from the driver.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) id: GraphId,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.driver.drop_graph(self.id);
    }
}

/// Host memory, as the pinned memory of drivers without a GPU.
#[cfg(any(test, feature = "emulator"))]
pub(crate) mod host {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    use super::{Fault, Outcome};

    /// The alignment of memory.
    pub(crate) const ALIGN: usize = 256;

    fn layout(bytes: usize) -> Outcome<Layout> {
        Layout::from_size_align(bytes.max(1), ALIGN).map_err(|error| Fault::Refused(error.to_string()))
    }

    /// Memory, all zero.
    pub(crate) fn alloc(bytes: usize) -> Outcome<NonNull<u8>> {
        // SAFETY: the layout has at least a byte.
        NonNull::new(unsafe { alloc_zeroed(layout(bytes)?) }).ok_or(Fault::OutOfMemory)
    }

    /// Free it.
    ///
    /// # Safety
    /// It came from [`alloc`] with the same `bytes`.
    pub(crate) unsafe fn free(start: NonNull<u8>, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: as the caller says.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}
