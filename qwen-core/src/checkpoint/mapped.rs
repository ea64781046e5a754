//! A file mapped into memory. All `unsafe` of the checkpoint is here.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::json::invalid;

/// A read-only map of a whole regular file.
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let io = |source| Error::Io { path: path.clone(), source };
        // Asked before opening: to open a pipe would wait for its writer.
        let metadata = path.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(invalid(&path, "expected a regular file"));
        }
        let file = File::open(&path).map_err(io)?;
        // SAFETY: the map is only read, as bytes, for which every value is valid. What remains is that another process
        // may write to the file or cut it short; the documentation of `checkpoint` names it as the caller's to avoid.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(MappedFile { path, map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Drop the pages of `range` from this process. They are read from the file again if touched again.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() && range.end <= self.map.len() {
            // The range is widened to whole pages; what neighbours lose of theirs they read again.
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: `DontNeed` discards writes to private maps and the content of anonymous ones. This one is backed by
            // a file and never written to, so each page comes back with the same bytes.
            let released = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
            // A system that refuses keeps the pages until it needs them: no harm but to the figures of memory in use.
            drop(released);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
