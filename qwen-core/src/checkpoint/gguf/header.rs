//! The header of a GGUF file: metadata, then the position of each tensor.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  entries u64
//! entries times: key, type u32, value                                   a string is its length u64 and its bytes
//! tensors times: name, dimensions u32, each u64 innermost first, type u32, offset u64
//! zeros up to a multiple of `general.alignment` (32 where it is absent), then the tensors' bytes, offsets from there
//! ```

use std::collections::HashSet;
use std::path::Path;

use super::metadata::{Metadata, Value};
use super::reader::{Reader, Source, shown};
use super::types;
use crate::checkpoint::files::invalid;
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::shard::Shard;
use crate::error::{Error, Result};
use crate::numerics::human_bytes::HumanBytes;
use crate::numerics::size;

/// The bytes that every file begins with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The key of the alignment of tensors.
const ALIGNMENT: &str = "general.alignment";

/// The alignment if the key is absent.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Bytes of an entry of the metadata with an empty key and the smallest value.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 1;

/// Bytes of the entry of a tensor with an empty name and no dimensions.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// A parsed header: every tensor is within the file, and none overlaps another.
///
/// ```
/// use std::path::Path;
/// use qwen_core::checkpoint::gguf::Header;
///
/// // Version 3, no tensor, and one entry: the architecture.
/// let mut file = b"GGUF".to_vec();
/// file.extend(3_u32.to_le_bytes());
/// file.extend(0_u64.to_le_bytes());
/// file.extend(1_u64.to_le_bytes());
/// file.extend(20_u64.to_le_bytes());
/// file.extend(b"general.architecture");
/// file.extend(8_u32.to_le_bytes());
/// file.extend(5_u64.to_le_bytes());
/// file.extend(b"qwen2");
///
/// let header = Header::parse(Path::new("model.gguf"), &file)?;
/// assert_eq!(header.metadata.get_str("general.architecture"), Some("qwen2"));
///
/// let error = Header::parse(Path::new("model.gguf"), &file[..file.len() - 1]).unwrap_err();
/// assert!(error.to_string().contains("key `general.architecture`"));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Header {
    /// The metadata of the file.
    pub metadata: Metadata,
    /// The tensors under the file's own names, in the order of their data in the file.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// Parse the header of `file`, the bytes of a whole file. `path` is only for errors. The tensors' bytes are not
    /// examined.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] with the key or the tensor at fault; [`Error::Unsupported`] for unsupported versions and
    /// byte orders.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        Header::read_from(path, &file)
    }

    /// Read and parse the header of `shard`.
    pub(super) fn read(shard: &Shard) -> Result<Self> {
        Header::read_from(shard.path(), shard)
    }

    fn read_from(path: &Path, source: &dyn Source) -> Result<Self> {
        let mut reader = Reader::new(path, source);
        let magic: [u8; 4] = reader.bytes()?;
        if magic != MAGIC {
            let found = magic.escape_ascii();
            return Err(invalid(path, format!("not a GGUF file: begins with `{found}` instead of `GGUF`")));
        }
        check_version(path, reader.u32()?)?;
        reader.reading("the number of tensors".into());
        let tensors = reader.count(LEAST_TENSOR_BYTES, size_of::<TensorInfo>())?;
        reader.reading("the number of entries of the metadata".into());
        let entries = reader.count(LEAST_ENTRY_BYTES, size_of::<(String, Value)>())?;
        let metadata = Metadata::read(&mut reader, entries)?;
        let alignment = alignment(path, &metadata)?;
        let entries = (0..tensors).map(|index| Entry::read(&mut reader, index)).collect::<Result<Vec<_>>>()?;
        let tensors = match entries.is_empty() {
            true => Vec::new(),
            false => lay_out(path, entries, reader.position().next_multiple_of(alignment), alignment, source.len())?,
        };
        Ok(Header { metadata, tensors })
    }
}

fn check_version(path: &Path, version: u32) -> Result<()> {
    let (what, reason) = match version {
        2 | 3 => return Ok(()),
        1 => ("GGUF version 1", "files of 2023 and later have version 2 or 3: convert the model again"),
        version if (1..=0xffff).contains(&version.swap_bytes()) => {
            ("big-endian GGUF", "the file was made for machines of the other byte order: take the little-endian one")
        }
        _ => ("this version of GGUF", "only versions 2 and 3 are supported"),
    };
    Err(Error::unsupported(format!("{what} ({}: version {version})", path.display()), reason))
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let Some(value) = metadata.get(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64().filter(|alignment| alignment.is_power_of_two() && *alignment <= u32::MAX.into()) {
        Some(alignment) => Ok(alignment),
        None => Err(Error::InvalidConfig {
            path: path.to_path_buf(),
            key: ALIGNMENT.into(),
            reason: format!("expected a power of two, found {}: the file is damaged", value.describe()),
        }),
    }
}

/// A tensor as the file describes it.
struct Entry {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    kind: u32,
    /// Relative to the beginning of the data.
    offset: u64,
}

impl Entry {
    fn read(reader: &mut Reader<'_>, index: usize) -> Result<Self> {
        reader.reading(format!("entry {index} of the tensors"));
        let name = reader.name()?;
        reader.reading(format!("tensor `{}`", shown(&name)));
        let dimensions = reader.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(reader.error(format!("has {dimensions} dimensions, at most {MAX_DIMENSIONS} are read")));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let dimension = reader.u64()?;
            let fits = usize::try_from(dimension);
            shape.push(fits.map_err(|_| reader.error(format!("a dimension of {dimension} exceeds any memory")))?);
        }
        shape.reverse();
        Ok(Entry { name, shape, kind: reader.u32()?, offset: reader.u64()? })
    }

    /// Its size in bytes; `None` for an unsupported type, whose size does not matter.
    fn bytes(&self, path: &Path) -> Result<Option<u64>> {
        let Some(encoding) = types::encoding(self.kind) else { return Ok(None) };
        let (cols, rows) = self.shape.split_last().map_or((1, &[][..]), |(cols, rows)| (*cols, rows));
        let block = encoding.block();
        if !cols.is_multiple_of(block.values) {
            let reason = format!("rows of {cols} values are not whole blocks of {} in {encoding}", block.values);
            return Err(self.error(path, reason));
        }
        let bytes = size::product(rows).and_then(|rows| block.matrix_bytes(rows, cols));
        match bytes {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(self.error(path, format!("the size of a shape of {:?} in {encoding} overflows", self.shape))),
        }
    }

    fn error(&self, path: &Path, reason: String) -> Error {
        invalid(path, format!("tensor `{}`: {reason}: the file is damaged, download it again", shown(&self.name)))
    }
}

/// Check that the entries are aligned, within the bytes from `data` to the file's end at `len`, and do not overlap.
/// There may be gaps between them.
fn lay_out(path: &Path, entries: Vec<Entry>, data: u64, alignment: u64, len: u64) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::with_capacity(entries.len());
    if let Some(entry) = entries.iter().find(|entry| !names.insert(entry.name.as_str())) {
        return Err(entry.error(path, "appears twice".into()));
    }
    let mut placed = Vec::with_capacity(entries.len());
    for entry in entries {
        let bytes = entry.bytes(path)?;
        let Entry { offset, .. } = entry;
        if !offset.is_multiple_of(alignment) {
            return Err(entry.error(path, format!("offset {offset} is not a multiple of the alignment {alignment}")));
        }
        let start = data.checked_add(offset);
        match start.and_then(|start| start.checked_add(bytes.unwrap_or(0)).filter(|end| *end <= len).and(Some(start))) {
            Some(start) => placed.push((start, bytes, entry)),
            None => {
                let what = bytes.map_or("its bytes".into(), |bytes| format!("its {}", HumanBytes(bytes)));
                let reason = format!("{what} at {offset} from {data} on lie beyond the file's end at {len}");
                return Err(entry.error(path, reason));
            }
        }
    }
    placed.sort_by_key(|(start, bytes, _)| (*start, *bytes));
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(placed.len());
    let starts: Vec<u64> = placed.iter().map(|(start, ..)| *start).skip(1).chain([len]).collect();
    for ((start, bytes, entry), next) in placed.into_iter().zip(starts) {
        if let Some(other) = tensors.last().filter(|other| other.range.end > start) {
            let reason = format!("begins at {start}, within the bytes of `{}`", shown(&other.name));
            return Err(entry.error(path, reason));
        }
        // A tensor of unknown size is assumed to extend to the next one.
        let end = bytes.map_or(next, |bytes| start.saturating_add(bytes));
        let Entry { name, shape, kind, .. } = entry;
        tensors.push(TensorInfo { name, alias: None, dtype: types::name(kind).into_owned(), shape, range: start..end });
    }
    Ok(tensors)
}
