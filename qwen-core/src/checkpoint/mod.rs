//! A checkpoint on disk: its configuration, and its tensors by name.
//!
//! What lives here: finding the files of a folder, mapping them into memory, and handing out each tensor as bytes with a
//! type and a shape. Opening reads headers alone, whatever the size of the model. Not here: which tensors a model needs
//! (the model asks for each by shape) and what a backend packs them into.
//!
//! # Files that change
//! The weights are memory maps. Should another process write to a mapped file, the tensors change underneath; should it
//! cut the file short, the operating system ends this process at the next touch of the lost pages (`SIGBUS`). No library
//! that maps files can prevent it. Replace a checkpoint by renaming a new file over the old one, which leaves the map
//! intact, as the tools that download checkpoints do.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod header;
mod index;
mod mapped;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use header::{Header, TensorInfo};
pub use index::Index;

use crate::config::Config;
use crate::dtype::Encoding;
use crate::error::{Error, Result};
use crate::float_env::FloatEnv;
use crate::generation_config::GenerationConfig;
use crate::json::{self, invalid};
use mapped::MappedFile;

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
    files: Vec<MappedFile>,
    /// File by file, in the order in which they lie there: the order to read them in.
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
}

struct Stored {
    file: usize,
    info: TensorInfo,
}

/// A tensor of a [`Checkpoint`].
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it.
    pub file: &'a Path,
    /// How `data` is encoded.
    pub encoding: Encoding,
    /// Its dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its elements in row-major order, little-endian, at any alignment.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Its elements, decoded exactly. For the small ones: norms and biases.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.encoding.decode(self.data, &mut out);
        out
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} `{}` in {}", self.encoding, self.shape, self.name, self.file.display())
    }
}

impl Checkpoint {
    /// Open the checkpoint in folder `path`: `config.json`, optionally `generation_config.json`, and `model.safetensors`,
    /// or `model.safetensors.index.json` with its shards, or a single other `*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::InvalidFile`] naming the file and what is wrong with it, [`Error::MissingTensor`] if a
    /// shard lacks what the index promises, and the errors of [`Config::from_json`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _float_env = FloatEnv::enter();
        let path = path.as_ref();
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
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        };
        match folder.weights()? {
            Weights::Single(file) => checkpoint.add_file(file)?,
            Weights::Sharded(index_path) => checkpoint.add_shards(&folder, &index_path)?,
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let file = MappedFile::open(path)?;
        let header = Header::parse(file.path(), file.bytes())?;
        for info in header.tensors {
            // Within a file the header has seen to it, so the other one is in another shard.
            if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                let reason = format!("tensor `{}` is in another shard as well", info.name);
                return Err(invalid(file.path(), reason));
            }
            self.tensors.push(Stored { file: self.files.len(), info });
        }
        self.files.push(file);
        Ok(())
    }

    fn add_shards(&mut self, folder: &Folder<'_>, index_path: &Path) -> Result<()> {
        let index = Index::parse(index_path, &json::read(index_path)?)?;
        for shard in index.shards() {
            let Some(file) = folder.file(shard) else {
                return Err(invalid(index_path, format!("names the shard `{shard}`, which is not in the folder")));
            };
            self.add_file(file)?;
        }
        for (tensor, shard) in index.weight_map {
            let shard = self.path.join(shard);
            match self.stored(&tensor) {
                Some((file, _)) if file.path() == shard => {}
                _ => return Err(Error::MissingTensor { name: tensor, path: shard }),
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`, or the defaults if there is none.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Whether there is a tensor of this name, of whatever type.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensors of all files, in the order in which they lie there. Those of types that no model here is run from are
    /// listed too.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|stored| &stored.info)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|info| info.bytes() as u64).sum()
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::InvalidTensor`] if its elements are of a type that models are not run from.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let (file, info) = self.required(name)?;
        let Some(encoding) = info.encoding() else {
            return Err(mismatch(file, info, "element type F32, F16 or BF16".into()));
        };
        self.view(file, info, encoding)
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`Error::InvalidTensor`] with both shapes if they differ.
    pub fn tensor_of_shape(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let (file, info) = self.required(name)?;
        match info.encoding() {
            Some(encoding) if info.shape == shape => self.view(file, info, encoding),
            _ => Err(mismatch(file, info, format!("F32, F16 or BF16 {shape:?}"))),
        }
    }

    /// Give the memory behind the tensor `name` back to the operating system, once it has been packed or uploaded. The
    /// tensor stays readable: touched again it is read from the file again. Where maps cannot be told (other than on
    /// Unix), and for a name that there is not, nothing happens.
    pub fn release(&self, name: &str) {
        if let Some((file, info)) = self.stored(name) {
            file.release(info.range.clone());
        }
    }

    fn stored(&self, name: &str) -> Option<(&MappedFile, &TensorInfo)> {
        let stored = self.tensors.get(*self.by_name.get(name)?)?;
        Some((self.files.get(stored.file)?, &stored.info))
    }

    fn required(&self, name: &str) -> Result<(&MappedFile, &TensorInfo)> {
        self.stored(name).ok_or_else(|| Error::MissingTensor { name: name.into(), path: self.path.clone() })
    }

    fn view<'a>(&self, file: &'a MappedFile, info: &'a TensorInfo, encoding: Encoding) -> Result<TensorView<'a>> {
        // The header was checked against the file's length, so the range is there.
        let data = file.bytes().get(info.range.clone()).ok_or_else(|| invalid(file.path(), "has become shorter"))?;
        Ok(TensorView { name: &info.name, file: file.path(), encoding, shape: &info.shape, data })
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, bytes) = (self.tensors.len(), self.total_bytes());
        write!(f, "Checkpoint at {}: {tensors} tensors of {bytes} bytes", self.path.display())
    }
}

fn mismatch(file: &MappedFile, info: &TensorInfo, expected: String) -> Error {
    let found = format!("{} {:?}", info.dtype, info.shape);
    Error::InvalidTensor { name: info.name.clone(), path: file.path().to_path_buf(), expected, found }
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
            return Err(match path.extension() {
                Some(extension) if extension.eq_ignore_ascii_case("gguf") => gguf(path),
                _ => invalid(path, "is a file: give the folder that holds config.json and the weights"),
            });
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

    fn lacks(&self, wanted: &str) -> Error {
        if let Some(name) = self.with_extension("gguf").first() {
            return gguf(&self.path.join(name));
        }
        let found = match self.names.as_slice() {
            [] => "the folder is empty".to_owned(),
            names => {
                let shown: Vec<_> = names.iter().take(8).map(String::as_str).collect();
                format!("found {}{}", shown.join(", "), if names.len() > shown.len() { ", ..." } else { "" })
            }
        };
        invalid(self.path, format!("not a checkpoint: no {wanted}; {found}"))
    }
}

fn gguf(path: &Path) -> Error {
    let reason = "GGUF files cannot be read yet; use the folder of the safetensors checkpoint of the same model";
    Error::unsupported(format!("GGUF ({})", path.display()), reason)
}
