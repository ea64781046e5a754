//! One open weights file, read at positions: every byte of a checkpoint is read here.
//!
//! Each read has its own position, so several threads can read one file at once. If another process truncates the file,
//! a read ends early, which is an error like any other; with a memory mapping it would kill the process.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::checkpoint::files;
use crate::error::{Error, Result};
use crate::numerics::human_bytes::HumanBytes;

/// A weights file and its length when it was opened.
pub(super) struct Shard {
    path: PathBuf,
    file: File,
    len: u64,
    /// Makes a seek and a read atomic on systems without positioned reads.
    #[cfg(not(any(unix, windows)))]
    position: std::sync::Mutex<()>,
}

impl Shard {
    /// Open the file, unless it is a placeholder that a failed download left.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let (file, len) = files::open_regular(&path)?;
        let shard = Shard {
            path,
            file,
            len,
            #[cfg(not(any(unix, windows)))]
            position: std::sync::Mutex::new(()),
        };
        let mut begins = vec![0; len.min(files::FIRST_BYTES as u64) as usize];
        shard.read_exact_at("its beginning", 0, &mut begins)?;
        files::refuse_placeholder(&shard.path, &begins)?;
        Ok(shard)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the file when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fill `out` with the bytes from `offset` on. `what` names them in errors.
    ///
    /// # Errors
    /// [`Error::Io`] with the offset and the expected and found bytes: of the kind
    /// [`UnexpectedEof`](ErrorKind::UnexpectedEof) when the file has become shorter.
    pub(super) fn read_exact_at(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let expected = out.len();
        let mut found = 0;
        let failure = loop {
            let Some(rest) = out.get_mut(found..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            match self.read_at(offset.saturating_add(found as u64), rest) {
                Ok(0) => {
                    let reason = "the file ended: another process truncated it; restore it and load again";
                    break (ErrorKind::UnexpectedEof, reason.to_owned());
                }
                Ok(read) => found += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break (error.kind(), error.to_string()),
            }
        };
        let (kind, reason) = failure;
        let [expected, found] = HumanBytes::compared(expected as u64, found as u64);
        let reason = format!("{what}: expected {expected} at offset {offset} of the file, found {found}: {reason}");
        Err(Error::Io { path: self.path.clone(), error: io::Error::new(kind, reason) })
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, out, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, out, offset)
    }

    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        use std::io::{Read, Seek, SeekFrom};
        let _position = self.position.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read(out)
    }
}
