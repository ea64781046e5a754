//! Memory for kernels: aligned, on huge pages if it is large, shared by handle.
//!
//! Weights and K/V are read from end to end for every token, so page walks cost bandwidth: large blocks are anonymous
//! mappings aligned to 2 MiB for which huge pages are requested (on Linux only).
//!
//! [`Array`] is a handle to an array that recorded operations may hold, too. Its contents are accessible only through
//! `unsafe` methods. They are sound because an array belongs to one backend ([`Array::owner`]), all access goes through
//! `&mut` of that backend, and the threads that run its operations have finished when such a call returns (see
//! [`crate::exec`]).

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use qwen_core::{Error, HumanBytes, Result};

use crate::error::device_error;

const HUGE: usize = 2 << 20;
const ALIGN: usize = 64;

/// Zeroed bytes, aligned to a cache line, or to a huge page when there are many.
pub(crate) struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    backing: Backing,
}

enum Backing {
    Heap(Layout),
    // Held only for its `Drop`.
    Map(#[allow(dead_code)] memmap2::MmapMut),
}

// SAFETY: plain memory that is not tied to a thread; access is governed by the unsafe accessors.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeroed bytes.
    pub(crate) fn zeroed(bytes: usize) -> Result<Memory> {
        let failed = |reason: String| device_error("alloc", format!("{}: {reason}", HumanBytes(bytes as u64)));
        // Miri does not support mappings.
        if bytes < HUGE || cfg!(miri) {
            let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN).map_err(|e| failed(e.to_string()))?;
            // SAFETY: the size is not zero.
            let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| failed("out of memory".into()))?;
            return Ok(Memory { base, bytes, backing: Backing::Heap(layout) });
        }
        // Reserve address space up to the next boundary; what is before it is never accessed.
        let reserved = bytes.checked_add(HUGE).ok_or_else(|| failed("out of address space".into()))?;
        let mut map = memmap2::MmapMut::map_anon(reserved).map_err(|e| failed(e.to_string()))?;
        let start = map.as_mut_ptr();
        let offset = start.align_offset(HUGE);
        let base = NonNull::new(start.wrapping_add(offset)).ok_or_else(|| failed("no map".into()))?;
        // A kernel without huge pages refuses, and small ones work as well. They are also used for the rest that does
        // not fill a huge page: over all matrices of a model, rounding up would add a tenth.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, offset, bytes / HUGE * HUGE);
        Ok(Memory { base, bytes, backing: Backing::Map(map) })
    }

    /// The first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Backing::Heap(layout) = self.backing {
            // SAFETY: allocated with this layout and not freed before.
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes)
    }
}

/// Element types of [`Array`]: any bit pattern is a value.
pub(crate) trait Element: Copy + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for u32 {}
impl Element for u16 {}

/// A handle to an array of a backend.
pub(crate) struct Array<T> {
    memory: Arc<Memory>,
    len: usize,
    owner: u64,
    element: PhantomData<T>,
}

impl<T: Element> Array<T> {
    /// `len` zeros that belong to backend `owner`.
    pub(crate) fn zeroed(len: usize, owner: u64) -> Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::argument("len", format!("{len} elements exceed the address space")))?;
        Ok(Array { memory: Arc::new(Memory::zeroed(bytes)?), len, owner, element: PhantomData })
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The backend that may access the contents.
    pub(crate) fn owner(&self) -> u64 {
        self.owner
    }

    /// The first element.
    pub(crate) fn ptr(&self) -> *mut T {
        self.memory.ptr().cast()
    }

    /// The elements from `start` on.
    ///
    /// # Safety
    /// Nothing writes to them during the slice's lifetime.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &[T] {
        assert!(start <= self.len && len <= self.len - start, "{start}+{len} of {}", self.len);
        // SAFETY: within the allocation, which was zeroed and lives as long as `self`; aligned to a cache line.
        unsafe { std::slice::from_raw_parts(self.ptr().add(start), len) }
    }

    /// The elements from `start` on, mutable.
    ///
    /// # Safety
    /// Nothing else accesses them during the slice's lifetime.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start}+{len} of {}", self.len);
        // SAFETY: as in `slice`, and the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(start), len) }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array { memory: self.memory.clone(), element: PhantomData, ..*self }
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", std::any::type_name::<T>(), self.len)
    }
}
