//! Reads little-endian values sequentially from the beginning of a file.
//!
//! Before memory is allocated, every length is compared with the rest of the file, and every allocation is charged to a
//! budget: a file of a few bytes may state counts of 2^60. Errors name what was being read. Not here: what the values
//! mean ([`super::header`]).

use std::path::Path;

use crate::checkpoint::files::invalid;
use crate::checkpoint::shard::Shard;
use crate::error::{Error, Result};
use crate::numerics::human_bytes::HumanBytes;

/// Memory that the header of a file may take. A vocabulary of 150,000 tokens and its merges take some 20 MB.
const MAX_MEMORY: u64 = 256 << 20;

/// The longest name of a key or a tensor that the format allows.
const MAX_NAME: usize = 65_535;

/// Bytes to read at once.
const READ_AHEAD: usize = 128 << 10;

/// The bytes of a file.
pub(super) trait Source {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// Fill `out` with those from `offset` on. `what` names them in errors.
    fn read_exact_at(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<()>;
}

impl Source for Shard {
    fn len(&self) -> u64 {
        Shard::len(self)
    }

    fn read_exact_at(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        Shard::read_exact_at(self, what, offset, out)
    }
}

impl Source for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_exact_at(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.get(start..).and_then(|rest| rest.get(..out.len())) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return Err(Error::argument("offset", format!("{what}: {} bytes at {offset}", out.len()))),
        }
        Ok(())
    }
}

/// Reads a file from its beginning.
pub(super) struct Reader<'a> {
    path: &'a Path,
    source: &'a dyn Source,
    buffer: Vec<u8>,
    /// The number of the buffer's bytes already consumed.
    taken: usize,
    /// Where in the file the buffer ends.
    end: u64,
    memory_left: u64,
    /// What is being read, for errors.
    what: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, source: &'a dyn Source) -> Self {
        let what = "the beginning".into();
        Reader { path, source, buffer: Vec::new(), taken: 0, end: 0, memory_left: MAX_MEMORY, what }
    }

    /// Set what is being read, for errors.
    pub(super) fn reading(&mut self, what: String) {
        self.what = what;
    }

    /// An error about what is being read.
    pub(super) fn error(&self, reason: impl AsRef<str>) -> Error {
        invalid(self.path, format!("{}: {}", self.what, reason.as_ref()))
    }

    /// Where in the file the next value begins.
    pub(super) fn position(&self) -> u64 {
        self.end - (self.buffer.len() - self.taken) as u64
    }

    fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.position())
    }

    /// Take `bytes` from the budget.
    fn charge(&mut self, bytes: u64) -> Result<()> {
        match self.memory_left.checked_sub(bytes) {
            Some(left) => self.memory_left = left,
            None => {
                let most = HumanBytes(MAX_MEMORY);
                let reason = format!(
                    "takes {} of memory, with which the header takes more than {most}: the file is damaged, or not a \
                     language model",
                    HumanBytes(bytes)
                );
                return Err(self.error(reason));
            }
        }
        Ok(())
    }

    fn check_left(&self, bytes: u64) -> Result<()> {
        if bytes > self.left() {
            let (position, len) = (self.position(), self.source.len());
            let reason = format!(
                "needs {} at offset {position}, the file ends after {len}: it is truncated or damaged, download it again",
                HumanBytes(bytes)
            );
            return Err(self.error(reason));
        }
        Ok(())
    }

    /// The next `len` bytes. The caller has charged more than a few bytes to the budget.
    fn take(&mut self, len: u64) -> Result<&[u8]> {
        self.check_left(len)?;
        let len =
            usize::try_from(len).map_err(|_| self.error(format!("{len} bytes exceed this machine's pointers")))?;
        let held = self.buffer.len() - self.taken;
        if held < len {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            let in_file = self.source.len().saturating_sub(self.end);
            let more = ((len.max(READ_AHEAD) - held) as u64).min(in_file) as usize;
            self.buffer.resize(held + more, 0);
            let fresh = self.buffer.get_mut(held..).unwrap_or_default();
            self.source.read_exact_at(&self.what, self.end, fresh)?;
            self.end += more as u64;
        }
        let bytes = self.buffer.get(self.taken..).and_then(|rest| rest.get(..len)).unwrap_or_default();
        self.taken += len;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.first_chunk().copied().unwrap_or([0; N]))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of items that each take at least `bytes` in the file, and `memory` bytes once read.
    pub(super) fn count(&mut self, bytes: u64, memory: usize) -> Result<usize> {
        let count = self.u64()?;
        self.check_left(count.saturating_mul(bytes))?;
        self.charge(count.saturating_mul(memory as u64))?;
        // Within the budget, so it fits any machine's pointers.
        Ok(count as usize)
    }

    /// A string: its length and its bytes, UTF-8.
    pub(super) fn string(&mut self) -> Result<String> {
        let mut text = String::new();
        self.append_string(&mut text)?;
        Ok(text)
    }

    /// Append a string to `text`.
    pub(super) fn append_string(&mut self, text: &mut String) -> Result<()> {
        let len = self.u64()?;
        self.check_left(len)?;
        self.charge(len)?;
        match std::str::from_utf8(self.take(len)?) {
            Ok(string) => text.push_str(string),
            Err(error) => return Err(self.error(format!("a string of {len} bytes is not UTF-8: {error}"))),
        }
        Ok(())
    }

    /// The name of a key or a tensor.
    pub(super) fn name(&mut self) -> Result<String> {
        let name = self.string()?;
        match name.len() {
            0..=MAX_NAME => Ok(name),
            len => Err(self.error(format!("a name of {len} bytes: at most {MAX_NAME} are read"))),
        }
    }

    /// A count, and as many values of `N` bytes.
    pub(super) fn numbers<const N: usize, T>(&mut self, value: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count(N as u64, size_of::<T>())?;
        let bytes = (count as u64).saturating_mul(N as u64);
        // The bytes pass through the buffer, too.
        self.charge(bytes)?;
        Ok(self.take(bytes)?.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect())
    }
}

/// A name from a file as shown in an error: on one line, and short.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    match name.char_indices().nth(MOST) {
        None => name.escape_debug().to_string(),
        Some((end, _)) => format!("{}...", name.get(..end).unwrap_or_default().escape_debug()),
    }
}
