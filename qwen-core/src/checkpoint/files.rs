//! Opening the files of a checkpoint: regular files of a bounded size, and nothing else.
//!
//! Folders come from untrusted sources. A pipe, a device or a folder in place of a file is refused before it is opened,
//! since opening a pipe waits for its writer; so is a file larger than its kind can sensibly be. What failed downloads
//! leave in place of a file is recognised and named in the error: a Git LFS pointer, a web page, a dangling link.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::numerics::human_bytes::HumanBytes;

/// Open the regular file `path` and return its length in bytes.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |error| Error::Io { path: path.to_path_buf(), error };
    let metadata = path.metadata().map_err(|error| match path.read_link() {
        Ok(target) if error.kind() == ErrorKind::NotFound => {
            let reason = "download the file again, or copy the folder with the files that its links lead to";
            invalid(path, format!("is a link to {}, which does not exist: {reason}", target.display()))
        }
        _ => io(error),
    })?;
    if !metadata.is_file() {
        return Err(not_regular(path));
    }
    let file = File::open(path).map_err(io)?;
    // Checked again on the open file: the path may have been replaced in between.
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
        let [len, limit] = HumanBytes::compared(len, limit);
        return Err(invalid(path, format!("has {len}, at most {limit} are read")));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|error| Error::Io { path: path.to_path_buf(), error })?;
    refuse_placeholder(path, &bytes)?;
    String::from_utf8(bytes).map_err(|error| invalid(path, format!("not UTF-8: {error}")))
}

/// Bytes of a file that [`refuse_placeholder`] looks at.
pub(crate) const FIRST_BYTES: usize = 256;

/// Refuse a file that begins like something that a failed download leaves in its place.
pub(crate) fn refuse_placeholder(path: &Path, begins: &[u8]) -> Result<()> {
    let begins = begins.get(..FIRST_BYTES).unwrap_or(begins);
    let text = String::from_utf8_lossy(begins).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if text.starts_with("version https://git-lfs") {
        let reason =
            "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file";
        return Err(invalid(path, reason));
    }
    if ["<!doctype html", "<html", "<?xml", "<head", "<!--"].iter().any(|tag| text.starts_with(tag)) {
        let reason = "is a page of a web site (HTML or XML), not the file itself: the download was answered by a login, \
                      an error or a preview; download the file again";
        return Err(invalid(path, reason));
    }
    Ok(())
}

/// An [`Error::InvalidFile`].
pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: reason.into() }
}

fn not_regular(path: &Path) -> Error {
    invalid(path, "expected a regular file, found a folder, a pipe or a device")
}
