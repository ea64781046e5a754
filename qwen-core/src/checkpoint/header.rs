//! The header of a safetensors file: eight bytes of length, then JSON with the position of each tensor.
//!
//! The `safetensors` crate defines the entries and the element types. The layout is checked here, against the length of
//! the file and before any data is read, since an error must name the tensor and the figures; the crate's own checks
//! report neither, keep only one of two tensors with the same name, and add offsets unchecked.

use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorInfo as Entry;

use super::gguf::types;
use super::shard::Shard;
use crate::checkpoint::files::invalid;
use crate::checkpoint::json::Entries;
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::human_bytes::HumanBytes;
use crate::numerics::size;

/// Bytes of the length at the beginning of a file.
const LENGTH_BYTES: usize = 8;

/// The most dimensions of a tensor. A model's tensors have at most two.
const MAX_DIMENSIONS: usize = 8;

/// The longest header that is parsed. Published headers are below a megabyte; parsed, they take several times the size
/// of their text.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A tensor as a header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its name in the file, if that differs from `name`: in GGUF models, and if a wrapper or a part of a model was
    /// saved (`norm.weight`, `base_model.model.model.norm.weight`).
    pub alias: Option<String>,
    /// Its element type as written in the file: `BF16`, `I32`, `Q4_K`, ...
    pub dtype: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// The element type, if it is supported.
    pub fn encoding(&self) -> Option<Encoding> {
        // These are the names of GGUF's types; safetensors has the unquantised ones.
        types::encoding_named(&self.dtype)
    }

    /// Its size in the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A parsed header: every tensor is within the file, none overlaps another, and no byte is left over.
///
/// ```
/// use std::path::Path;
/// use qwen_core::checkpoint::Header;
///
/// let json = br#"{"norm": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
/// let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// file.extend(json);
/// file.extend([0; 8]);
///
/// let header = Header::parse(Path::new("model.safetensors"), &file)?;
/// assert_eq!(header.tensors[0].name, "norm");
/// assert_eq!(header.tensors[0].shape, [2]);
///
/// let error = Header::parse(Path::new("model.safetensors"), &file[..file.len() - 1]).unwrap_err();
/// assert!(error.to_string().contains("`norm`"));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// The tensors in the order of their data in the file.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// Parse the header of `file`, the bytes of a whole file. `path` is only for errors. The tensors' bytes are not
    /// looked at.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the tensor at fault.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let len = file.len() as u64;
        let Some((length, rest)) = file.split_first_chunk() else { return Err(too_short(path, len)) };
        let length = header_length(path, *length, len)?;
        Header::parse_json(path, rest.get(..length).unwrap_or_default(), len)
    }

    /// Read and parse the header of `shard`.
    pub(super) fn read(shard: &Shard) -> Result<Self> {
        if shard.len() < LENGTH_BYTES as u64 {
            return Err(too_short(shard.path(), shard.len()));
        }
        let mut length = [0; LENGTH_BYTES];
        shard.read_exact_at("the length of the header", 0, &mut length)?;
        let mut json = vec![0; header_length(shard.path(), length, shard.len())?];
        shard.read_exact_at("the header", LENGTH_BYTES as u64, &mut json)?;
        Header::parse_json(shard.path(), &json, shard.len())
    }

    /// Parse the JSON of a header, at the beginning of a file of `file_len` bytes.
    fn parse_json(path: &Path, json: &[u8], file_len: u64) -> Result<Self> {
        let Entries(entries) = serde_json::from_slice::<Entries<Entry>>(json)
            .map_err(|error| invalid(path, format!("the header is malformed: {error}")))?;
        let data_start = (LENGTH_BYTES + json.len()) as u64;
        let tensors = lay_out(path, entries, data_start, file_len.saturating_sub(data_start))?;
        Ok(Header { tensors })
    }
}

fn too_short(path: &Path, len: u64) -> Error {
    invalid(path, format!("has {len} bytes: a safetensors file begins with {LENGTH_BYTES} bytes of header length"))
}

/// The length that the first bytes of a file of `file_len` bytes state for its header.
fn header_length(path: &Path, length: [u8; LENGTH_BYTES], file_len: u64) -> Result<usize> {
    let kind = match length {
        [b'G', b'G', b'U', b'F', ..] => Some("is a GGUF file: give its name the ending `.gguf`"),
        [b'P', b'K', 3, 4, ..] => Some("is a zip archive, as PyTorch writes: convert it to safetensors"),
        _ => None,
    };
    let length = u64::from_le_bytes(length);
    if let Some(kind) = kind.filter(|_| length > MAX_HEADER_BYTES) {
        return Err(invalid(path, kind));
    }
    if length > MAX_HEADER_BYTES {
        let [length, most] = HumanBytes::compared(length, MAX_HEADER_BYTES);
        let reason = format!("states a header of {length}, at most {most} are read: not a safetensors file of a model");
        return Err(invalid(path, reason));
    }
    if length > file_len.saturating_sub(LENGTH_BYTES as u64) {
        let [length, file_len] = HumanBytes::compared(length, file_len);
        let reason = format!("states a header of {length} but has {file_len} in all: it is truncated");
        return Err(invalid(path, reason));
    }
    // Below the limit, so it fits any machine's pointers.
    Ok(length as usize)
}

/// Check that the entries, ordered by offset, fill exactly the `available` bytes from `data_start` on.
fn lay_out(path: &Path, mut entries: Vec<(String, Entry)>, data_start: u64, available: u64) -> Result<Vec<TensorInfo>> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(entries.len());
    let mut filled = 0;
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in entries {
        let (start, end) = (start as u64, end as u64);
        let fault =
            |what: String| Err(invalid(path, format!("tensor `{name}`: bytes {start} to {end} of the data {what}")));
        if end < start {
            return fault("end before they begin".into());
        }
        if end > available {
            return fault(format!("lie beyond its end at {available}: the file is truncated"));
        }
        if start < filled {
            let other = tensors.last().map_or("", |tensor| &tensor.name);
            return fault(format!("overlap with those of `{other}`, which end at {filled}"));
        }
        if start > filled {
            return fault(format!("leave a hole of {} before them", HumanBytes(start - filled)));
        }
        if shape.len() > MAX_DIMENSIONS {
            return fault(format!("have {} dimensions, at most {MAX_DIMENSIONS} are read", shape.len()));
        }
        match bits_of(dtype.bitsize(), &shape) {
            None => return fault(format!("cannot hold a {dtype} of shape {shape:?}: its size overflows")),
            Some(bits) if !bits.is_multiple_of(8) => {
                return fault(format!("cannot hold a {dtype} of shape {shape:?}: {bits} bits are no whole bytes"));
            }
            Some(bits) if bits / 8 != end - start => {
                return fault(format!("are not the {} of a {dtype} of shape {shape:?}", bits / 8));
            }
            Some(_) => {}
        }
        filled = end;
        // Both ends are at most the length of the file.
        tensors.push(TensorInfo {
            name,
            alias: None,
            dtype: dtype.to_string(),
            shape,
            range: data_start + start..data_start + end,
        });
    }
    if filled < available {
        return Err(invalid(path, format!("ends with {} that are of no tensor", HumanBytes(available - filled))));
    }
    Ok(tensors)
}

/// Bits of a tensor, unless they overflow.
fn bits_of(element: usize, shape: &[usize]) -> Option<u64> {
    // In `usize`, not u64: what is accepted can be addressed on this machine.
    (size::product(shape)? as u64).checked_mul(element as u64)
}
