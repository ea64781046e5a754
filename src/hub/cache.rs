//! The cache on disk, in the layout that it shares with Python's `huggingface_hub`. Of each repository:
//!
//! ```text
//! models--OWNER--NAME/blobs/ETAG             contents, by the checksum that the hub names them with
//! models--OWNER--NAME/snapshots/COMMIT/FILE  links to them: ../../blobs/ETAG
//! models--OWNER--NAME/refs/REVISION          the commit that a branch or a tag was at
//! .locks/models--OWNER--NAME/ETAG.lock       held by whoever downloads
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::model_name::ModelName;

/// Folders within a snapshot that are looked into: those of GGUF models.
const MAX_DEPTH: usize = 3;

/// The folders of one repository.
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = format!("models--{}--{}", name.owner(), name.name());
        Repository { locks: cache.join(".locks").join(&folder), folder: cache.join(&folder) }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that `revision` was at, as far as the cache knows.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), Error> {
        let path = self.folder.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        replace(&path, |new| fs::write(new, commit))
    }

    /// The files of a snapshot that are really there, as a listing of the hub would name them.
    pub(super) fn listing(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        list(&self.snapshot(commit), "", MAX_DEPTH, &mut files);
        files
    }

    /// Give the contents `etag` their name in a snapshot: a link, as Python makes it, or where the system has no
    /// links a second name of the same contents, or a copy.
    pub(super) fn name_blob(&self, commit: &str, file: &str, etag: &str) -> Result<(), Error> {
        let path = self.snapshot(commit).join(file);
        let blob = self.blob(etag);
        create_parent(&path)?;
        let target = format!("{}../../blobs/{etag}", "../".repeat(file.matches('/').count()));
        replace(&path, |new| {
            symlink(Path::new(&target), new)
                .or_else(|_| fs::hard_link(&blob, new))
                .or_else(|_| fs::copy(&blob, new).map(drop))
        })
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    // On Windows they need a right that few users have.
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Of what a link leads to, so that a link to nothing is not a file.
        match entry.path().metadata() {
            Ok(metadata) if metadata.is_file() => files.push(format!("{prefix}{name}")),
            Ok(metadata) if metadata.is_dir() && depth > 0 => {
                list(&entry.path(), &format!("{prefix}{name}/"), depth - 1, files);
            }
            _ => {}
        }
    }
    files.sort_unstable();
}

/// Whether this names a commit. It becomes a folder.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether this can name contents. It becomes a file.
pub(super) fn is_etag(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=128).contains(&text.len()) && text.bytes().all(is_allowed)
}

pub(super) fn create_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| io_error(parent, error))
}

/// Put what `make` makes under a temporary name in the place of `path`, at once.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}-{:?}.new", std::process::id(), std::thread::current().id()));
    let new = PathBuf::from(new);
    make(&new).and_then(|()| fs::rename(&new, path)).map_err(|error| {
        let _ = fs::remove_file(&new);
        io_error(path, error)
    })
}

pub(super) fn io_error(path: &Path, error: io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), error }
}
