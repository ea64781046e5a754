//! Opening the files of a checkpoint: regular files of a bounded size, and nothing else.
//!
//! A folder comes from whoever made it. A pipe, a device or a folder in the place of a file is refused before it is
//! opened, since opening a pipe waits for its writer; so is a file larger than its kind can sensibly be.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Open the regular file `path` and say how many bytes it has.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    if !path.metadata().map_err(io)?.is_file() {
        return Err(not_regular(path));
    }
    let file = File::open(path).map_err(io)?;
    // Asked again of what is open now: the name may have been given to another file in between.
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(not_regular(path));
    }
    Ok((file, metadata.len()))
}

/// The text of the regular file `path`, of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let (file, len) = open_regular(path)?;
    if len > limit {
        return Err(invalid(path, format!("has {len} bytes, at most {limit} are read")));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    String::from_utf8(bytes).map_err(|error| invalid(path, format!("not UTF-8: {error}")))
}

/// An [`Error::InvalidFile`].
pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: reason.into() }
}

fn not_regular(path: &Path) -> Error {
    invalid(path, "expected a regular file, found a folder, a pipe or a device")
}
