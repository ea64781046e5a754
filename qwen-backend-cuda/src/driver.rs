//! What the backend asks of a CUDA driver: memory, copies, kernels, graphs, and a wait. One stream, so that everything
//! happens in the order in which it was asked for.
//!
//! `card` is the real one, on what `machine` finds. For tests, `emulated` runs the kernels on the CPU, compiled into a
//! `library`, and `recording` runs nothing but checks what it is asked.

pub(crate) mod card;
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

use crate::card_info::CardInfo;
use crate::kernel::Kernel;
use crate::params::Packed;

/// Why a driver did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The card's memory, or that of the host which the driver pins, is used up; the next call may not fail.
    OutOfMemory,
    /// This call failed; the next one may not.
    Refused(String),
    /// Nothing works on this context any more.
    Lost(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::OutOfMemory => f.write_str("out of memory"),
            Fault::Refused(reason) => f.write_str(reason),
            Fault::Lost(reason) => {
                write!(f, "{reason}; the card's context is lost: drop this engine and load it again")
            }
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Fault>;

/// A kernel with everything that it is run with.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "the driver that checks launches reads what they touch"))]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) params: Packed,
    /// The arrays that it reads or writes, which stay as long as this does.
    pub(crate) touched: Vec<Touched>,
}

/// An array and how much of its beginning a kernel reads or writes.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "as above; the array is kept alive"))]
pub(crate) struct Touched {
    /// As the operation calls it.
    pub(crate) name: &'static str,
    pub(crate) array: Array,
    pub(crate) bytes: usize,
}

/// Where a recorded step is run again from.
pub(crate) type GraphId = u64;

/// Places in the stream that [`Driver::mark`] can name.
pub(crate) const MARKS: usize = 2;

/// A CUDA driver, one card, one stream. All calls but [`Driver::wait`], [`Driver::wait_mark`], [`Driver::alloc`] and
/// [`Driver::free`] return at once.
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// The card.
    fn info(&self) -> &CardInfo;

    /// Bytes of the card's memory that are free now, where that is known.
    fn free_bytes(&self) -> Option<u64>;

    /// Memory on the card, aligned to 256 bytes, with any contents. `what` names it in errors.
    fn alloc(&self, what: &str, bytes: usize) -> Outcome<u64>;

    /// Give memory back once nothing uses it any more.
    ///
    /// # Safety
    /// It came from [`Driver::alloc`], is given back once, and what is queued from now on does not use it.
    unsafe fn free(&self, address: u64);

    /// Memory of the host that copies run from and to, all zero.
    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>>;

    /// Give host memory back.
    ///
    /// # Safety
    /// It came from [`Driver::pin`] with `bytes`, and nothing uses it any more.
    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize);

    /// Fill with zeros.
    ///
    /// # Safety
    /// The bytes lie in live memory of this driver.
    unsafe fn zero(&self, to: u64, bytes: usize) -> Outcome<()>;

    /// Copy from the host.
    ///
    /// # Safety
    /// The bytes lie in live memory of this driver, and `from` in pinned memory that nobody writes until they are
    /// there.
    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Outcome<()>;

    /// Copy to the host.
    ///
    /// # Safety
    /// The bytes lie in live memory of this driver, and `to` in pinned memory that nobody uses until they are there.
    unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Outcome<()>;

    /// Make a kernel ready to be launched: what may take long, and may not happen in a capture.
    fn prepare(&self, kernel: Kernel) -> Outcome<()>;

    /// Run a kernel that was prepared.
    ///
    /// # Safety
    /// Its parameters are those of the kernel, and each address in them begins an array as long as the kernel takes it.
    unsafe fn launch(&self, launch: &Launch) -> Outcome<()>;

    /// From now on launches are recorded, not run.
    fn begin_capture(&self) -> Outcome<()>;

    /// The recorded launches as a graph.
    fn end_capture(&self) -> Outcome<GraphId>;

    /// Run a graph.
    ///
    /// # Safety
    /// What its launches were safe with is still there.
    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()>;

    /// Forget a graph.
    fn drop_graph(&self, graph: GraphId);

    /// Mark this place in the stream.
    fn mark(&self, mark: usize) -> Outcome<()>;

    /// Wait until the stream has passed a mark; at once when it was never set.
    fn wait_mark(&self, mark: usize) -> Outcome<()>;

    /// Wait for all that was queued.
    fn wait(&self) -> Outcome<()>;

    /// The stream, for libraries that queue work of their own; none where there is no card behind it.
    fn stream(&self) -> Option<*mut std::ffi::c_void> {
        None
    }

    /// Make the card's context that of this thread as long as the result lives, for libraries that ask for it.
    fn enter(&self) -> Outcome<Entered> {
        Ok(Entered::new(|| {}))
    }
}

/// A thread is in a card's context; dropped, it is in the one that it was in before: a program may use CUDA itself.
#[must_use]
pub(crate) struct Entered {
    leave: fn(),
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

impl Entered {
    /// `leave` goes back to the context before.
    pub(crate) fn new(leave: fn()) -> Self {
        Entered { leave, _here: PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        (self.leave)();
    }
}

/// Memory on the card; the last clone gives it back.
pub(crate) type Array = Arc<Memory>;

/// Memory on the card.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made from `alloc` with this address, dropped once; whoever queues work on it holds a clone until
        // then.
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

// SAFETY: it is memory like that of a vector, owned by this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Outcome<Self> {
        Ok(Pinned { driver: driver.clone(), start: driver.pin(bytes)?, bytes })
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Some of its bytes.
    ///
    /// # Safety
    /// They lie within it, and no copy that was queued still reads or writes them.
    pub(crate) unsafe fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        debug_assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY: `pin` gave so many bytes, initialised; this value owns them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy that is still under way would lose its memory.
        let _ = self.driver.wait();
        // SAFETY: made from `pin` with these, dropped once, and nothing is queued any more.
        unsafe { self.driver.unpin(self.start, self.bytes) }
    }
}

/// A recorded step; the last owner forgets it.
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

/// Memory of the host as drivers without a card pin it.
#[cfg(any(test, feature = "emulator"))]
pub(crate) mod host {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    use super::{Fault, Outcome};

    /// Bytes that memory begins at a multiple of.
    pub(crate) const ALIGN: usize = 256;

    fn layout(bytes: usize) -> Outcome<Layout> {
        Layout::from_size_align(bytes.max(1), ALIGN).map_err(|error| Fault::Refused(error.to_string()))
    }

    /// Memory, all zero.
    pub(crate) fn take(bytes: usize) -> Outcome<NonNull<u8>> {
        // SAFETY: the layout has at least a byte.
        NonNull::new(unsafe { alloc_zeroed(layout(bytes)?) }).ok_or(Fault::OutOfMemory)
    }

    /// Give it back.
    ///
    /// # Safety
    /// It came from [`take`] with the same `bytes`.
    pub(crate) unsafe fn give(start: NonNull<u8>, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: as the caller says.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}
