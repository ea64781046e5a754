//! Converted data of a matrix that is being read: created by the first thread that needs it, in memory that returns to
//! the system.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Zeroed bytes. Large ones are an anonymous mapping: an allocator would keep the memory after it was freed, in
/// addition to everything that is allocated next.
pub(super) enum Memory {
    Heap(Vec<u8>),
    Map(MmapMut),
}

/// Fewer bytes than this are on the heap: rounding up to pages would waste too much.
const LEAST_MAP: usize = 64 << 10;

impl Memory {
    /// # Errors
    /// [`Error::OutOfMemory`] for `what`.
    pub(super) fn zeroed(len: usize, what: &str) -> Result<Self> {
        // If mappings are not available, or there are too many, use the heap. Miri has no mappings.
        if len >= LEAST_MAP
            && !cfg!(miri)
            && let Ok(map) = MmapMut::map_anon(len)
        {
            return Ok(Memory::Map(map));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
            device: "host memory".into(),
            what: what.to_owned(),
            bytes: len as u64,
        })?;
        bytes.resize(len, 0);
        Ok(Memory::Heap(bytes))
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Map(map) => map,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Map(map) => map,
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// A value that is created on first use.
#[derive(Debug, Default)]
pub(super) struct Held {
    claimed: AtomicBool,
    /// `None` if creating it failed.
    made: OnceLock<Option<Memory>>,
}

/// The value, created by this thread alone if no shared one could be created.
pub(super) enum Made<'a> {
    Held(&'a Memory),
    Own(Memory),
}

impl Deref for Made<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Made::Held(memory) => memory,
            Made::Own(memory) => memory,
        }
    }
}

impl Held {
    /// Create it, unless another thread does or did.
    pub(super) fn begin(&self, make: impl FnOnce() -> Result<Memory>) {
        if !self.claimed.swap(true, Ordering::Relaxed) {
            self.made.get_or_init(|| make().ok());
        }
    }

    /// The value, once it exists. If creating it failed, try again, so that each thread gets the error.
    pub(super) fn get(&self, make: impl Fn() -> Result<Memory>) -> Result<Made<'_>> {
        match self.made.get_or_init(|| make().ok()) {
            Some(memory) => Ok(Made::Held(memory)),
            None => make().map(Made::Own),
        }
    }
}
