//! GGUF: one file, or a few, that hold a whole model.
//!
//! Here: the header of a file ([`Header`]), its metadata ([`Metadata`]), the files of a split model, a [`Checkpoint`]
//! made of them (the same as any other, with its tensors under their published names), and writing such a file
//! ([`GgufWriter`]). Not here: the block encodings ([`crate::numerics::encoding`]), and the vocabulary in the metadata
//! (the text layer).
//!
//! Reading a header never reads a tensor. Every size in a header is compared with the length of the file and with a
//! memory budget before anything is allocated for it.

mod config;
mod describe;
mod header;
mod metadata;
pub(crate) mod names;
mod parts;
mod reader;
mod strings;
pub(super) mod types;
mod write;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub use describe::describe;
pub use header::Header;
pub use metadata::{Array, Metadata, Value};
pub(super) use parts::locate;
pub use parts::metadata;
pub use strings::Strings;
pub use write::{GgufWriter, NewTensor};

use super::files::invalid;
use super::header::TensorInfo;
use super::shard::Shard;
use super::{Checkpoint, Promises, Stored};
use crate::error::{Error, Result};

impl Checkpoint {
    /// Open the GGUF model of which `file` is the whole or a part; `path` is the caller's path.
    pub(super) fn open_gguf(path: &Path, file: &Path) -> Result<Self> {
        let mut parts = parts::open(file)?;
        let metadata = parts.first_mut().map(|first| std::mem::take(&mut first.header.metadata)).unwrap_or_default();
        let layers = config::layers(file, &metadata)?;
        let (mut tensors, mut by_name) = (Vec::new(), HashMap::new());
        for parts::Part { shard, header } in parts {
            let shard = Arc::new(shard);
            for info in header.tensors {
                let name = names::published(&info.name, layers).ok_or_else(|| unknown(&shard, &info, layers))?;
                if by_name.insert(name.clone(), tensors.len()).is_some() {
                    let reason = format!("tensor `{}` is in another part of the model as well", info.name);
                    return Err(invalid(shard.path(), reason));
                }
                let info = TensorInfo { alias: Some(info.name), name, ..info };
                tensors.push(Stored { shard: shard.clone(), info, gguf: true });
            }
        }
        let table = by_name.get(names::EMBED_TOKENS).and_then(|index| tensors.get(*index));
        let rows = match table.map(|table| (table, table.info.shape.as_slice())) {
            None => None,
            Some((_, [rows, _])) => Some(*rows),
            Some((table, _)) => return Err(table.mismatch("a matrix".into())),
        };
        // An output matrix in the file is used, even for models that are normally tied.
        let tied = !by_name.contains_key(names::LM_HEAD);
        let generation_config = config::generation_config(file, &metadata)?;
        Ok(Checkpoint {
            path: path.to_path_buf(),
            config: config::config(file, &metadata, rows, tied)?,
            warnings: generation_config.warnings(),
            generation_config,
            tensors,
            by_name,
            promises: Promises::default(),
            gguf: Some(metadata),
        })
    }

    /// The metadata of a GGUF model, with its vocabulary and its chat template; `None` for other checkpoints.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }
}

/// The error for a tensor that the model does not use: ignoring it would silently change what the file means.
fn unknown(shard: &Shard, info: &TensorInfo, layers: usize) -> Error {
    let what = format!("tensor `{}` ({})", reader::shown(&info.name), shard.path().display());
    let reason = format!(
        "a Qwen2.5 of {layers} layers has none of this name, and ignoring it would change the results: the file is of \
         another model or modified, use one that was converted from a plain Qwen2.5"
    );
    Error::unsupported(what, reason)
}
