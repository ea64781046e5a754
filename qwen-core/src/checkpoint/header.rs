//! The header of a safetensors file: eight bytes of length, then JSON that says where each tensor lies.
//!
//! The parser is our own because an error must name the tensor and the figures; the `safetensors` crate, against which
//! the tests compare it, reports neither, keeps one of two tensors with the same name, and refuses a whole file for an
//! element type that it does not know.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use crate::dtype::Encoding;
use crate::error::{Error, Result};
use crate::json::{Entries, invalid};

/// The limit of the format's own implementation. Published headers stay below a megabyte.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor as a header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type as the file writes it: `BF16`, `I32`, ...
    pub dtype: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes lie within the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The element type, if it is one that models can be run from.
    pub fn encoding(&self) -> Option<Encoding> {
        match self.dtype.as_str() {
            "F32" => Some(Encoding::F32),
            "F16" => Some(Encoding::F16),
            "BF16" => Some(Encoding::Bf16),
            _ => None,
        }
    }

    /// Bytes that it takes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// A parsed header: every tensor lies within the file, none overlaps another, and no byte is left over.
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
    /// The tensors in the order in which they lie in the file.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// Parse the header of `file`, the bytes of the whole file. `path` is only for errors. The tensors' bytes are not
    /// touched.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] with the name of the tensor at fault.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            let reason = format!("has {} bytes: a safetensors file begins with 8 bytes of header length", file.len());
            return Err(invalid(path, reason));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES {
            return Err(invalid(path, format!("states a header of {length} bytes: not a safetensors file")));
        }
        let Some((header, data)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
            let reason = format!("states a header of {length} bytes but has {} in all: it is truncated", file.len());
            return Err(invalid(path, reason));
        };
        let Entries(entries) = serde_json::from_slice::<Entries<Entry>>(header)
            .map_err(|error| invalid(path, format!("the header is malformed: {error}")))?;
        let tensors = place(path, entries, file.len() - data.len(), data.len())?;
        Ok(Header { tensors })
    }
}

/// What the JSON holds for each tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// Counted from the end of the header.
    data_offsets: (usize, usize),
}

/// Check that the entries fill the `available` bytes behind `data_start` exactly, in the order of their offsets.
fn place(
    path: &Path,
    mut entries: Vec<(String, Entry)>,
    data_start: usize,
    available: usize,
) -> Result<Vec<TensorInfo>> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(entries.len());
    let mut filled = 0;
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in entries {
        let fault =
            |what: String| Err(tensor_fault(path, &name, &format!("bytes {start} to {end} of the data {what}")));
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
            return fault(format!("leave a hole of {} bytes before them", start - filled));
        }
        match bytes_of(&dtype, &shape) {
            Some(Ok(bytes)) if bytes == end - start => {}
            // Of a type that we do not know the bytes cannot be checked; nor can they be used.
            None => {}
            Some(Ok(bytes)) => return fault(format!("are not the {bytes} of a {dtype} of shape {shape:?}")),
            Some(Err(())) => return fault(format!("cannot hold a {dtype} of shape {shape:?}: its size overflows")),
        }
        filled = end;
        tensors.push(TensorInfo { name, dtype, shape, range: data_start + start..data_start + end });
    }
    if filled < available {
        return Err(invalid(path, format!("has {} bytes that belong to no tensor at its end", available - filled)));
    }
    Ok(tensors)
}

/// Bytes of a tensor; `None` for an unknown element type, an error where the product overflows or is no whole number.
fn bytes_of(dtype: &str, shape: &[usize]) -> Option<std::result::Result<usize, ()>> {
    let bits = match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    };
    let bits =
        shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).and_then(|n| n.checked_mul(bits));
    Some(bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8).ok_or(()))
}

fn tensor_fault(path: &Path, name: &str, reason: &str) -> Error {
    invalid(path, format!("tensor `{name}`: {reason}"))
}
