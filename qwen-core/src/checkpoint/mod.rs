//! A checkpoint on disk: its configuration, and its tensors by name.
//!
//! What lives here: finding the files of a folder, reading headers, and handing out each tensor as bytes with a type and
//! a shape. Opening reads headers only, whatever the size of the model. Not here: which tensors a model needs (the model
//! asks for each by shape) and what a backend packs them into.
//!
//! # Files that change
//! Weights are read from the open files while a model is loaded, and never afterwards. A file that another process
//! replaces by renaming, or deletes, stays readable until the checkpoint is dropped. One that is cut short gives
//! [`Error::Io`] with the tensor, the offset and the missing bytes. One that is overwritten in place gives a mixture of
//! both contents, which nothing can detect: replace checkpoints by renaming, as the tools that download them do.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod config;
mod files;
pub mod generation_config;
pub mod gguf;
mod header;
mod index;
mod json;
mod packed;
mod shard;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::{Config, RopeScaling};
pub use generation_config::GenerationConfig;
pub use header::{Header, TensorInfo};
pub use index::Index;

use crate::backend::{MatrixPart, ReadBytes};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;
use config::Quantization;
use files::invalid;
use packed::Packed;
use shard::Shard;

/// The most bytes of an index that are read: names of ten times the tensors of the largest model.
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
    /// File by file, in the order in which they lie there: the order to read them in.
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
    gguf: Option<gguf::Metadata>,
}

/// A tensor where it lies.
struct Stored {
    shard: Arc<Shard>,
    info: TensorInfo,
}

impl Stored {
    /// The element type, or the error that models are not run from this one.
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

    /// The element types that models are run from in files of this kind.
    fn loadable(&self) -> String {
        match self.info.alias {
            Some(_) => format!("one of {}", gguf::types::loadable()),
            None => "F32, F16 or BF16".into(),
        }
    }

    fn mismatch(&self, expected: String) -> Error {
        let found = format!("{} {:?}", self.info.dtype, self.info.shape);
        let name = self.info.alias.as_ref().unwrap_or(&self.info.name).clone();
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
    /// How `data` is encoded.
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
    /// - a GGUF file, or any part of one that is split;
    /// - a folder with one GGUF model, which lacks the files of the first kind or some of them.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::InvalidFile`] naming the file and what is wrong with it, [`Error::MissingTensor`] if a
    /// shard lacks what the index promises, [`Error::InvalidConfig`] and [`Error::Unsupported`] as [`Config::from_json`],
    /// for the keys of a GGUF file too.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _float_env = FloatEnv::enter();
        let path = path.as_ref();
        if let Some(file) = gguf::locate(path)? {
            return Checkpoint::open_gguf(path, &file);
        }
        let folder = Folder::list(path)?;
        let config = Config::from_file(folder.config_json()?)?;
        let generation_config = match folder.file("generation_config.json") {
            Some(file) => GenerationConfig::from_file(file)?,
            None => GenerationConfig::default(),
        };
        let mut checkpoint = Checkpoint {
            path: path.to_path_buf(),
            config,
            generation_config,
            tensors: Vec::new(),
            by_name: HashMap::new(),
            gguf: None,
        };
        match folder.weights()? {
            Weights::Single(file) => checkpoint.add_file(file)?,
            Weights::Sharded(index_path) => checkpoint.add_shards(&folder, &index_path)?,
        }
        // Older GPTQ checkpoints say in a file of its own how they are packed.
        if checkpoint.config.quantization.is_none()
            && checkpoint.tensors().any(|tensor| tensor.name.ends_with(packed::CODES))
            && let Some(file) = folder.file("quantize_config.json")
        {
            checkpoint.config.quantization = Some(Quantization::from_file(&file)?);
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let shard = Arc::new(Shard::open(path)?);
        for info in Header::read(&shard)?.tensors {
            // No header names a tensor twice, so the other one is in another shard.
            if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                let reason = format!("tensor `{}` is in another shard as well", info.name);
                return Err(invalid(shard.path(), reason));
            }
            self.tensors.push(Stored { shard: shard.clone(), info });
        }
        Ok(())
    }

    fn add_shards(&mut self, folder: &Folder<'_>, index_path: &Path) -> Result<()> {
        let index = Index::parse(index_path, &files::read_text(index_path, MAX_INDEX_BYTES)?)?;
        for shard in index.shards() {
            let Some(file) = folder.file(shard) else {
                return Err(invalid(index_path, format!("names the shard `{shard}`, which is not in the folder")));
            };
            self.add_file(file)?;
        }
        for (tensor, shard) in index.weight_map {
            let shard = self.path.join(shard);
            match self.stored(&tensor) {
                Some(stored) if stored.shard.path() == shard => {}
                _ => return Err(Error::MissingTensor { name: tensor, path: shard }),
            }
        }
        Ok(())
    }

    /// The folder or the file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, or what a GGUF file has in its place.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`, or the defaults if there is none; of a GGUF file its end tokens and its advice on
    /// sampling.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Whether there is a tensor of this name, of whatever type.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensors of all files, in the order in which they lie there, by the names of published safetensors checkpoints.
    /// Those of types that no model here is run from are listed too.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|stored| &stored.info)
    }

    /// The tensor of this name as its file describes it, of whatever type.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.stored(name).map(|stored| &stored.info)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(TensorInfo::bytes).fold(0, u64::saturating_add)
    }

    /// How the values of the tensor `name` are encoded: its elements, or the blocks of a matrix that GPTQ or AWQ stored
    /// in several tensors. Reads nothing.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::InvalidTensor`] if its elements are of a type that models are not run from, or
    /// if the parts of a packed matrix do not belong together; [`Error::Unsupported`] for columns that are no whole
    /// groups; [`Error::InvalidConfig`] if nothing says how the matrix is packed.
    pub fn encoding(&self, name: &str) -> Result<Encoding> {
        match self.packed(name)? {
            Some(packed) => Ok(packed.encoding()),
            None => self.required(name)?.encoding(),
        }
    }

    /// Read the tensor `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::encoding`]; [`Error::Io`] when the file cannot be read or has become shorter;
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

    /// The matrix `name` of `rows` x `cols`, whose bytes are read when somebody asks for its rows. Of a matrix that GPTQ
    /// or AWQ stored in several tensors, converted rows are held as long as the part or a cut of it.
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
                Err(Error::MissingTensor { name: in_file.unwrap_or_else(|| name.into()), path: self.path.clone() })
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

/// The names in a checkpoint's folder.
struct Folder<'a> {
    path: &'a Path,
    names: Vec<String>,
}

enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
}

impl<'a> Folder<'a> {
    fn list(path: &'a Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        if !path.metadata().map_err(io)?.is_dir() {
            let reason = "is a file: give a .gguf, or the folder that holds config.json and the weights";
            return Err(invalid(path, reason));
        }
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(io)? {
            // No name that we look for is anything but UTF-8.
            names.extend(entry.map_err(io)?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(Folder { path, names })
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.names.iter().any(|found| found == name).then(|| self.path.join(name))
    }

    fn with_extension(&self, extension: &str) -> Vec<&str> {
        let names = self.names.iter().map(String::as_str);
        names.filter(|name| Path::new(name).extension().is_some_and(|found| found == extension)).collect()
    }

    fn config_json(&self) -> Result<PathBuf> {
        match self.file("config.json") {
            Some(file) => Ok(file),
            None => Err(self.lacks("config.json")),
        }
    }

    fn weights(&self) -> Result<Weights> {
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
                    "has {} *.safetensors but neither model.safetensors nor model.safetensors.index.json to choose by",
                    several.len()
                ),
            )),
        }
    }

    /// Whether a model in safetensors is here with all its files.
    fn has_whole_safetensors(&self) -> bool {
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
