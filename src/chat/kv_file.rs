//! The file of a saved conversation with its K/V: a header of JSON, blocks, and checksums.
//!
//! ```text
//! "qwen-kv\n"  version: u32  length of the header: u64  header  checksum: u64
//! { number of blocks: u32  blocks  checksum: u64 }            as often as there are blocks
//! 0: u32  checksum: u64                                       the end
//! ```
//!
//! Numbers are little-endian. Each checksum is that of everything before it, so that a part is used only after it was
//! checked, and a file that was cut or changed anywhere is found out. Blocks are bytes as backends write them
//! (`qwen_core::Backend::read_blocks`).

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use qwen_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::state::ChatState;

const MAGIC: &[u8; 8] = b"qwen-kv\n";
const VERSION: u32 = 1;

/// The most bytes of a header: a million tokens with their text take a tenth of it.
const MAX_HEADER: u64 = 256 << 20;

/// The bytes of the blocks that are together in a part, if they are more than one.
const PART: usize = 8 << 20;

/// The blocks of `block_bytes` that are in a part.
pub(super) fn blocks_of_part(block_bytes: usize) -> usize {
    (PART / block_bytes.max(1)).max(1)
}

/// What the file says before its blocks.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// Without its cache salt.
    pub(super) state: ChatState,
    /// What the blocks are; without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kv: Option<SavedKv>,
}

/// What the blocks of a file are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedKv {
    /// What has to be the same where they are used, by name.
    pub(super) facts: Vec<(String, String)>,
    /// Which devices computed them. Elsewhere they are used by this conversation alone.
    pub(super) computed_by: String,
    /// What else they depend on ([`qwen_core::engine::SavedRoot`]).
    pub(super) root: String,
    /// The tokens that they hold, the first ones of the conversation, unless the blocks end before.
    pub(super) tokens: usize,
    /// Whether they had a cache salt, which is not saved.
    pub(super) salted: bool,
}

/// The checksum of a sequence of parts. It finds accidents, and no attacks.
#[derive(Debug, Clone, Copy, Default)]
struct Checksum(u64);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
        // Each step can be undone, so that a changed word changes the sum whatever follows.
        self.0 = words.chain([bytes.len() as u64]).fold(self.0, |sum, word| {
            let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            sum ^ (sum >> 32)
        });
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |error| Error::Io { path: path.into(), error }
}

/// Writes a file beside its place, where [`Writer::finish`] moves it.
#[derive(Debug)]
pub(super) struct Writer {
    file: BufWriter<File>,
    sum: Checksum,
    place: PathBuf,
    beside: PathBuf,
    is_moved: bool,
}

impl Writer {
    /// # Errors
    /// When the file cannot be written, and for a conversation beyond all measure.
    pub(super) fn create(place: &Path, header: &Header) -> Result<Self> {
        let json = serde_json::to_vec(header).map_err(|error| Error::argument("chat", error.to_string()))?;
        if json.len() as u64 > MAX_HEADER {
            let reason = format!("its messages take {} bytes, a saved one has at most {MAX_HEADER}", json.len());
            return Err(Error::argument("chat", reason));
        }
        let (file, beside) = create_beside(place)?;
        let (file, place) = (BufWriter::new(file), place.into());
        let mut writer = Writer { file, sum: Checksum::default(), place, beside, is_moved: false };
        let len = (json.len() as u64).to_le_bytes();
        writer.part(&[MAGIC, &VERSION.to_le_bytes(), &len, &json])?;
        Ok(writer)
    }

    /// Add blocks: at least one, at most as many as a part has.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn blocks(&mut self, count: usize, bytes: &[u8]) -> Result<()> {
        self.part(&[&(count as u32).to_le_bytes(), bytes])
    }

    /// Complete the file, and move it to its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(mut self) -> Result<()> {
        self.part(&[&0u32.to_le_bytes()])?;
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(io(&self.beside))?;
        std::fs::rename(&self.beside, &self.place).map_err(io(&self.place))?;
        self.is_moved = true;
        Ok(())
    }

    /// Write a part and the checksum up to its end.
    fn part(&mut self, pieces: &[&[u8]]) -> Result<()> {
        let Writer { file, sum, beside, .. } = self;
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(io(beside));
        for piece in pieces {
            sum.add(piece);
            write(piece)?;
        }
        write(&sum.0.to_le_bytes())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_moved {
            // An error is already on its way.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

/// A new file in the folder of `place`, which only this user may read.
fn create_beside(place: &Path) -> Result<(File, PathBuf)> {
    let Some(name) = place.file_name() else {
        return Err(Error::argument("path", format!("{} is no name of a file", place.display())));
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    for attempt in 0u64.. {
        let mut name = name.to_owned();
        name.push(format!(".{}-{attempt}.part", std::process::id()));
        let beside = place.with_file_name(name);
        match options.open(&beside) {
            Ok(file) => return Ok((file, beside)),
            // Another save is on its way, or was interrupted in an earlier process.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {}
            Err(error) => return Err(io(&beside)(error)),
        }
    }
    Err(Error::argument("path", "no name is left beside it"))
}

/// Reads a file part by part.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    sum: Checksum,
    path: PathBuf,
}

impl Reader {
    /// Open a file, and read its header.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::DamagedSnapshot`] with what is wrong.
    pub(super) fn open(path: &Path) -> Result<(Header, Self)> {
        let file = BufReader::new(File::open(path).map_err(io(path))?);
        let mut reader = Reader { file, sum: Checksum::default(), path: path.into() };
        if reader.take(MAGIC.len() as u64)? != MAGIC {
            return Err(reader.damaged("it is no saved conversation (`Chat::save` writes them)"));
        }
        match reader.number()? {
            VERSION => {}
            other => {
                let reason =
                    format!("a saved conversation of version {other}: this version of qwen-rs reads {VERSION}");
                return Err(reader.damaged(reason));
            }
        }
        let len = u64::from_le_bytes(reader.array()?);
        if len > MAX_HEADER {
            return Err(reader.damaged(format!("a header of {len} bytes, at most {MAX_HEADER} are allowed")));
        }
        let json = reader.take(len)?;
        reader.check("its header")?;
        let header = serde_json::from_slice(&json).map_err(|error| reader.damaged(format!("its header: {error}")))?;
        Ok((header, reader))
    }

    /// The next blocks, at most `most` of `block_bytes`: their number and their bytes. `None` at the end of the file.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub(super) fn blocks(&mut self, block_bytes: usize, most: usize) -> Result<Option<(usize, Vec<u8>)>> {
        let count = self.number()? as usize;
        if count == 0 {
            self.check("its end")?;
            return match self.file.read(&mut [0]).map_err(io(&self.path))? {
                0 => Ok(None),
                _ => Err(self.damaged("there is more behind its end")),
            };
        }
        let most = most.min(blocks_of_part(block_bytes));
        if count > most {
            return Err(self.damaged(format!("a part of {count} blocks, where {most} may be")));
        }
        let bytes = self.take(count as u64 * block_bytes as u64)?;
        self.check("a block")?;
        Ok(Some((count, bytes)))
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::DamagedSnapshot { path: self.path.clone(), reason: reason.into() }
    }

    /// Check everything up to here.
    fn check(&mut self, what: &str) -> Result<()> {
        let sum = self.sum;
        let stored = u64::from_le_bytes(self.unsummed(8)?.try_into().map_err(|_| self.truncated())?);
        match stored == sum.0 {
            true => Ok(()),
            false => Err(self.damaged(format!("{what} is damaged: its checksum is {stored:016x}, of {:016x}", sum.0))),
        }
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN]> {
        self.take(LEN as u64)?.try_into().map_err(|_| self.truncated())
    }

    fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let bytes = self.unsummed(len)?;
        self.sum.add(&bytes);
        Ok(bytes)
    }

    /// The next `len` bytes. Memory is taken as they are found.
    fn unsummed(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.by_ref().take(len).read_to_end(&mut bytes).map_err(io(&self.path))?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(self.truncated()),
        }
    }

    fn truncated(&self) -> Error {
        self.damaged("it is truncated")
    }
}

#[cfg(test)]
mod tests;
