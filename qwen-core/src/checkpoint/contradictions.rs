//! Tensors that contradict the configuration: unused ones, ones that would change the results if they were ignored, and
//! a head in a model that is configured as tied.
//!
//! What would change the results is refused by name; the rest is a [`Warning`]. GGUF files have their own rules
//! (`gguf/mod.rs`).

use super::gguf::names::{EMBED_TOKENS, LM_HEAD};
use super::names::{self, MERGE, Use};
use super::packed::CODES;
use super::{Checkpoint, Stored};
use crate::backend::ReadBytes;
use crate::error::{Error, Result};
use crate::warning::Warning;

/// Bytes of two tensors to compare at a time.
const CHUNK: usize = 1 << 20;

impl Checkpoint {
    /// Compare the tensors with the configuration, once all are known.
    pub(super) fn check_contradictions(&mut self) -> Result<()> {
        let has_equal_head = self.settle_head()?;
        let mut unused = Vec::new();
        for stored in &self.tensors {
            let name = &stored.info.name;
            match names::meaning(name, &self.config) {
                Use::Needed | Use::Derived => {}
                Use::Bias if stored.is_zero()? => {}
                Use::Unknown if has_equal_head && name == LM_HEAD => {}
                Use::Unknown => unused.push(stored.name_in_file().to_owned()),
                Use::Bias => {
                    return Err(stored.refuse("a non-zero bias that Qwen2.5 does not have"));
                }
                Use::HeadNorm => {
                    return Err(stored.refuse("a norm of queries or keys, which Qwen3 has and Qwen2.5 does not"));
                }
                Use::Adapter => return Err(stored.refuse_adapter()),
            }
        }
        if !unused.is_empty() {
            self.warnings.push(Warning::UnusedTensors { path: self.path.clone(), names: unused });
        }
        Ok(())
    }

    /// Use the head of a model that is configured as tied, if it has one that differs from the embedding table.
    /// Whether it has one that is equal to the table.
    fn settle_head(&mut self) -> Result<bool> {
        if !self.config.tie_word_embeddings {
            return Ok(false);
        }
        let packed = self.stored(&format!("lm_head{CODES}"));
        let Some(head) = self.stored(LM_HEAD).or(packed) else { return Ok(false) };
        if let Some(table) = self.stored(EMBED_TOKENS)
            && head.equals(table)?
        {
            return Ok(true);
        }
        let (path, name) = (head.shard.path().to_path_buf(), head.name_in_file().to_owned());
        self.warnings.push(Warning::UntiedHead { path, name });
        self.config.tie_word_embeddings = false;
        Ok(false)
    }

    /// What the files have instead of the tensor `name`, as a clause for an error; empty if there is nothing useful to
    /// say.
    pub(super) fn instead_of(&self, name: &str) -> String {
        if let Some(file) = self.promises.file(name) {
            return format!(": according to the index it is in `{file}`, which lacks it; download that file again");
        }
        if name == LM_HEAD && self.gguf.is_none() {
            return ": config.json says that the head is not the embedding table (`tie_word_embeddings` is false or \
                    absent); in the file of a model that ties both it is true"
                .into();
        }
        let unused = |stored: &&Stored| names::meaning(&stored.info.name, &self.config) == Use::Unknown;
        let others: Vec<String> =
            self.tensors.iter().filter(unused).map(|stored| stored.name_in_file().to_owned()).collect();
        match others.is_empty() || self.gguf.is_some() {
            true => String::new(),
            false => format!(
                ": it has these names, which are not Qwen2's: {}; the checkpoint is of another model, or was saved by \
                 a program with names of its own",
                crate::warning::listed(&others)
            ),
        }
    }
}

impl Stored {
    /// Whether every value is 0.
    fn is_zero(&self) -> Result<bool> {
        let encoding = self.info.encoding().filter(|encoding| encoding.block().values == 1);
        self.all_chunks(|_, chunk| {
            let Some(encoding) = encoding else { return Ok(chunk.iter().all(|byte| *byte == 0)) };
            // Zeros of either sign count.
            let mut values = vec![0.0_f32; chunk.len() / encoding.block().bytes];
            encoding.decode_row(chunk, &mut values);
            Ok(values.iter().all(|value| *value == 0.0))
        })
    }

    /// Whether the values are those of `other`, bit for bit.
    fn equals(&self, other: &Stored) -> Result<bool> {
        if (&self.info.dtype, &self.info.shape) != (&other.info.dtype, &other.info.shape) {
            return self.equals_decoded(other);
        }
        let mut theirs = Vec::new();
        self.all_chunks(|at, chunk| {
            theirs.resize(chunk.len(), 0);
            ReadBytes::read_at(other, at, &mut theirs)?;
            Ok(chunk == theirs)
        })
    }

    /// As [`Stored::equals`], for values of different types: a head saved in f32 often still equals the table.
    fn equals_decoded(&self, other: &Stored) -> Result<bool> {
        let (Some(own), Some(their)) = (self.info.encoding(), other.info.encoding()) else { return Ok(false) };
        let (own_bytes, their_bytes) = (own.block().bytes, their.block().bytes);
        if self.info.shape != other.info.shape || own.block().values != 1 || their.block().values != 1 {
            return Ok(false);
        }
        let mut theirs = Vec::new();
        self.all_chunks(|at, chunk| {
            let values = chunk.len() / own_bytes;
            theirs.resize(values * their_bytes, 0);
            ReadBytes::read_at(other, at / own_bytes as u64 * their_bytes as u64, &mut theirs)?;
            let (mut left, mut right) = (vec![0.0_f32; values], vec![0.0_f32; values]);
            own.decode_row(chunk, &mut left);
            their.decode_row(&theirs, &mut right);
            Ok(left == right)
        })
    }

    /// Whether `holds` is true for each piece of the tensor's bytes, given with its offset.
    fn all_chunks(&self, mut holds: impl FnMut(u64, &[u8]) -> Result<bool>) -> Result<bool> {
        let (bytes, mut at) = (self.info.bytes(), 0);
        let mut chunk = Vec::new();
        while at < bytes {
            let len = (bytes - at).min(CHUNK as u64);
            chunk.resize(len as usize, 0);
            ReadBytes::read_at(self, at, &mut chunk)?;
            if !holds(at, &chunk)? {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// The error that ignoring this tensor would change the results.
    fn refuse(&self, what: &str) -> Error {
        let reason = "ignoring it would change the results: the checkpoint is of another model or modified, use one of \
                      a plain Qwen2.5";
        Error::unsupported(format!("`{}` in {}, {what},", self.name_in_file(), self.shard.path().display()), reason)
    }

    fn refuse_adapter(&self) -> Error {
        let what = format!("`{}` in {}, a part of an adapter,", self.name_in_file(), self.shard.path().display());
        Error::unsupported(what, MERGE)
    }
}
