//! Writing a GGUF file: metadata and the list of tensors first, then the tensors' bytes.
//!
//! Here: the layout that `header` reads, and writing atomically, so that a file is complete or does not exist. Not
//! here: which keys describe a model (`describe`), and how the bytes of tensors are computed ([`crate::quantize`]).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::header::MAGIC;
use super::metadata::Metadata;
use super::types;
use crate::checkpoint::files::invalid;
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::size;

/// The version that is written.
const VERSION: u32 = 3;

/// The alignment of tensors: the default of readers if the file has no key for it.
const ALIGNMENT: u64 = 32;

/// The longest name that ggml reads.
const MAX_NAME_BYTES: usize = 63;

/// A tensor and its length in bytes.
type SizedTensor = (NewTensor, u64);

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name in GGUF files.
    pub name: String,
    /// How its values are encoded.
    pub encoding: Encoding,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Writes a GGUF file of version 3.
///
/// The bytes go to a temporary file in the same folder, which is renamed when all of them are on disk: a reader never
/// sees half a model, and a writer that is dropped early leaves nothing behind. An existing file of that name stays
/// until then.
///
/// ```
/// use qwen_core::Encoding;
/// use qwen_core::checkpoint::gguf::{GgufWriter, Header, Metadata, NewTensor, Value};
///
/// let path = std::env::temp_dir().join(format!("qwen-doc-{}.gguf", std::process::id()));
/// let mut metadata = Metadata::default();
/// metadata.insert("general.architecture", Value::String("qwen2".into()));
/// let norm = NewTensor { name: "output_norm.weight".into(), encoding: Encoding::F32, shape: vec![2] };
///
/// let mut writer = GgufWriter::create(&path, &metadata, vec![norm])?;
/// writer.write(&1.0_f32.to_le_bytes())?;
/// writer.write(&0.5_f32.to_le_bytes())?;
/// let bytes = writer.finish()?;
///
/// let file = std::fs::read(&path).unwrap();
/// assert_eq!(file.len() as u64, bytes);
/// let header = Header::parse(&path, &file)?;
/// assert_eq!(header.tensors[0].shape, [2]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    file: BufWriter<File>,
    path: PathBuf,
    /// The temporary file; `None` once it is complete.
    partial: Option<PathBuf>,
    tensors: Vec<SizedTensor>,
    /// The tensor whose bytes come next, and how many of them were written.
    current: usize,
    written: u64,
    total: u64,
}

impl GgufWriter {
    /// Begin the file `path` and write its header. The bytes of `tensors` have to follow in this order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tensors that no GGUF file can hold: rows that are not whole blocks, names that
    /// repeat or exceed 63 bytes, more than 4 dimensions, sizes that overflow; [`Error::Unsupported`] for
    /// [`Encoding::Group`]; [`Error::InvalidFile`] for a path without a file name; [`Error::Io`].
    pub fn create(path: impl AsRef<Path>, metadata: &Metadata, tensors: Vec<NewTensor>) -> Result<Self> {
        let path = path.as_ref();
        let (header, tensors) = header(metadata, tensors)?;
        let partial = partial_path(path)?;
        let io = |error| Error::Io { path: partial.clone(), error };
        let file = OpenOptions::new().write(true).create_new(true).open(&partial).map_err(io)?;
        let mut writer = GgufWriter {
            file: BufWriter::with_capacity(1 << 20, file),
            path: path.to_path_buf(),
            partial: Some(partial),
            tensors,
            current: 0,
            written: 0,
            total: 0,
        };
        writer.put(&header)?;
        writer.pad()?;
        Ok(writer)
    }

    /// Append bytes of the tensors, in pieces of any size.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more bytes than the tensors have; [`Error::Io`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(left) = self.tensors.get(self.current).map(|(_, len)| len - self.written) else {
                return Err(Error::argument("bytes", format!("{} more than the tensors have", bytes.len())));
            };
            let (now, rest) = bytes.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
            self.put(now)?;
            self.written += now.len() as u64;
            bytes = rest;
            if now.len() as u64 == left {
                self.pad()?;
                (self.current, self.written) = (self.current + 1, 0);
            }
        }
        Ok(())
    }

    /// Rename the complete file to its final name and return its length in bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when bytes of a tensor are missing; [`Error::Io`]. Nothing is left behind then.
    pub fn finish(mut self) -> Result<u64> {
        // Skip tensors without values: they have no bytes.
        let rest = self.tensors.get(self.current..).unwrap_or_default();
        if let Some((tensor, len)) = rest.iter().find(|(_, len)| *len > 0) {
            let reason = format!("{} of the {len} bytes of tensor `{}` were written", self.written, tensor.name);
            return Err(Error::argument("bytes", reason));
        }
        let Some(partial) = self.partial.clone() else { return Ok(self.total) };
        let io = |error| Error::Io { path: partial.clone(), error };
        self.file.flush().map_err(io)?;
        self.file.get_ref().sync_all().map_err(io)?;
        fs::rename(&partial, &self.path).map_err(|error| Error::Io { path: self.path.clone(), error })?;
        self.partial = None;
        sync_folder(&self.path);
        Ok(self.total)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.partial.as_ref().unwrap_or(&self.path);
        self.file.write_all(bytes).map_err(|error| Error::Io { path: path.clone(), error })?;
        self.total += bytes.len() as u64;
        Ok(())
    }

    /// Write zeros up to the start of the next tensor.
    fn pad(&mut self) -> Result<()> {
        let zeros = [0; ALIGNMENT as usize];
        let len = self.total.next_multiple_of(ALIGNMENT) - self.total;
        self.put(zeros.get(..len as usize).unwrap_or_default())
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            // An error cannot be reported from here; the name shows that the file is partial.
            fs::remove_file(partial).ok();
        }
    }
}

/// The temporary file of this process for `path`.
fn partial_path(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Err(invalid(path, "expected the name of a file to write"));
    };
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}-{}.partial", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(partial))
}

/// Make the new name durable, where folders can be synced. The file is complete either way.
fn sync_folder(path: &Path) {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(folder) = File::open(folder) {
            folder.sync_all().ok();
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// The header, and the tensors with their lengths in bytes.
fn header(metadata: &Metadata, tensors: Vec<NewTensor>) -> Result<(Vec<u8>, Vec<SizedTensor>)> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.iter().len() as u64).to_le_bytes());
    metadata.write(&mut out);
    let mut names = HashSet::with_capacity(tensors.len());
    let mut sized = Vec::with_capacity(tensors.len());
    let mut offset = 0_u64;
    for tensor in tensors {
        let invalid = |reason: String| Error::argument("tensors", format!("tensor `{}`: {reason}", tensor.name));
        if !names.insert(tensor.name.clone()) {
            return Err(invalid("appears twice".into()));
        }
        if tensor.name.is_empty() || tensor.name.len() > MAX_NAME_BYTES {
            let reason = format!("its name has {} bytes, readers take 1 to {MAX_NAME_BYTES}", tensor.name.len());
            return Err(invalid(reason));
        }
        let dimensions = match u32::try_from(tensor.shape.len()) {
            Ok(dimensions @ 1..=4) => dimensions,
            _ => return Err(invalid(format!("has {} dimensions, 1 to 4 are written", tensor.shape.len()))),
        };
        let len = bytes(&tensor).ok_or_else(|| {
            let block = tensor.encoding.block().values;
            invalid(format!("{:?} values in {} are not whole blocks of {block}", tensor.shape, tensor.encoding))
        })?;
        let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let Some(end) = end else { return Err(invalid("the sizes of all tensors together overflow".into())) };
        super::metadata::write_string(&tensor.name, &mut out);
        out.extend(dimensions.to_le_bytes());
        for dimension in tensor.shape.iter().rev() {
            out.extend((*dimension as u64).to_le_bytes());
        }
        out.extend(types::number(tensor.encoding)?.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = end;
        sized.push((tensor, len));
    }
    Ok((out, sized))
}

/// Bytes of a tensor; `None` if its rows are not whole blocks or the product overflows.
fn bytes(tensor: &NewTensor) -> Option<u64> {
    let (cols, rows) = tensor.shape.split_last()?;
    size::product(rows).and_then(|rows| tensor.encoding.block().matrix_bytes(rows, *cols))
}
