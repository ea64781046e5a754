//! What is made of a matrix while it is read: by whichever thread asks first, in memory that goes back to the system.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Zeroed bytes. Those that are many are an anonymous map: an allocator would keep them after they were given back,
/// beside all that a model allocates next.
pub(super) enum Memory {
    Heap(Vec<u8>),
    Map(MmapMut),
}

/// Fewer bytes than this are no map: pages would be rounded up too much.
const LEAST_MAP: usize = 64 << 10;

impl Memory {
    /// # Errors
    /// [`Error::OutOfMemory`] for `what`.
    pub(super) fn zeroed(len: usize, what: &str) -> Result<Self> {
        // A system without maps, or where there are too many, still has its heap. Miri knows none.
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

/// Something that is made when it is first asked for.
#[derive(Debug, Default)]
pub(super) struct Held {
    claimed: AtomicBool,
    /// `None` where making it failed.
    made: OnceLock<Option<Memory>>,
}

/// What was made, by this thread alone where nobody could make it for all.
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
    /// Make it, unless another thread does or did.
    pub(super) fn begin(&self, make: impl FnOnce() -> Result<Memory>) {
        if !self.claimed.swap(true, Ordering::Relaxed) {
            self.made.get_or_init(|| make().ok());
        }
    }

    /// What was made, once it is. Where that failed it is tried once more, so that each thread has the error.
    pub(super) fn get(&self, make: impl Fn() -> Result<Memory>) -> Result<Made<'_>> {
        match self.made.get_or_init(|| make().ok()) {
            Some(memory) => Ok(Made::Held(memory)),
            None => make().map(Made::Own),
        }
    }
}
