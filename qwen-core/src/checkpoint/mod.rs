//! A checkpoint on disk: its configuration, and its tensors by name.
//!
//! Here: finding the files of a folder, reading headers, and returning each tensor as bytes with a type and a shape.
//! Opening reads headers only, whatever the size of the model (except for the head of a model that is configured as
//! tied, which is compared with the embedding table). Not here: which tensors a model needs (the model asks for each by
//! shape) and what a backend packs them into.
//!
//! # Files that change
//! Weights are read from the open files while a model is loaded, and never afterwards. A file that another process
//! replaces by renaming, or deletes, stays readable until the checkpoint is dropped. Truncating one gives [`Error::Io`]
//! with the tensor, the offset and the missing bytes. Overwriting one in place gives a mixture of both contents, which
//! nothing can detect: replace checkpoints by renaming, as download tools do.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod assemble;
pub mod config;
mod contradictions;
mod files;
mod folder;
pub mod generation_config;
pub mod gguf;
mod header;
mod index;
mod json;
mod lora;
mod names;
mod packed;
mod samples;
mod shard;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::{Config, RopeScaling};
pub use generation_config::GenerationConfig;
pub use header::{Header, TensorInfo};
pub use index::Index;
pub use lora::{LoraCheckpoint, LoraConfig, LoraHalf, LoraModule, MAX_LORA_RANK};

use crate::backend::{MatrixPart, ReadBytes};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;
use crate::warning::Warning;
use assemble::Promises;
use config::Quantization;
use folder::Folder;
use packed::Packed;
use shard::Shard;

/// The size limit of an index: ten times that of the largest model.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// An open checkpoint.
///
/// ```no_run
/// use qwen_core::Checkpoint;
///
/// let checkpoint = Checkpoint::open("Qwen2.5-0.5B-Instruct")?;
/// let hidden_size = checkpoint.config().hidden_size;
/// let norm = checkpoint.tensor_of_shape("model.norm.weight", &[hidden_size])?;
/// println!("{} in {}: {:?}", norm.encoding, norm.file.display(), norm.to_f32());
/// # Ok::<(), qwen_core::Error>(())
/// ```
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    generation_config: GenerationConfig,
    /// File by file, in the order of their data: the order to read them in.
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
    promises: Promises,
    gguf: Option<gguf::Metadata>,
    warnings: Vec<Warning>,
}

/// A tensor and where it is stored.
struct Stored {
    shard: Arc<Shard>,
    info: TensorInfo,
    /// Whether the file is a GGUF one, with more element types.
    gguf: bool,
}

impl Stored {
    /// Its name in the file.
    fn name_in_file(&self) -> &str {
        self.info.alias.as_ref().unwrap_or(&self.info.name)
    }

    /// The element type, or the error that it is not supported.
    fn encoding(&self) -> Result<Encoding> {
        self.info.encoding().ok_or_else(|| self.mismatch(format!("element type {}", self.loadable())))
    }

    /// The element type of a tensor that must have this shape.
    fn encoding_of_shape(&self, shape: &[usize]) -> Result<Encoding> {
        match self.info.encoding() {
            Some(encoding) if self.info.shape == shape => Ok(encoding),
            _ => Err(self.mismatch(format!("{} {shape:?}", self.loadable()))),
        }
    }

    /// The supported element types in files of this kind.
    fn loadable(&self) -> String {
        match self.gguf {
            true => format!("one of {}", gguf::types::loadable()),
            false => "F32, F16 or BF16".into(),
        }
    }

    fn mismatch(&self, expected: String) -> Error {
        let found = format!("{} {:?}", self.info.dtype, self.info.shape);
        let name = self.name_in_file().to_owned();
        Error::InvalidTensor { name, path: self.shard.path().to_path_buf(), expected, found }
    }

    fn read(&self, encoding: Encoding) -> Result<Tensor<'_>> {
        let TensorInfo { name, shape, .. } = &self.info;
        Ok(Tensor { name, file: self.shard.path(), encoding, shape, data: self.read_all()? })
    }

    /// All bytes of the tensor, whatever its type.
    fn read_all(&self) -> Result<Vec<u8>> {
        let bytes = self.info.bytes();
        let refused = || Error::OutOfMemory { device: "host memory".into(), what: self.info.name.clone(), bytes };
        let len = usize::try_from(bytes).map_err(|_| refused())?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| refused())?;
        data.resize(len, 0);
        self.read_at(0, &mut data)?;
        Ok(data)
    }
}

impl ReadBytes for Stored {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let TensorInfo { name, range, .. } = &self.info;
        let within = range
            .start
            .checked_add(offset)
            .filter(|start| start.checked_add(out.len() as u64).is_some_and(|end| end <= range.end));
        let Some(start) = within else {
            let reason = format!("{} bytes at {offset} of the {} of tensor `{name}`", out.len(), self.info.bytes());
            return Err(Error::argument("offset", reason));
        };
        self.shard.read_exact_at(&format!("tensor `{name}`"), start, out)
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} `{}` in {}", self.info.dtype, self.info.shape, self.info.name, self.shard.path().display())
    }
}

/// A tensor of a [`Checkpoint`], read into memory.
#[derive(Clone)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it.
    pub file: &'a Path,
    /// The encoding of `data`.
    pub encoding: Encoding,
    /// Its dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its elements in row-major order, little-endian.
    pub data: Vec<u8>,
}

impl Tensor<'_> {
    /// Its elements, decoded exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.data.len() / self.encoding.block().bytes * self.encoding.block().values];
        self.encoding.decode_row(&self.data, &mut out);
        out
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} `{}` in {}", self.encoding, self.shape, self.name, self.file.display())
    }
}

impl Checkpoint {
    /// Open the checkpoint at `path`:
    ///
    /// - a folder with `config.json`, optionally `generation_config.json`, and `model.safetensors`, or
    ///   `model.safetensors.index.json` with its shards, or a single other `*.safetensors`;
    /// - a GGUF file, or any part of a split one;
    /// - a folder with one GGUF model, if files of the first kind are missing.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::InvalidFile`] naming the file and what is wrong with it, [`Error::InvalidConfig`] and
    /// [`Error::Unsupported`] as [`Config::from_json`], for the keys of a GGUF file too; [`Error::Unsupported`] for
    /// adapters, and for tensors that cannot be ignored without changing the results.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _float_env = FloatEnv::enter();
        let path = path.as_ref();
        if let Some(file) = gguf::locate(path)? {
            return Checkpoint::open_gguf(path, &file);
        }
        let folder = Folder::list(path)?;
        folder.refuse_adapter()?;
        let config = Config::from_file(folder.config_json()?)?;
        let generation_config = match folder.file("generation_config.json") {
            Some(file) => {
                GenerationConfig::from_file(&file).unwrap_or_else(|error| GenerationConfig::unreadable(&file, &error))
            }
            None => GenerationConfig::default(),
        };
        let mut checkpoint = Checkpoint {
            path: path.to_path_buf(),
            warnings: generation_config.warnings(),
            config,
            generation_config,
            tensors: Vec::new(),
            by_name: HashMap::new(),
            promises: Promises::default(),
            gguf: None,
        };
        checkpoint.add_weights(&folder)?;
        checkpoint.check_contradictions()?;
        // Older GPTQ checkpoints describe their packing in a separate file.
        if checkpoint.config.quantization.is_none()
            && checkpoint.tensors().any(|tensor| tensor.name.ends_with(packed::CODES))
            && let Some(file) = folder.file("quantize_config.json")
        {
            checkpoint.config.quantization = Some(Quantization::from_file(&file)?);
        }
        Ok(checkpoint)
    }

    /// The folder or the file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, or its equivalent in a GGUF file. `tie_word_embeddings` is false if the checkpoint has a head
    /// that differs from the embedding table, whatever the file says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`, or the defaults if there is none; for a GGUF file, its end tokens and sampling
    /// defaults.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Problems that did not stop the checkpoint from opening: keys without effect, wrong values, unused tensors, a
    /// head that the configuration does not mention.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Whether there is a tensor of this name, of any type.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensors of all files, in the order of their data, under their published safetensors names. Tensors of
    /// unsupported types are included.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|stored| &stored.info)
    }

    /// The tensor of this name as its file describes it, of any type.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.stored(name).map(|stored| &stored.info)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(TensorInfo::bytes).fold(0, u64::saturating_add)
    }

    /// The encoding of the tensor `name`: of its elements, or of the blocks of a matrix that GPTQ or AWQ stored in
    /// several tensors. Reads nothing from disk.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::InvalidTensor`] if its element type is not supported, or if the parts of a
    /// packed matrix do not belong together; [`Error::Unsupported`] for columns that are not whole groups;
    /// [`Error::InvalidConfig`] if nothing says how the matrix is packed.
    pub fn encoding(&self, name: &str) -> Result<Encoding> {
        match self.packed(name)? {
            Some(packed) => Ok(packed.encoding()),
            None => self.required(name)?.encoding(),
        }
    }

    /// The order in which the columns of the matrix `name` are stored, if that is not the order of its input features:
    /// GPTQ with act-order (`desc_act`). Reads four bytes a column there, and nothing elsewhere.
    ///
    /// # Errors
    /// As [`Checkpoint::encoding`]; [`Error::Io`] when the file cannot be read.
    pub fn column_order(&self, name: &str) -> Result<Option<Arc<[u32]>>> {
        self.packed(name)?.map_or(Ok(None), |packed| packed.column_order())
    }

    /// Read the tensor `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::encoding`]; [`Error::Io`] when the file cannot be read or was truncated;
    /// [`Error::OutOfMemory`] when the tensor is larger than the memory.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let stored = self.required(name)?;
        stored.read(stored.encoding()?)
    }

    /// Read the tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`Error::InvalidTensor`] with both shapes if they differ.
    pub fn tensor_of_shape(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let stored = self.required(name)?;
        stored.read(stored.encoding_of_shape(shape)?)
    }

    /// The matrix `name` of `rows` x `cols`, whose bytes are read when its rows are requested. If GPTQ or AWQ stored it
    /// in several tensors, converted rows are held as long as the part or a cut of it.
    ///
    /// # Errors
    /// As [`Checkpoint::encoding`], and [`Error::InvalidTensor`] with both shapes if they differ.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        if let Some(packed) = self.packed(name)? {
            return packed.matrix(rows, cols);
        }
        let stored = self.required(name)?;
        MatrixPart::stored(stored.encoding_of_shape(&[rows, cols])?, rows, cols, stored)
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    fn required(&self, name: &str) -> Result<&Stored> {
        match (self.stored(name), self.packed(name)?) {
            (Some(stored), _) => Ok(stored),
            (None, Some(packed)) => Err(packed.not_a_tensor(name)),
            (None, None) => {
                let in_file = self.gguf.as_ref().and_then(|_| gguf::names::gguf(name));
                let (path, instead) = (self.path.clone(), self.instead_of(name));
                Err(Error::MissingTensor { name: in_file.unwrap_or_else(|| name.into()), path, instead })
            }
        }
    }

    /// The matrix `name`, if it is stored in several tensors.
    fn packed(&self, name: &str) -> Result<Option<Packed<'_>>> {
        match self.stored(name) {
            Some(_) => Ok(None),
            None => Packed::find(name, self.config.quantization.as_ref(), &self.path, |name| self.stored(name)),
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, bytes) = (self.tensors.len(), self.total_bytes());
        write!(f, "Checkpoint at {}: {tensors} tensors of {bytes} bytes", self.path.display())
    }
}
