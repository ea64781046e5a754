//! Assembles the weights files of a folder to one checkpoint: which files are read, and which of two tensors of one
//! name is used.
//!
//! It follows transformers, with which people test their files: the index decides which file a tensor is read from, and
//! only the tensors that the model needs have to exist.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{self, invalid};
use super::folder::{Folder, Weights};
use super::header::Header;
use super::index::Index;
use super::names::{self, Use};
use super::shard::Shard;
use super::{Checkpoint, MAX_INDEX_BYTES, Stored};
use crate::error::Result;
use crate::warning::Warning;

/// What an index says: the file of each tensor, by the tensor's name in the files.
#[derive(Default)]
pub(super) struct Promises(HashMap<String, String>);

impl Promises {
    /// The file that the index has for `name`, a name in the files or a published one.
    pub(super) fn file(&self, name: &str) -> Option<&str> {
        let by_published = || {
            let mut pairs = self.0.iter();
            pairs.find(|(stored, _)| names::published_name(stored).as_deref() == Some(name)).map(|(_, file)| file)
        };
        self.0.get(name).or_else(by_published).map(String::as_str)
    }
}

impl Checkpoint {
    /// Add the tensors of the folder's weights files.
    pub(super) fn add_weights(&mut self, folder: &Folder<'_>) -> Result<()> {
        let mut twice = Vec::new();
        match folder.weights()? {
            Weights::Single(file) => self.add_file(file, &mut twice)?,
            Weights::Sharded(index_path) => self.add_shards(folder, &index_path, &mut twice)?,
        }
        if !twice.is_empty() {
            twice.sort_unstable();
            twice.dedup();
            self.warnings.push(Warning::DuplicateTensors { path: self.path.clone(), names: twice });
        }
        Ok(())
    }

    fn add_shards(&mut self, folder: &Folder<'_>, index_path: &Path, twice: &mut Vec<String>) -> Result<()> {
        let index = Index::parse(index_path, &files::read_text(index_path, MAX_INDEX_BYTES)?)?;
        let shards: Vec<String> = index.shards().into_iter().map(str::to_owned).collect();
        self.promises = Promises(index.weight_map.into_iter().collect());
        let mut missing = Vec::new();
        for shard in shards {
            match folder.file(&shard) {
                Some(file) => self.add_file(file, twice)?,
                None => missing.push(shard),
            }
        }
        for shard in missing {
            // A missing file matters only if the model needs one of its tensors; a tied model does not need the head.
            let is_missed = |name: &str| {
                let name = names::published_name(name).unwrap_or_else(|| name.to_owned());
                !self.has(&name) && names::meaning(&name, &self.config) == Use::Needed
            };
            if self.promises.0.iter().any(|(name, file)| *file == shard && is_missed(name)) {
                return Err(invalid(index_path, format!("names the shard `{shard}`, which is not in the folder")));
            }
            self.warnings.push(Warning::MissingShard { path: index_path.to_path_buf(), shard });
        }
        Ok(())
    }

    /// Add the tensors of a file. `twice` takes the names of those that an earlier file has as well.
    fn add_file(&mut self, path: PathBuf, twice: &mut Vec<String>) -> Result<()> {
        let shard = Arc::new(Shard::open(path)?);
        for info in Header::read(&shard)?.tensors {
            self.add(Stored { shard: shard.clone(), info: names::published(info), gguf: false }, twice)?;
        }
        Ok(())
    }

    fn add(&mut self, mut stored: Stored, twice: &mut Vec<String>) -> Result<()> {
        let Some(at) = self.by_name.get(&stored.info.name).copied() else {
            self.by_name.insert(stored.info.name.clone(), self.tensors.len());
            self.tensors.push(stored);
            return Ok(());
        };
        let Some(other) = self.tensors.get_mut(at) else { return Ok(()) };
        if stored.name_in_file() == other.name_in_file() {
            let name = stored.name_in_file();
            twice.push(name.to_owned());
            let promised = self.promises.0.get(name).map(|file| self.path.join(file));
            if promised.is_none_or(|file| file != other.shard.path()) {
                *other = stored;
            }
            return Ok(());
        }
        // If two tensors mean the same, the one with the published name is used, and the other one is not.
        match (&stored.info.alias, &other.info.alias) {
            (Some(_), Some(_)) => {
                let (one, two) = (other.name_in_file(), stored.name_in_file());
                let reason = format!("`{two}` and `{one}` both mean `{}`: keep one of them", stored.info.name);
                return Err(invalid(stored.shard.path(), reason));
            }
            (None, _) => std::mem::swap(other, &mut stored),
            (Some(_), None) => {}
        }
        if let Some(alias) = stored.info.alias.take() {
            stored.info.name = alias;
            self.add(stored, twice)?;
        }
        Ok(())
    }
}
