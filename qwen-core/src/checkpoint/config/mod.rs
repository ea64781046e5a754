//! `config.json`: the shape of a model and the constants of its layers.
//!
//! A [`Config`] exists only if the file is consistent as a whole, so later code does not check again. Not here:
//! sampling defaults ([`crate::checkpoint::generation_config`]), the frequencies that the rope keys lead to
//! ([`crate::model::rope`]), and whether the tensors have these shapes (the model asks [`crate::checkpoint`] for each
//! by shape).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod quantization;
mod rope_scaling;

use std::path::Path;

pub use quantization::{GptqFormat, QuantMethod, Quantization};
pub(super) use rope_scaling::MAX_POSITIONS;
pub use rope_scaling::{RopeScaling, Yarn};

use crate::checkpoint::json::{self, Fields};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

// Far above anything published. Within these bounds the bytes of all weights, and of the K/V of the whole context, fit
// in 63 bits, so code after the parser can multiply sizes without overflow.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_LAYERS: usize = 1 << 12;
pub(super) const MAX_VOCABULARY: usize = 1 << 24;

/// The parameters of a Qwen2.5 model, under their names in `config.json`.
///
/// ```
/// use qwen_core::Config;
///
/// let config = Config::from_json("config.json", r#"{
///     "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
///     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-06,
///     "max_position_embeddings": 32768, "rope_theta": 1000000.0, "tie_word_embeddings": true
/// }"#)?;
/// assert_eq!(config.head_dim, 64);
/// assert_eq!(config.max_context(), 32768);
/// assert_eq!(config.with_yarn(4.0)?.max_context(), 131072);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP. Use this value, not that of the model card: official quantised 72B files are wider than
    /// the plain ones.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head: even, since rotary embedding pairs its two halves.
    pub head_dim: usize,
    /// Rows of the embedding table. There are more rows than tokens: the last ones are padding.
    pub vocab_size: usize,
    /// Context without scaling; see [`Config::max_context`].
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm: 1e-6 or 1e-5, independent of the model's size.
    pub rms_norm_eps: f32,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// The attention window, if `use_sliding_window` is true and a layer has it; never less than
    /// [`Config::max_context`], since a narrower window is refused. `None` in every published file: there
    /// `sliding_window` has no effect.
    pub sliding_window: Option<usize>,
    /// Whether the output head is the embedding table. If not, the checkpoint has `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// Whether a token attends to those before it only. False in embedding models that were trained with attention in
    /// both directions, which this library does not compute: it refuses their embeddings.
    pub is_causal: bool,
    /// The id at the beginning of a document. Qwen2.5 prompts have none.
    pub bos_token_id: Option<u32>,
    /// Ids that end a generation; `generation_config.json` and the chat template may add more.
    pub eos_token_id: Vec<u32>,
    /// The element type that the file claims. A hint: each tensor states its own type.
    pub torch_dtype: Option<Encoding>,
    /// How packed matrices are stored, if the checkpoint is a GPTQ or AWQ one.
    pub quantization: Option<Quantization>,
}

impl Config {
    /// Parse the text of a `config.json`. `path` is only for errors.
    ///
    /// Both key styles are read (`torch_dtype` or `dtype`, rope keys at top level or in `rope_parameters`), and `null`
    /// means "not set".
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the key that is missing, malformed or contradicts another;
    /// [`Error::Unsupported`] names what the file asks for and this library does not support: another architecture,
    /// another activation, weights quantised by other methods than GPTQ and AWQ, sliding windows, dual-chunk attention,
    /// other rope types.
    pub fn from_json(path: impl AsRef<Path>, json: &str) -> Result<Self> {
        let path = path.as_ref();
        let value = json::parse(path, json)?;
        let fields = &Fields::root(path, &value)?;
        refuse_unsupported(fields)?;

        let required = |key: &str, max| fields.required(key, fields.usize(key, 1, max)?);
        let hidden_size = required("hidden_size", MAX_WIDTH)?;
        let num_hidden_layers = required("num_hidden_layers", MAX_LAYERS)?;
        let num_attention_heads = required("num_attention_heads", MAX_WIDTH)?;
        let head_dim = head_dim(fields, hidden_size, num_attention_heads)?;
        let max_position_embeddings = required("max_position_embeddings", MAX_POSITIONS)?;
        let (rope_theta, rope_scaling) = rope_scaling::parse(fields, max_position_embeddings)?;
        let config = Config {
            hidden_size,
            intermediate_size: required("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: num_key_value_heads(fields, num_attention_heads)?,
            head_dim,
            vocab_size: required("vocab_size", MAX_VOCABULARY)?,
            max_position_embeddings,
            rms_norm_eps: rms_norm_eps(fields)?,
            rope_theta,
            rope_scaling,
            sliding_window: sliding_window(fields, num_hidden_layers)?,
            tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
            is_causal: fields.bool("is_causal")?.unwrap_or(true),
            // It is not used here, so no value of it is a reason to refuse a model.
            bos_token_id: fields.ids("bos_token_id").unwrap_or_default().first().copied(),
            eos_token_id: fields.ids("eos_token_id")?,
            torch_dtype: torch_dtype(fields),
            quantization: match fields.object("quantization_config")? {
                Some(object) => Some(quantization::parse(&object, None)?),
                None => None,
            },
        };
        if let Some(window) = config.sliding_window.filter(|&window| window < config.max_context()) {
            return Err(fields.unsupported(
                "use_sliding_window",
                &format!("a sliding window of {window}"),
                FULL_ATTENTION,
            ));
        }
        if !config.fits_pointers() {
            return Err(fields.error("hidden_size", "makes the model too large to address on this machine"));
        }
        Ok(config)
    }

    /// Read and parse a `config.json`.
    ///
    /// # Errors
    /// As [`Config::from_json`], and [`Error::Io`] if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Config::from_json(path, &json::read_config(path)?)
    }

    /// Enable static YaRN, as the model cards advise for long texts: `max_position_embeddings` extended by `factor`. If
    /// the file already has YaRN, only its factor changes.
    ///
    /// The files of some base models already state 131,072 positions; for those, set the original context of 32,768
    /// explicitly by [`Config::with_rope_scaling`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `factor` is below 1 or makes the context too long.
    pub fn with_yarn(self, factor: f64) -> Result<Self> {
        let yarn = self.yarn(factor);
        self.with_rope_scaling(RopeScaling::Yarn(yarn))
    }

    /// Enable YaRN by the length of each sequence: one within the original context is computed as by a model without
    /// YaRN, bit for bit, and a longer one with the factor that it needs, rounded up to a whole number and up to
    /// `factor`. An engine decides when it admits a request, by its prompt and the most tokens of its answer.
    ///
    /// # Errors
    /// As [`Config::with_yarn`].
    pub fn with_auto_yarn(self, factor: f64) -> Result<Self> {
        let yarn = self.yarn(factor);
        self.with_rope_scaling(RopeScaling::Auto(yarn))
    }

    /// The file's YaRN, or that of the model cards, with this factor.
    fn yarn(&self, factor: f64) -> Yarn {
        let plain = Yarn::new(factor, self.max_position_embeddings);
        self.rope_scaling.yarn().map_or(plain, |yarn| Yarn { factor, ..*yarn })
    }

    /// Replace the scaling of the rotary frequencies.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field that is out of its bounds.
    pub fn with_rope_scaling(mut self, rope_scaling: RopeScaling) -> Result<Self> {
        if let Some(yarn) = rope_scaling.yarn() {
            yarn.check().map_err(|(name, reason)| Error::argument(name, reason))?;
            if let Some(window) = self.sliding_window.filter(|&window| window < yarn.max_context()) {
                return Err(Error::unsupported(format!("a sliding window of {window}"), FULL_ATTENTION));
            }
        }
        self.rope_scaling = rope_scaling;
        Ok(self)
    }

    /// The longest context that the model may be run with: with YaRN its factor times the original context, else
    /// `max_position_embeddings`.
    pub fn max_context(&self) -> usize {
        self.rope_scaling.yarn().map_or(self.max_position_embeddings, Yarn::max_context)
    }

    /// Whether this machine can address all weights as f32.
    pub(super) fn fits_pointers(&self) -> bool {
        4 * self.num_parameters() <= isize::MAX as u64
    }

    /// Elements of all weights.
    pub fn num_parameters(&self) -> u64 {
        let [hidden, inner, vocab] = [self.hidden_size, self.intermediate_size, self.vocab_size].map(|n| n as u64);
        let [q, kv] = [self.num_attention_heads, self.num_key_value_heads].map(|n| n as u64 * self.head_dim as u64);
        // q, k and v have biases, the output projection and the MLP have none.
        let attention = (q + 2 * kv) * (hidden + 1) + q * hidden;
        let layer = attention + 3 * hidden * inner + 2 * hidden;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 } * vocab * hidden;
        self.num_hidden_layers as u64 * layer + embeddings + hidden
    }
}

fn num_key_value_heads(fields: &Fields<'_>, num_attention_heads: usize) -> Result<usize> {
    // `null` has always meant one K/V head per query head; an absent key is treated the same.
    let key = "num_key_value_heads";
    let kv_heads = fields.usize(key, 1, num_attention_heads)?.unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(kv_heads) {
        return Err(fields.error(key, format!("{kv_heads} does not divide num_attention_heads {num_attention_heads}")));
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields<'_>, hidden_size: usize, num_attention_heads: usize) -> Result<usize> {
    let head_dim = match fields.usize("head_dim", 1, MAX_WIDTH / num_attention_heads)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let reason = format!("{num_attention_heads} does not divide hidden_size {hidden_size}");
            return Err(fields.error("num_attention_heads", reason));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(fields.error("head_dim", format!("{head_dim} is odd: rotary embedding pairs the halves of a head")));
    }
    Ok(head_dim)
}

fn rms_norm_eps(fields: &Fields<'_>) -> Result<f32> {
    let key = "rms_norm_eps";
    let eps = fields.required(key, fields.f64(key, 0.0, 1.0)?)?;
    // Rounded once to f32, as in every implementation that computes in f32. An epsilon of 0 would divide by zero on a
    // zero row.
    match eps as f32 {
        eps if eps > 0.0 => Ok(eps),
        _ => Err(fields.error(key, format!("{eps:?} is 0 in f32"))),
    }
}

/// Only a hint, so an unknown type name is ignored.
fn torch_dtype(fields: &Fields<'_>) -> Option<Encoding> {
    let name = ["dtype", "torch_dtype"].iter().find_map(|key| fields.str(key).ok().flatten());
    match name.map(|name| name.trim_start_matches("torch."))? {
        "bfloat16" => Some(Encoding::Bf16),
        "float16" | "half" => Some(Encoding::F16),
        "float32" | "float" => Some(Encoding::F32),
        _ => None,
    }
}

/// Refuse by name what would otherwise run and give wrong results.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    let key = "model_type";
    let model_type = fields.required(key, fields.str(key)?)?;
    if model_type != "qwen2" {
        let reason = "this library runs Qwen2.5, whose model_type is \"qwen2\"";
        return Err(fields.unsupported(key, &format!("model_type {model_type:?}"), reason));
    }
    if let Some(architectures) = fields.get("architectures").and_then(|value| value.as_array())
        && !architectures.is_empty()
        && !architectures.iter().any(|name| name == "Qwen2ForCausalLM")
    {
        let names: Vec<_> = architectures.iter().filter_map(|name| name.as_str()).collect();
        let reason = "only Qwen2ForCausalLM generates text; reward, classifier and embedding heads are other models";
        return Err(fields.unsupported("architectures", &format!("architecture {}", names.join(", ")), reason));
    }
    if let Some(act) = fields.str("hidden_act")?
        && act != "silu"
    {
        return Err(fields.unsupported("hidden_act", &format!("activation {act:?}"), "Qwen2.5's MLP uses \"silu\""));
    }
    if fields.get("dual_chunk_attention_config").is_some() {
        let reason = "the 1M-token models are not supported; use the model of the same size without \"1M\" in its name";
        return Err(fields.unsupported("dual_chunk_attention_config", "dual-chunk attention", reason));
    }
    if fields.get("compression_config").is_some() {
        let reason = "its layout is not supported; use the GPTQ, AWQ, GGUF or 16-bit files of the same model";
        return Err(fields.unsupported("compression_config", "quantisation \"compressed-tensors\"", reason));
    }
    if fields.bool("use_mrope")? == Some(true) {
        let reason = "multimodal rotary embedding belongs to the vision models";
        return Err(fields.unsupported("use_mrope", "multimodal rotary embedding", reason));
    }
    if let Some(rotary) = fields.f64("partial_rotary_factor", 0.0, f64::MAX)?
        && rotary != 1.0
    {
        let reason = "Qwen2.5 rotates whole heads";
        return Err(fields.unsupported("partial_rotary_factor", &format!("partial rotary factor {rotary:?}"), reason));
    }
    Ok(())
}

/// The window that attention is limited to, if any layer uses it.
fn sliding_window(fields: &Fields<'_>, num_hidden_layers: usize) -> Result<Option<usize>> {
    let is_on = fields.bool("use_sliding_window")? == Some(true);
    if let Some(layer_types) = fields.get("layer_types").and_then(|value| value.as_array()) {
        // The newer key `layer_types` says for each layer what `max_window_layers` says for all.
        let kinds = layer_types.iter().take(num_hidden_layers);
        return match kinds.into_iter().find(|kind| *kind != "full_attention") {
            None => Ok(None),
            // A window that is wider than the context makes no difference.
            Some(kind) if kind == "sliding_attention" && is_on => {
                let key = "sliding_window";
                fields.required(key, fields.usize(key, 0, usize::MAX)?).map(Some)
            }
            Some(kind) => {
                let what = format!("layer type {:?}", kind.as_str().unwrap_or("that is not a string"));
                Err(fields.unsupported("layer_types", &what, FULL_ATTENTION))
            }
        };
    }
    // Layers from this one on have the window. In published files it is often the number of layers, so that none has
    // it.
    if !is_on || fields.usize("max_window_layers", 0, usize::MAX)?.unwrap_or(MAX_WINDOW_LAYERS) >= num_hidden_layers {
        return Ok(None);
    }
    match fields.entries().any(|(key, _)| key == "sliding_window") {
        true => fields.usize("sliding_window", 0, usize::MAX),
        false => Ok(Some(SLIDING_WINDOW)),
    }
}

/// The default of transformers if `max_window_layers` is absent.
const MAX_WINDOW_LAYERS: usize = 28;

/// The default of transformers if `sliding_window` is absent (rather than `null`).
const SLIDING_WINDOW: usize = 4096;

const FULL_ATTENTION: &str = "attention over the whole context is computed in every layer";
