//! `model.safetensors.index.json`: which shard of a checkpoint holds which tensor.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::checkpoint::files::invalid;
use crate::checkpoint::json::Entries;
use crate::error::{Error, Result};

/// A parsed index. Its shards are plain names of files in the same folder.
///
/// ```
/// use std::path::Path;
/// use qwen_core::checkpoint::Index;
///
/// let path = Path::new("model.safetensors.index.json");
/// let index = Index::parse(path, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#)?;
/// assert_eq!(index.shards(), ["1.safetensors", "2.safetensors"]);
/// assert!(Index::parse(path, r#"{"weight_map": {"a": "../../secret"}}"#).is_err());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Index {
    /// The name of each tensor with the name of its shard, in the file's order.
    pub weight_map: Vec<(String, String)>,
}

impl Index {
    /// Parse the text of an index. `path` is only for errors.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if it is not an index, [`Error::InvalidConfig`] with the tensor's key if a shard is not a
    /// plain file name.
    pub fn parse(path: &Path, json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            weight_map: Entries<String>,
        }
        let File { weight_map: Entries(mut weight_map) } =
            serde_json::from_str(json).map_err(|error| invalid(path, format!("not an index of shards: {error}")))?;
        // `./` means the folder itself.
        for (_, shard) in &mut weight_map {
            if let Some(plain) = shard.strip_prefix("./") {
                *shard = plain.to_owned();
            }
        }
        if weight_map.is_empty() {
            return Err(invalid(path, "`weight_map` is empty: it names no shard"));
        }
        match weight_map.iter().find(|(_, shard)| !is_plain_file_name(shard)) {
            None => Ok(Index { weight_map }),
            Some((tensor, shard)) => Err(Error::InvalidConfig {
                path: path.to_path_buf(),
                key: format!("weight_map.{tensor}"),
                reason: format!("{shard:?} is not the plain name of a file in the same folder"),
            }),
        }
    }

    /// The shards, each once, sorted by name.
    pub fn shards(&self) -> Vec<&str> {
        let shards: BTreeSet<&str> = self.weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
        shards.into_iter().collect()
    }
}

/// Whether `name` can only mean a file in the same folder, on every system: an index is untrusted and must not refer to
/// files elsewhere. `:` would be a drive or a stream on Windows.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', ':', '\0'])
}
