//! The names in a checkpoint's folder, and which of these files are its configuration and its weights.

use std::path::{Path, PathBuf};

use super::MAX_INDEX_BYTES;
use super::files::{self, invalid};
use super::index::Index;
use super::names::MERGE;
use crate::error::{Error, Result};

/// Files that hold the weights of an adapter.
const ADAPTERS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The names in a checkpoint's folder.
pub(super) struct Folder<'a> {
    path: &'a Path,
    names: Vec<String>,
}

/// Where the weights are.
pub(super) enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
}

impl<'a> Folder<'a> {
    pub(super) fn list(path: &'a Path) -> Result<Self> {
        let io = |error| Error::Io { path: path.to_path_buf(), error };
        if !path.metadata().map_err(io)?.is_dir() {
            let reason = "is a file: give a .gguf, or the folder that holds config.json and the weights";
            return Err(invalid(path, reason));
        }
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(io)? {
            // All names that we look for are UTF-8.
            names.extend(entry.map_err(io)?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(Folder { path, names })
    }

    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        self.names.iter().any(|found| found == name).then(|| self.path.join(name))
    }

    pub(super) fn with_extension(&self, extension: &str) -> Vec<&str> {
        let names = self.names.iter().map(String::as_str);
        names.filter(|name| Path::new(name).extension().is_some_and(|found| found == extension)).collect()
    }

    /// Refuse a folder with only an adapter, which lacks the weights that it modifies, and a model with an adapter,
    /// which would be run without it.
    pub(super) fn refuse_adapter(&self) -> Result<()> {
        let Some(file) = ADAPTERS.iter().find_map(|name| self.file(name)) else { return Ok(()) };
        let reason = match self.weights() {
            Ok(Weights::Single(weights)) if weights == file => MERGE.to_owned(),
            Err(_) => MERGE.to_owned(),
            Ok(_) => format!("{MERGE}, or move the adapter's files away to run the model without it"),
        };
        Err(Error::unsupported(format!("the adapter {}", file.display()), reason))
    }

    pub(super) fn config_json(&self) -> Result<PathBuf> {
        match self.file("config.json") {
            Some(file) => Ok(file),
            None => Err(self.lacks("config.json")),
        }
    }

    pub(super) fn weights(&self) -> Result<Weights> {
        if let Some(file) = self.file("model.safetensors") {
            return Ok(Weights::Single(file));
        }
        if let Some(file) = self.file("model.safetensors.index.json") {
            return Ok(Weights::Sharded(file));
        }
        match self.with_extension("safetensors").as_slice() {
            [] => Err(self.lacks("model.safetensors, model.safetensors.index.json or another *.safetensors")),
            [only] => Ok(Weights::Single(self.path.join(only))),
            several => Err(invalid(
                self.path,
                format!(
                    "has {} *.safetensors but neither model.safetensors nor model.safetensors.index.json to select one",
                    several.len()
                ),
            )),
        }
    }

    /// Whether a safetensors model is here with all its files.
    pub(super) fn has_whole_safetensors(&self) -> bool {
        let shards_are_here = |index_path: &Path| {
            let text = files::read_text(index_path, MAX_INDEX_BYTES);
            let index = text.and_then(|text| Index::parse(index_path, &text));
            index.is_ok_and(|index| index.shards().iter().all(|shard| self.file(shard).is_some()))
        };
        self.file("config.json").is_some()
            && match self.weights() {
                Ok(Weights::Single(_)) => true,
                Ok(Weights::Sharded(index_path)) => shards_are_here(&index_path),
                Err(_) => false,
            }
    }

    fn lacks(&self, wanted: &str) -> Error {
        let found = match self.names.as_slice() {
            [] => "the folder is empty".to_owned(),
            names => {
                let shown: Vec<_> = names.iter().take(8).map(String::as_str).collect();
                format!("found {}{}", shown.join(", "), if names.len() > shown.len() { ", ..." } else { "" })
            }
        };
        invalid(self.path, format!("not a checkpoint: no {wanted}, and no *.gguf; {found}"))
    }
}
