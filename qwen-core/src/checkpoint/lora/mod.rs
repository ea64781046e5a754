//! Low-rank adapters, as PEFT saves them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter has for some of a model's matrices W, of `rows` x `cols`, two thin ones: A of `rank` x `cols` and B of
//! `rows` x `rank`. Beside `y = W x` the model then computes `y += scale * B (A x)` (Hu et al. 2021, "LoRA"). Here: which
//! matrices those are, checked against the model that the adapter is for. Not here: how they are computed
//! (`model/low_rank`).

mod config;
mod pattern;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Stored;
use super::config::Config;
use super::files::invalid;
use super::header::Header;
use super::names;
use super::shard::Shard;
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;
pub use config::LoraConfig;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The largest rank of one matrix that is applied, as other servers bound it.
pub const MAX_LORA_RANK: usize = 512;

/// An opened adapter that fits a model: headers are read, weights are not.
///
/// ```no_run
/// use qwen_core::checkpoint::{Checkpoint, LoraCheckpoint};
/// let model = Checkpoint::open("Qwen2.5-0.5B-Instruct")?;
/// let adapter = LoraCheckpoint::open("my-adapter", model.config())?;
/// println!("rank {} at {} matrices", adapter.rank(), adapter.modules().count());
/// # Ok::<(), qwen_core::Error>(())
/// ```
pub struct LoraCheckpoint {
    path: PathBuf,
    modules: BTreeMap<String, Pair>,
}

/// The two matrices beside one of the model's.
struct Pair {
    a: Stored,
    b: Stored,
    rank: usize,
    scale: f64,
}

/// An adapter's part beside one matrix of the model, read into memory.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoraModule {
    /// `[rank, cols]`
    pub a: LoraHalf,
    /// `[rows, rank]`
    pub b: LoraHalf,
    /// Rows of `a` and columns of `b`.
    pub rank: usize,
    /// What the product of both is multiplied with.
    pub scale: f64,
}

/// One of the two matrices, row-major.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoraHalf {
    /// F32, F16 or BF16.
    pub encoding: Encoding,
    /// Its values, little-endian. All are finite.
    pub data: Vec<u8>,
}

impl LoraModule {
    /// A part of rank `rank` whose product `b a` is multiplied with `scale`.
    pub fn new(a: LoraHalf, b: LoraHalf, rank: usize, scale: f64) -> Self {
        LoraModule { a, b, rank, scale }
    }
}

impl LoraHalf {
    /// A matrix of these bytes, in F32, F16 or BF16.
    pub fn new(encoding: Encoding, data: Vec<u8>) -> Self {
        LoraHalf { encoding, data }
    }

    /// Its values, decoded exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.data.len() / self.encoding.block().bytes.max(1)];
        self.encoding.decode_row(&self.data, &mut values);
        values
    }

    fn read(stored: &Stored) -> Result<Self> {
        let half = LoraHalf { encoding: stored.encoding()?, data: stored.read_all()? };
        match half.to_f32().iter().all(|value| value.is_finite()) {
            true => Ok(half),
            false => {
                let reason = format!("tensor `{}` has values that are not finite", stored.info.name);
                Err(invalid(stored.shard.path(), reason))
            }
        }
    }
}

impl LoraCheckpoint {
    /// Open the adapter in the folder `path`, which is for a model of this configuration.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`] and [`Error::InvalidConfig`] for damaged files; [`Error::Unsupported`] for
    /// adapters that are not plain low-rank products ([`LoraConfig::from_json`]) or not beside the projections of the
    /// layers; [`Error::MissingTensor`] where one half of a pair is missing or a module has none;
    /// [`Error::InvalidTensor`] for one of another shape than the model and the configuration say.
    pub fn open(path: impl AsRef<Path>, model: &Config) -> Result<Self> {
        let _float_env = FloatEnv::enter();
        let path = path.as_ref();
        let (config_path, weights) = (path.join(CONFIG), path.join(WEIGHTS));
        let config = LoraConfig::from_file(&config_path)?;
        if !weights.exists() && path.join("adapter_model.bin").exists() {
            let reason = "pickled weights are not read: save the adapter as safetensors (peft's default)";
            return Err(Error::unsupported(format!("{}", path.join("adapter_model.bin").display()), reason));
        }
        let shard = Arc::new(Shard::open(weights)?);
        let mut halves: BTreeMap<String, [Option<Stored>; 2]> = BTreeMap::new();
        for info in Header::read(&shard)?.tensors {
            let stored = Stored { shard: shard.clone(), info, gguf: false };
            let (module, half) = part_of(&stored.info.name, model).ok_or_else(|| unknown(&stored, model))?;
            if config.targets(&module) == Some(false) {
                let reason = format!("{CONFIG} does not target `{module}`: the two files are not of one adapter");
                return Err(invalid(shard.path(), format!("tensor `{}`: {reason}", stored.info.name)));
            }
            // Two names in the file may mean the same module.
            if let Some(slot) = halves.entry(module).or_default().get_mut(half)
                && let Some(twice) = slot.replace(stored)
            {
                return Err(invalid(shard.path(), format!("`{}` appears under two names", twice.info.name)));
            }
        }
        let lacks = |module: &str, half: &str, instead: &str| {
            let name = format!("base_model.model.{module}.lora_{half}.weight");
            Error::MissingTensor { name, path: shard.path().to_path_buf(), instead: instead.into() }
        };
        for module in all_modules(model).filter(|module| config.targets(module) == Some(true)) {
            if !halves.contains_key(&module) {
                return Err(lacks(&module, "A", &format!(": {CONFIG} targets this module")));
            }
        }
        let mut modules = BTreeMap::new();
        for (module, halves) in halves {
            let pair = match halves {
                [Some(a), Some(b)] => Pair::new(a, b, &module, &config, model)?,
                [None, _] => return Err(lacks(&module, "A", ": its other half is there")),
                [_, None] => return Err(lacks(&module, "B", ": its other half is there")),
            };
            modules.insert(module, pair);
        }
        if modules.is_empty() {
            return Err(invalid(shard.path(), "has no tensors: the adapter changes nothing"));
        }
        Ok(LoraCheckpoint { path: path.to_path_buf(), modules })
    }

    /// The folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the model's matrices that it goes beside, such as `model.layers.0.self_attn.q_proj`.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The largest rank of its pairs.
    pub fn rank(&self) -> usize {
        self.modules.values().map(|pair| pair.rank).max().unwrap_or(0)
    }

    /// Bytes of its weights in the file.
    pub fn stored_bytes(&self) -> u64 {
        self.modules.values().map(|pair| pair.a.info.bytes().saturating_add(pair.b.info.bytes())).sum()
    }

    /// The encodings of both halves beside the matrix `module` and their rank, if it has a part there. Reads nothing.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for an element type other than F32, F16 and BF16.
    pub fn encodings(&self, module: &str) -> Result<Option<([Encoding; 2], usize)>> {
        let Some(Pair { a, b, rank, .. }) = self.modules.get(module) else { return Ok(None) };
        Ok(Some(([a.encoding()?, b.encoding()?], *rank)))
    }

    /// Read its part beside the matrix `module`, if it has one.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::OutOfMemory`]; [`Error::InvalidFile`] for values that are not
    /// finite.
    pub fn module(&self, module: &str) -> Result<Option<LoraModule>> {
        let Some(Pair { a, b, rank, scale }) = self.modules.get(module) else { return Ok(None) };
        Ok(Some(LoraModule { a: LoraHalf::read(a)?, b: LoraHalf::read(b)?, rank: *rank, scale: *scale }))
    }

    /// A number that tells adapters apart by what they compute: of all names, shapes, scales and values.
    ///
    /// # Errors
    /// As [`LoraCheckpoint::module`].
    pub fn digest(&self) -> Result<u64> {
        let mut digest = Digest::default();
        for (name, pair) in &self.modules {
            digest.add(name.as_bytes());
            digest.add(&pair.scale.to_le_bytes());
            for half in [&pair.a, &pair.b] {
                digest.add(half.info.dtype.as_bytes());
                digest.add(&half.read_all()?);
            }
        }
        Ok(digest.0)
    }
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        let len = (bytes.len() as u64).to_le_bytes();
        for byte in len.iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Pair {
    /// Both halves, of the shapes that the model and the configuration ask for.
    fn new(a: Stored, b: Stored, module: &str, config: &LoraConfig, model: &Config) -> Result<Self> {
        let (rank, scale) = (config.rank(module), config.scale(module));
        if rank > MAX_LORA_RANK {
            let what = format!("an adapter of rank {rank} at `{module}` ({})", a.shard.path().display());
            return Err(Error::unsupported(what, format!("at most {MAX_LORA_RANK} is applied: merge it")));
        }
        let (rows, cols) = shape_of(module, model).unwrap_or_default();
        for (half, shape) in [(&a, [rank, cols]), (&b, [rows, rank])] {
            let encoding = half.encoding_of_shape(&shape)?;
            if !matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16) {
                return Err(half.mismatch("F32, F16 or BF16".into()));
            }
        }
        Ok(Pair { a, b, rank, scale })
    }
}

/// The projections of a layer, by their names in it.
const PROJECTIONS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The names of all matrices of a model that an adapter can go beside.
fn all_modules(model: &Config) -> impl Iterator<Item = String> {
    let layers = 0..model.num_hidden_layers;
    layers.flat_map(|layer| PROJECTIONS.map(|projection| format!("model.layers.{layer}.{projection}")))
}

/// Rows and columns of the matrix `module` of a model; `None` if it has no such projection.
fn shape_of(module: &str, model: &Config) -> Option<(usize, usize)> {
    let (layer, projection) = module.strip_prefix("model.layers.")?.split_once('.')?;
    // Only the canonical form: `01` is not layer 1.
    let number: usize = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
    if number >= model.num_hidden_layers {
        return None;
    }
    let (hidden, inner) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);
    match projection {
        "self_attn.q_proj" => Some((q, hidden)),
        "self_attn.k_proj" | "self_attn.v_proj" => Some((kv, hidden)),
        "self_attn.o_proj" => Some((hidden, q)),
        "mlp.gate_proj" | "mlp.up_proj" => Some((inner, hidden)),
        "mlp.down_proj" => Some((hidden, inner)),
        _ => None,
    }
}

/// The module that a tensor of this name belongs to, and which half of it: 0 for A, 1 for B.
fn part_of(name: &str, model: &Config) -> Option<(String, usize)> {
    let name = names::published_name(name)?;
    let halves = [(".lora_A.weight", 0), (".lora_B.weight", 1)];
    let found = halves.into_iter().find_map(|(end, half)| Some((name.strip_suffix(end)?, half)));
    found.filter(|(module, _)| shape_of(module, model).is_some()).map(|(module, half)| (module.to_owned(), half))
}

/// The error for a tensor that is not applied.
fn unknown(stored: &Stored, model: &Config) -> Error {
    let name = &stored.info.name;
    let is_lora = name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    let reason = match () {
        () if name.contains("lora_magnitude") => "it belongs to a DoRA adapter, which is not applied: merge it".into(),
        () if name.contains("lora_embedding") || name.contains("embed_tokens") || name.contains("lm_head") => {
            "adapters of the embedding table and the output head are not applied: merge it".into()
        }
        () if is_lora => {
            format!("a model with {} layers has no such projection: it is for another one", model.num_hidden_layers)
        }
        () => "it is no half of a low-rank pair: only plain low-rank adapters are applied".to_owned(),
    };
    Error::unsupported(format!("tensor `{name}` in {}", stored.shard.path().display()), reason)
}

impl fmt::Debug for LoraCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adapter at {}: rank {} at {} matrices", self.path.display(), self.rank(), self.modules.len())
    }
}
