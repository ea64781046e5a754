//! The cards of this machine, as their driver describes them.

use std::fmt;

/// A CUDA card.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CardInfo {
    /// Its number, as CUDA counts the cards that this process may see.
    pub ordinal: usize,
    /// The name that the driver gives.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes of shared memory that a block can be given.
    pub max_shared_bytes: u32,
    /// The newest version of CUDA that the driver speaks, major and minor.
    pub driver: (u32, u32),
}

impl CardInfo {
    /// The card with this number. It is not opened.
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when there is no driver, no such card, or one that the kernels do not run on,
    /// with what was found.
    pub fn of(ordinal: usize) -> qwen_core::Result<Self> {
        crate::driver::machine::info(ordinal)
    }

    /// Whether it has bf16 tensor cores and asynchronous copies, for which prompts have kernels of their own.
    pub fn has_tensor_cores(&self) -> bool {
        self.compute_capability >= (8, 0)
    }
}

impl fmt::Display for CardInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(f, "{} (cuda:{}, compute capability {major}.{minor})", self.name, self.ordinal)
    }
}

/// The CUDA cards of this machine, in CUDA's order. None is opened.
///
/// # Errors
/// [`qwen_core::Error::Unsupported`] when there is no driver, an old one, or one that finds no card.
///
/// ```
/// match qwen_backend_cuda::cards() {
///     Ok(cards) => cards.iter().for_each(|card| println!("{card}: {} bytes", card.memory)),
///     Err(error) => println!("{error}"),
/// }
/// ```
pub fn cards() -> qwen_core::Result<Vec<CardInfo>> {
    crate::driver::machine::cards()
}

/// Bytes of the card's memory that are free now. Its context is opened to ask, so that what a context takes itself is
/// not among them.
///
/// # Errors
/// As [`crate::CudaBackend::new`].
pub fn free_bytes(ordinal: usize) -> qwen_core::Result<u64> {
    crate::driver::machine::free_bytes(ordinal)
}
